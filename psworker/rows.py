"""What of a request is rows of sparse tables: gradients on their way out, and rows on their way in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.buffers import BufferPool
from protocol.compression.halves import NARROWER, narrow, widen
from protocol.compression.keys import values_part
from protocol.errors import BadTensor, NotFinite
from protocol.messages import TensorInfo
from protocol.tables import Keys, Rows, Table
from protocol.tensors import DTYPES, Part, all_finite, dtype_name
from psworker.key_routes import KeyRoutes, Route
from psworker.keys import as_keys

__all__ = ["Arrival", "Outgoing", "RowPlans", "SparseGradient"]

Array = npt.NDArray[Any]

_ROUTES: Final = 64 * 1024 * 1024
"""Bytes of routes of lists of keys that are remembered."""


class SparseGradient(NamedTuple):
    """Gradients of rows of a table, for ``push``; those of a key that comes twice are summed.

    Attributes:
        keys: whole numbers from 0 to 2^64-1, an array of any shape.
        values: the gradients, of the table's dtype: shape (number of keys, dim), or the keys' and then dim.
    """

    keys: npt.ArrayLike
    values: npt.ArrayLike


@dataclass(slots=True)
class Outgoing:
    """What one shard is sent: the description of a payload, and the payload."""

    parts: list[Part] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows that come from several shards, or in another dtype than they are for.

    Attributes:
        rows: (n, dim), as they arrive: one share of the route after the other.
        values: as what they travel.
        route: of their keys.
        out: (n, dim), where they are wanted, in the order of the list of keys.
    """

    rows: Array
    values: str
    route: Route
    out: Array

    def finish(self, pool: BufferPool) -> None:
        """Write the rows, which have all arrived, to where they are wanted."""
        if self.rows.dtype == self.out.dtype:
            self.route.in_place(self.rows, self.out)
            return
        narrow_rows = self.rows
        if self.route.places is not None:
            narrow_rows = pool.empty(self.rows.size, self.rows.dtype).reshape(self.rows.shape)
            self.route.in_place(self.rows, narrow_rows)
        widen(narrow_rows.reshape(-1), self.values, self.out.reshape(-1))


class RowPlans:
    """Plan the pushes and pulls of rows.

    Args:
        pool: of memory for what is put in order.
        values: the dtype in which rows travel, of tables that have a wider one; None: the table's.
    """

    def __init__(self, pool: BufferPool, values: str | None) -> None:
        self._pool = pool
        self._values = values
        self._routes = KeyRoutes(_ROUTES)

    def push(self, info: TensorInfo, gradient: object, plan: dict[int, Outgoing]) -> Array:
        """Add what each shard is sent of ``gradient`` to ``plan``; every one with a block is sent something.

        Nothing is copied for a table on one shard whose rows travel as they are.

        Returns:
            All the gradients in one array, for the check for NaN and infinity.

        Raises:
            BadRequest: keys that are none.
            BadTensor: another dtype or shape, or a number that is too large for what rows travel as.
            NotFinite: NaN or infinity, where the server could not tell.
        """
        name, table = info.name, _table(info)
        if not isinstance(gradient, SparseGradient):
            raise BadTensor(
                "it is a sparse table; push a SparseGradient(keys, values)",
                field=name,
                value=type(gradient).__name__,
            )
        keys, shape = as_keys(gradient.keys)
        values = _checked(info, gradient.values, shape, table.dim)
        wire = self._wire(info)
        if wire != info.spec.dtype and not all_finite(values):
            raise NotFinite("NaN or infinity in the gradient; nothing was sent", field="tensors", value=name)
        route = self._routes.route(keys, info.blocks)
        rows = route.by_share(narrow(values, wire, name).reshape(keys.size, table.dim), self._pool)
        for share in route.shares:
            out = plan.setdefault(share.shard, Outgoing())
            described = share.rows(name, wire)
            out.rows.append(described)
            out.parts += (share.part(name), values_part(described, table.dim))
            out.arrays += (share.coded, rows[share.begin : share.stop].reshape(-1))
        return values

    def pull(
        self,
        info: TensorInfo,
        keys: Keys,
        out: Array,
        plan: dict[int, Outgoing],
        into: dict[int, list[Array]],
    ) -> Arrival | None:
        """Add what each shard is asked to ``plan``, and where its answer goes to ``into``.

        Args:
            info: what the table is.
            keys: (n,), of the rows that are wanted.
            out: (n * dim,): where the rows are wanted.
            plan: by shard; those that have none of the keys are asked nothing.
            into: by shard.

        Returns:
            What is left to do when the answers have arrived; None: nothing.
        """
        dim, wire = _table(info).dim, self._wire(info)
        route = self._routes.route(keys, info.blocks)
        arriving = out
        for share in route.shares:
            part = values_part(share.rows(info.name, wire), dim)
            if arriving is out and (route.order is not None or DTYPES[part.dtype] != out.dtype):
                arriving = self._pool.empty(out.size, DTYPES[part.dtype])
            if part.elements:
                asked = plan.setdefault(share.shard, Outgoing())
                asked.rows.append(share.rows(info.name, wire))
                asked.parts.append(share.part(info.name))
                asked.arrays.append(share.coded)
                into.setdefault(share.shard, []).append(arriving[share.begin * dim : share.stop * dim])
        if arriving is out:
            return None
        shape = (keys.size, dim)
        return Arrival(arriving.reshape(shape), wire, route, out.reshape(shape))

    def _wire(self, info: TensorInfo) -> str:
        dtype = info.spec.dtype
        return self._values if self._values is not None and self._values in NARROWER.get(dtype, ()) else dtype


def _table(info: TensorInfo) -> Table:
    assert info.spec.table is not None  # noqa: S101 (looked at by the router)
    return info.spec.table


def _checked(info: TensorInfo, values: npt.ArrayLike, shape: tuple[int, ...], dim: int) -> Array:
    """Return the gradients as the flat array that travels; not copied if C-contiguous and little-endian."""
    array = np.asarray(values)
    dtype = DTYPES[info.spec.dtype]
    if array.dtype.newbyteorder("<") != dtype:
        dtype_name(array.dtype, field=info.name)
        raise BadTensor(f"the table's dtype is {info.spec.dtype}", field=info.name, value=array.dtype)
    if array.shape not in ((*shape, dim), (int(np.prod(shape)), dim)):
        raise BadTensor(
            f"the gradients of keys of shape {shape} have the shape {(*shape, dim)}",
            field=info.name,
            value=array.shape,
        )
    return np.ascontiguousarray(array, dtype).reshape(-1)
