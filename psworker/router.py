"""Cut named arrays into the blocks that the shards hold, and put pulled blocks together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.buffers import BufferPool
from protocol.errors import BadRequest, BadTensor, NotFinite
from protocol.messages import TensorInfo
from protocol.tensors import DTYPES, Part, all_finite, dtype_name
from psworker.keys import as_keys
from psworker.rows import Arrival, Outgoing, RowPlans, SparseGradient

__all__ = ["Pulls", "as_tensor", "plan_pull", "plan_push", "plan_reset"]

Array = npt.NDArray[Any]

_NO_KEYS: Final[Mapping[str, npt.ArrayLike | None]] = {}


@dataclass(slots=True)
class Pulls:
    """What is asked of each shard, and where its answer goes.

    Attributes:
        arrays: what comes of it, by tensor name; see ``finish``.
        names: the dense tensors, by shard.
        wanted: the rows of tables, by shard, with their keys.
        into: where the answer goes, by shard: first the blocks, then the rows.
        arrivals: rows that have to be put where they belong.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)
    wanted: dict[int, Outgoing] = field(default_factory=dict)
    into: dict[int, list[Array]] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)

    def finish(self, pool: BufferPool) -> dict[str, Array]:
        """Return the arrays, read-only, when all answers have arrived."""
        for arrival in self.arrivals:
            arrival.finish(pool)
        for array in self.arrays.values():
            array.flags.writeable = False
        return self.arrays


def as_tensor(name: str, value: npt.ArrayLike) -> Array:
    """Return ``value`` as the C-contiguous, little-endian array that travels.

    Raises:
        BadTensor: a dtype that does not travel, or no elements.
    """
    array = np.asarray(value)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    dtype_name(array.dtype, field=name)
    if array.size == 0:
        raise BadTensor("a tensor has at least one element", field=name, value=array.shape)
    # Not ascontiguousarray: it would make a 0-d array 1-d.
    return array if array.flags.c_contiguous else array.copy(order="C")


def plan_push(
    infos: Sequence[TensorInfo],
    values: Mapping[str, npt.ArrayLike | SparseGradient],
    plans: RowPlans,
    *,
    also_elsewhere: bool = False,
) -> dict[int, Outgoing]:
    """Return what each shard is sent of ``values``; nothing is copied that is C-contiguous already.

    Dense gradients come first, then those of rows.

    A push over several shards is checked here first: no shard may take its share of what another refuses,
    nor end a step that another has refused (``also_elsewhere``: shards without a share are sent the end).

    Raises:
        BadTensor: another dtype or shape than the tensor's.
        BadRequest: keys that are none.
        NotFinite: NaN or infinity in a push over several shards.
    """
    plan: dict[int, Outgoing] = {}
    flats: list[tuple[str, Array]] = []
    tables = []
    for info in infos:
        if info.spec.table is not None:
            tables.append(info)
            continue
        flat = _checked(info, values[info.name]).reshape(-1)
        flats.append((info.name, flat))
        for block in info.blocks:
            outgoing = plan.setdefault(block.shard, Outgoing())
            outgoing.parts.append(Part(info.name, info.spec.dtype, block.stop - block.start))
            outgoing.arrays.append(flat[block.start : block.stop])
    flats += [(info.name, plans.push(info, values[info.name], plan)) for info in tables]
    if len(plan) > 1 or also_elsewhere:
        for name, flat in flats:
            if not all_finite(flat):
                raise NotFinite(
                    "NaN or infinity in the gradient; nothing was sent", field="tensors", value=name
                )
    return plan


def plan_reset(
    infos: Sequence[TensorInfo], values: Mapping[str, npt.ArrayLike | None], plans: RowPlans
) -> dict[int, tuple[Outgoing, list[str]]]:
    """Return what each shard is sent of new ``values``, and which tables lose their rows there.

    Raises:
        BadTensor, NotFinite: as ``plan_push``.
        BadRequest: a table is given values, or a dense tensor none.
    """
    dense: dict[str, npt.ArrayLike | SparseGradient] = {}
    plan: dict[int, tuple[Outgoing, list[str]]] = {}
    for info in infos:
        value = values[info.name]
        if (value is None) != (info.spec.table is not None):
            wanted = "it is dense: give its values" if value is None else "it is a table: give None"
            raise BadRequest(wanted, field="values", value=info.name)
        if value is not None:
            dense[info.name] = value
            continue
        for block in info.blocks:
            plan.setdefault(block.shard, (Outgoing(), []))[1].append(info.name)
    checked = [info for info in infos if info.name in dense]
    for shard, out in plan_push(checked, dense, plans, also_elsewhere=bool(plan)).items():
        plan[shard] = (out, plan[shard][1] if shard in plan else [])
    return plan


def _checked(info: TensorInfo, value: npt.ArrayLike | SparseGradient) -> Array:
    if isinstance(value, SparseGradient):
        raise BadTensor("it is a dense tensor; push an array", field=info.name, value="SparseGradient")
    array = as_tensor(info.name, value)
    if array.dtype != DTYPES[info.spec.dtype]:
        raise BadTensor(f"the tensor's dtype is {info.spec.dtype}", field=info.name, value=array.dtype)
    if array.shape != info.spec.shape:
        raise BadTensor(f"the tensor's shape is {info.spec.shape}", field=info.name, value=array.shape)
    return array


def plan_pull(
    infos: Iterable[TensorInfo],
    pool: BufferPool,
    plans: RowPlans,
    keys: Mapping[str, npt.ArrayLike | None] = _NO_KEYS,
) -> Pulls:
    """Return what to ask each shard for, with fresh arrays that the answers are received into.

    Args:
        infos: what is wanted.
        pool: of memory.
        plans: of rows.
        keys: of the rows that are wanted, by the table's name; what dense tensors have there does not matter.

    Raises:
        BadRequest: keys that are none, or a table without keys.
    """
    pulls = Pulls()
    tables = []
    for info in infos:
        if info.spec.table is not None:
            wanted = keys.get(info.name)
            if wanted is None:
                raise BadRequest("it is a sparse table; say which keys", field="names", value=info.name)
            flat_keys, shape = as_keys(wanted)
            flat = pool.empty(flat_keys.size * info.spec.table.dim, DTYPES[info.spec.dtype])
            tables.append((info, flat_keys, flat))
            pulls.arrays[info.name] = flat.reshape(*shape, info.spec.table.dim)
            continue
        dtype = DTYPES[info.spec.dtype]
        flat = pool.empty(max(block.stop for block in info.blocks), dtype)
        for block in info.blocks:
            pulls.names.setdefault(block.shard, []).append(info.name)
            pulls.into.setdefault(block.shard, []).append(flat[block.start : block.stop])
        pulls.arrays[info.name] = flat.reshape(info.spec.shape)
    for info, flat_keys, flat in tables:
        arrival = plans.pull(info, flat_keys, flat, pulls.wanted, pulls.into)
        if arrival is not None:
            pulls.arrivals.append(arrival)
    return pulls
