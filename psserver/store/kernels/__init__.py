"""The loops over keys and rows, in two implementations that work on the same memory.

``numpy_kernels`` is always there; ``numba_kernels`` is compiled, and several times as fast.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys
from psserver.optimizers import Hyper, Penalty
from psserver.store.index import Index
from psserver.store.initial import Initial
from psserver.store.records import Records, RowNumbers

__all__ = ["Groups", "Kernels"]

Array = npt.NDArray[Any]
Longs = npt.NDArray[np.int64]


class Groups:
    """The keys of a batch by row: repeats of a key are one group. Groups are in the order of first mention.

    Attributes:
        which: the group of each key; -1: it has no row.
        rows: the row of each group.
        firsts: where in the batch its key is first.
        distinct: how many groups there are.
        absent: how many keys, repeats included, have no row.
        missing: where in the batch these are, in order.
    """

    __slots__ = ("absent", "distinct", "firsts", "missing", "rows", "which")

    def __init__(self, keys: int) -> None:
        self.which: npt.NDArray[np.int32] = np.empty(keys, np.int32)
        self.rows: RowNumbers = np.empty(keys + 1, np.uint32)  # kernels read one past the last group
        self.firsts: Longs = np.empty(keys, np.int64)
        self.missing: Longs = np.empty(keys, np.int64)
        self.distinct = 0
        self.absent = 0

    def part(self, begin: int, end: int) -> Groups:
        """Return some of the groups; which keys they have is not told."""
        part = Groups(0)
        part.rows, part.firsts, part.distinct = self.rows[begin:end], self.firsts[begin:end], end - begin
        return part


class Kernels(Protocol):
    """What both implementations do, for tables with one rule. ``rows`` are row numbers."""

    name: str
    removals: int
    """Keys that ``remove`` takes out in about a millisecond."""

    def effort(self, width: int) -> float:
        """Return about how many nanoseconds an update takes for a row of ``width`` numbers."""

    def find(self, index: Index, keys: Keys, rows: Longs) -> None:
        """Put the row of each key into ``rows``, or -1. Nothing else is changed."""

    def group(self, index: Index, keys: Keys, groups: Groups) -> None:
        """Fill ``groups``."""

    def enter(self, index: Index, keys: Keys, missing: Longs, groups: Groups, fresh: RowNumbers) -> None:
        """Give rows, those of ``fresh`` in turn, to those keys at ``missing`` that have none yet.

        Each new row is a new group, after the others.

        Raises:
            MemoryError: the index is full. Groups tell which keys have got rows.
        """

    def remove(self, index: Index, keys: Keys) -> None:
        """Take distinct ``keys``, which are there, out of the index."""

    def initial(self, keys: Keys, dim: int, initial: Initial, out: Array) -> None:
        """Fill ``out``, (n, dim), with what the rows of ``keys`` begin with."""

    def gather(
        self, index: Index, records: Records, keys: Keys, rows: Longs, initial: Initial, out: Array
    ) -> None:
        """Fill ``rows`` as ``find`` does, and ``out``, (n, dim), with their values; initial ones for none."""

    def fold(self, gradient: Array, groups: Groups) -> None:
        """Add the gradient, (n, dim), of each repeated key to that of its first mention."""

    def update(
        self,
        records: Records,
        groups: Groups,
        gradient: Array,
        backup: Array | None,
        h: Hyper,
        penalty: Penalty,
        out: Array,
    ) -> bool:
        """Fill ``out``, (distinct, width), with what becomes of the rows of ``groups``.

        ``gradient`` may be spoilt. Return whether it, and all of ``out``, are finite.
        """

    def put(self, records: Records, rows: RowNumbers, fresh: Array) -> None:
        """Make ``fresh``, (n, width), the content of ``rows``, in order."""

    def save(
        self,
        records: Records,
        rows: RowNumbers,
        first: int,
        end: int,
        saved: RowNumbers,
        old: Array,
        old_rows: int,
    ) -> int:
        """Append those ``rows`` that are from ``first`` to ``end`` to ``old``, if they are not there yet.

        ``saved`` has for each row its place in ``old`` plus 1, or 0. Return how many rows are in ``old`` now.
        """
