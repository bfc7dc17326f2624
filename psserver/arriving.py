"""What comes with a push or a pull: checked before memory is taken for it, then made gradients and keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from protocol.compression.halves import NARROWER, widen
from protocol.compression.keys import decode_keys, parts_of_rows, parts_of_wanted
from protocol.connection import Array
from protocol.errors import BadTensor, UnknownKeys
from protocol.messages import Pull, Push, PushPull, Step
from protocol.tables import KEY_CACHE, KNOWN_FROM, Keys, Rows
from protocol.tensors import DTYPES, Part
from psserver.store.dense import DenseBlock
from psserver.store.sparse import RowsGradient, SparseBlock

if TYPE_CHECKING:
    from psserver.jobs import JobStore

__all__ = [
    "Arrived",
    "Asked",
    "Block",
    "Gradients",
    "KnownKeys",
    "WantedRows",
    "arrived",
    "asked_in",
    "check_parts",
]

Block = DenseBlock | SparseBlock
Gradients = list[tuple[Block, Any]]
"""Blocks, and what is to be applied to each: an array, or ``RowsGradient``."""


class KnownKeys:
    """The lists of keys that came on a connection, by their digest; the least recently used go first."""

    def __init__(self) -> None:
        self._lists: OrderedDict[str, Keys] = OrderedDict()
        self._bytes = 0

    def has(self, rows: Rows) -> bool:
        """Return whether a list is remembered."""
        keys = self._lists.get(rows.digest)
        return keys is not None and keys.size == rows.keys

    def get(self, rows: Rows) -> Keys:
        """Return a list.

        Raises:
            UnknownKeys: it is not remembered.
        """
        keys = self._lists.get(rows.digest)
        if keys is None or keys.size != rows.keys:
            raise UnknownKeys(
                "this list of keys is not known here; send the keys", field=rows.name, value=rows.digest
            )
        self._lists.move_to_end(rows.digest)
        return keys

    def put(self, digest: str, keys: Keys) -> None:
        """Remember a list, unless it is so short, or so long, that nobody names it."""
        if keys.size < KNOWN_FROM or keys.nbytes > KEY_CACHE:
            return
        before = self._lists.pop(digest, None)
        self._bytes += keys.nbytes - (before.nbytes if before is not None else 0)
        self._lists[digest] = keys
        while self._bytes > KEY_CACHE:
            _, gone = self._lists.popitem(last=False)
            self._bytes -= gone.nbytes


@dataclass(frozen=True, slots=True)
class WantedRows:
    """Rows of a table that are to be sent, in the order of ``keys``; ``values`` is as in ``Rows``."""

    block: SparseBlock
    keys: Keys
    values: str

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the rows take."""
        return self.keys.size * self.block.dim * DTYPES[self.block.spec.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be sent back: whole blocks by ``names``, and ``rows``."""

    names: tuple[str, ...]
    rows: tuple[WantedRows, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the rows take."""
        return sum(
            [one.keys.size * one.block.dim * DTYPES[one.block.spec.dtype].itemsize for one in self.rows]
        )


@dataclass(frozen=True, slots=True)
class Arrived:
    """A push that is all there: its ``gradients``, and what is ``asked`` for by one that also pulls."""

    request: Step
    gradients: Gradients
    asked: Asked


_NOTHING: Final = Asked(())


# --- before the payload


def check_parts(job: JobStore, known: KnownKeys, request: Step | Pull) -> None:
    """Refuse parts that are not what the request says or what the blocks here can take.

    Raises:
        UnknownTensor, BadTensor, UnknownKeys, BadRequest: naming the tensor.
    """
    pushed = () if type(request) is Pull else request.rows  # type: ignore[union-attr]
    if not pushed and not _wanted(request) and (type(request) is not Pull or not request.tensors):
        if request.tensors:  # by far the most frequent
            check_dense(job, request.tensors, set())
        return
    parts = list(request.tensors)
    dims = [_table(job, rows).dim for rows in (*pushed, *_wanted(request))]
    expected = [*parts_of_rows(pushed, dims[: len(pushed)]), *parts_of_wanted(_wanted(request))]
    _check_known(known, (*pushed, *_wanted(request)))
    dense = len(parts) - len(expected)
    if dense < 0 or parts[dense:] != expected:
        raise BadTensor(
            "the payload does not hold the keys and rows that the request tells of",
            field="tensors",
            value=parts[-4:],
        )
    if type(request) is Pull and dense:
        raise BadTensor("a pull carries keys alone", field="tensors", value=parts[:4])
    seen = {rows.name for rows in pushed}
    if len(seen) != len(pushed):
        raise BadTensor("a table is pushed once in a request", field="rows", value=sorted(seen))
    check_dense(job, parts[:dense], seen)


def check_dense(job: JobStore, parts: Sequence[Part], seen: set[str]) -> None:
    """Refuse gradients, or values, that are not of whole dense blocks here, or of one that was ``seen``."""
    for part in parts:
        block = job.block(part.name)
        if isinstance(block, SparseBlock):
            raise BadTensor(
                "it is a table: push rows of it", field=part.name, value=f"{part.elements} elements"
            )
        if DTYPES[part.dtype] != block.values.dtype or part.elements != block.values.size:
            raise BadTensor(
                f"the block here has {block.values.size} elements of {block.values.dtype}",
                field=part.name,
                value=f"{part.elements} of {part.dtype}",
            )
        if part.name in seen:
            raise BadTensor("a tensor is pushed once in a request", field="tensors", value=part.name)
        seen.add(part.name)


def _table(job: JobStore, rows: Rows) -> SparseBlock:
    block = job.block(rows.name)
    if not isinstance(block, SparseBlock):
        raise BadTensor("it is no table: push or pull all of it", field=rows.name, value=f"{rows.keys} keys")
    if rows.values not in (block.spec.dtype, *NARROWER[block.spec.dtype]):
        raise BadTensor(f"the table's rows are {block.spec.dtype}", field=rows.name, value=rows.values)
    return block


def _check_known(known: KnownKeys, all_rows: Sequence[Rows]) -> None:
    """Refuse lists that are named, and neither remembered nor in the payload before."""
    arriving: set[str] = set()
    for rows in all_rows:
        if rows.coding != "known":
            arriving.add(rows.digest)
        elif rows.digest not in arriving and not known.has(rows):
            known.get(rows)  # which says what is wrong


# --- with the payload


def arrived(job: JobStore, known: KnownKeys, request: Step, arrays: Sequence[Array]) -> Arrived:
    """Return what a push carries.

    Raises:
        BadRequest: keys that are none, or another shard's.
        UnknownTensor: a block has gone meanwhile.
    """
    dense = len(arrays)
    if not request.rows and not _wanted(request):  # by far the most frequent
        gradients = [
            (job.block(part.name), array) for part, array in zip(request.tensors, arrays, strict=True)
        ]
        return Arrived(request, gradients, Asked(request.names) if type(request) is PushPull else _NOTHING)
    dense -= _count(request.rows, 2) + _count(_wanted(request), 1)
    found: Gradients = [
        (job.block(part.name), array)
        for part, array in zip(request.tensors[:dense], arrays[:dense], strict=True)
    ]
    left = arrays[dense:]
    for rows in request.rows:
        block = _table(job, rows)
        keys, left = _keys(block, known, rows, left)
        values = _widened(block, rows, left[0])
        left = left[1:]
        found.append((block, RowsGradient(keys, values.reshape(rows.keys, block.dim))))
    asked = asked_in(job, known, request, left) if isinstance(request, PushPull) else _NOTHING
    return Arrived(request, found, asked)


def asked_in(job: JobStore, known: KnownKeys, request: PushPull | Pull, arrays: Sequence[Array]) -> Asked:
    """Return what a request asks for; ``arrays`` are the keys in its payload.

    Raises:
        BadRequest: keys that are none, or another shard's.
    """
    if not request.wanted:
        return Asked(request.names)
    found: list[WantedRows] = []
    for rows in request.wanted:
        block = _table(job, rows)
        keys, arrays = _keys(block, known, rows, arrays)
        found.append(WantedRows(block, keys, rows.values))
    return Asked(request.names, tuple(found))


def _widened(block: SparseBlock, rows: Rows, values: Array) -> Array:
    if rows.values == block.spec.dtype:
        return values
    wide = np.empty(values.size, DTYPES[block.spec.dtype])
    widen(values, rows.values, wide)
    return wide


def _wanted(request: Step | Pull) -> tuple[Rows, ...]:
    return () if type(request) is Push else request.wanted  # type: ignore[union-attr]


def _count(all_rows: Sequence[Rows], most: int) -> int:
    """Return how many arrays these rows have in a payload: ``most``, or one less where the keys are known."""
    return sum(most - (rows.coding == "known") for rows in all_rows)


def _keys(
    block: SparseBlock, known: KnownKeys, rows: Rows, arrays: Sequence[Array]
) -> tuple[Keys, Sequence[Array]]:
    if rows.coding == "known":
        keys = known.get(rows)
    else:
        keys = decode_keys(rows.coding, rows.keys, arrays[0])
        arrays = arrays[1:]
        known.put(rows.digest, keys)
    block.check_keys(keys)
    return keys, arrays
