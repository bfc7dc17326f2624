"""A sparse table as its user sees it: rows by keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from protocol.errors import BadRequest
from protocol.fields import array_decoder, array_encoder
from protocol.messages import Done, Spec
from protocol.optimizers import Optimizer, spec_of
from protocol.tables import HASH_SLOTS, Initial, Normal, Table, Uniform, Zeros
from psworker.rows import SparseGradient

if TYPE_CHECKING:
    from psworker.client import Client

__all__ = ["SparseTable", "spec_of_table"]

Array = npt.NDArray[Any]

_DTYPES: Final = ("float32", "float64")

_encode, _check = array_encoder(Table), array_decoder(Table)


def spec_of_table(dtype: str, optimizer: Optimizer, init: Initial, **settings: Any) -> Spec:
    """Return what a table is; ``settings`` are those of ``protocol.tables.Table``.

    Raises:
        BadRequest: a setting is out of its range, or of another type.
    """
    if dtype not in _DTYPES:
        raise BadRequest(f"rows are {' or '.join(_DTYPES)}", field="dtype", value=dtype)
    initial, scale = _initial(init)
    table: Table = _check(_encode(Table(initial=initial, scale=scale, **settings)), "table")
    return Spec(dtype, (HASH_SLOTS,), spec_of(optimizer), table)


def _initial(init: Initial) -> tuple[str, float]:
    match init:
        case Zeros():
            return "zeros", 0.0
        case Normal(std):
            return "normal", std
        case Uniform(bound):
            return "uniform", bound
    raise BadRequest("rows begin with Zeros(), Normal(std) or Uniform(bound)", field="init", value=init)


class SparseTable:
    """A sparse table of a client's job; made by ``Client.create_sparse`` and ``Client.table``.

    What several tables and tensors need at once is faster by the client's own ``pull`` and ``push_pull``.

    Attributes:
        name: the table's.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client

    async def pull(self, keys: npt.ArrayLike) -> Array:
        """Return the rows of ``keys``, read-only; see ``Client.pull``.

        Args:
            keys: whole numbers from 0 to 2^64-1 of any shape, in any order, any of them repeatedly.

        Returns:
            The keys' shape and then dim, of the table's dtype. A row that does not exist is what it would
            begin with.

        Raises:
            BadRequest: keys that are none, or there is no such table but a dense tensor.
            UnknownTensor: nobody has created it.
        """
        await self._client.check_is_table(self.name)
        return (await self._client.pull({self.name: keys}))[self.name]

    async def push(
        self, keys: npt.ArrayLike, grads: npt.ArrayLike, *, weight: float = 1.0, done: Done | None = None
    ) -> None:
        """Have the server's optimizer apply gradients to rows; see ``Client.push``.

        Args:
            keys: as for ``pull``. The gradients of one that comes repeatedly are summed.
            grads: of the table's dtype and the shape that ``pull`` returns, or (number of keys, dim).
            weight: as for ``Client.push``.
            done: as for ``Client.push``.

        Raises:
            PSError: as ``Client.push``.
        """
        await self._client.push({self.name: SparseGradient(keys, grads)}, weight=weight, done=done)

    async def push_pull(
        self,
        keys: npt.ArrayLike,
        grads: npt.ArrayLike,
        next_keys: npt.ArrayLike | None = None,
        *,
        weight: float = 1.0,
        done: Done | None = None,
    ) -> Array:
        """Push, end this worker's step, and return the rows of ``next_keys``, or of ``keys``, after it.

        Raises:
            PSError: as ``Client.push_pull``.
        """
        gradient = {self.name: SparseGradient(keys, grads)}
        new = await self._client.push_pull(gradient, {self.name: next_keys}, weight=weight, done=done)
        return new[self.name]
