"""Which rows are dropped: those that nobody has touched for long, and, if there are too many, the least used.

Rows are looked at in stretches, one at a time, so that no look takes long. The least used are those below a
quantile, which is taken of all rows while they are few, and of a sample of them else.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psserver.store.records import Records, RowNumbers
from psserver.store.reserved import reserve

__all__ = ["Expiry"]

_STRETCH: Final = 128 * 1024
"""Rows that are looked at in one go: about a millisecond."""

_LEFT: Final = 0.95
"""The part of the capacity that is left of a table above it: so it is not above it again at once."""

_PER_SECOND: Final = 16
_UNKNOWN: Final = 0
_NO_ROW: Final = 2**32 - 1
_NEVER: Final = np.uint64(2**64 - 1)


class Expiry:
    """When rows were last touched, and how often they were pushed.

    Args:
        records: the rows.
        after: seconds without a touch after which a row is dropped; 0: never.
        capacity: rows beyond which the least used are dropped; 0: none are.
    """

    def __init__(self, records: Records, after: float, capacity: int) -> None:
        self._records = records
        self._after = after * _PER_SECOND if after else math.inf
        self._capacity = capacity or math.inf
        self._touched: npt.NDArray[np.uint32] = reserve(np.uint32)
        self._pushes: npt.NDArray[np.uint32] = reserve(np.uint32)
        self._begun: float | None = None
        self._next = 0
        self._shrinking = False
        self._random = np.random.default_rng(0)

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use."""
        return self._records.used * 8

    def made(self, rows: RowNumbers) -> None:
        """Take note of new rows. How long they have been there counts from when they are next looked at."""
        self._touched[rows] = _UNKNOWN
        self._pushes[rows] = 0

    def pulled(self, rows: npt.NDArray[Any], now: float) -> None:
        """Take note that ``rows`` were read."""
        self._touched[rows] = self._ticks(now)

    def pushed(self, rows: RowNumbers, now: float) -> None:
        """Take note that ``rows``, each once, were updated."""
        self._touched[rows] = self._ticks(now)
        self._pushes[rows] += 1

    def dropped(self, rows: RowNumbers) -> None:
        """Take note that there are no such ``rows`` any more."""
        self._touched[rows] = _NO_ROW

    def choose(self, now: float, most: int) -> RowNumbers:
        """Return rows that are to be dropped now, at most ``most``; each call looks at some others."""
        used = self._records.used
        begin = self._next if self._next < used else 0
        end = min(begin + _STRETCH, used)
        ticks = self._ticks(now)
        touched = self._touched[begin:end]
        touched[touched == _UNKNOWN] = ticks
        chosen = (touched != _NO_ROW) & (touched.astype(np.int64) < ticks - self._after)
        surplus = self._surplus()
        if surplus:
            chosen |= self._least_used(begin, end, surplus)
        rows = np.flatnonzero(chosen)[:most]
        # If not all could be chosen, the others are looked at again.
        self._next = begin + int(rows[-1]) + 1 if rows.size == most else end
        return (rows + begin).astype(np.uint32)

    def _ticks(self, now: float) -> int:
        if self._begun is None:
            self._begun = now
        return min(max(int((now - self._begun) * _PER_SECOND) + 1, 1), _NO_ROW - 1)

    def _surplus(self) -> int:
        """Return how many rows there are too many."""
        rows = self._records.rows
        self._shrinking = rows > self._capacity * (_LEFT if self._shrinking else 1.0)
        return math.ceil(rows - self._capacity * _LEFT) if self._shrinking else 0

    def _least_used(self, begin: int, end: int, surplus: int) -> npt.NDArray[np.bool_]:
        """Return which of some rows are among the ``surplus`` least used of all."""
        used = self._records.used
        few = used <= _STRETCH
        sample = self._use(slice(0, used) if few else self._random.integers(0, used, _STRETCH))
        sample = sample[sample != _NEVER]
        if not sample.size:  # a few rows where there were many: the next sample is another
            return np.zeros(end - begin, np.bool_)
        part = math.ceil(sample.size * surplus / self._records.rows)
        limit = np.partition(sample, part - 1)[part - 1]
        use = self._use(slice(begin, end))
        chosen: npt.NDArray[np.bool_] = (use <= limit) & (use != _NEVER)
        places = np.flatnonzero(chosen)
        if places.size > surplus:  # several with the same use
            chosen[places[np.argpartition(use[places], surplus)[surplus:]]] = False
        return chosen

    def _use(self, rows: Any) -> npt.NDArray[np.uint64]:
        """Return numbers that are the larger the more, and then the later, rows were used."""
        touched = self._touched[rows]
        use: npt.NDArray[np.uint64] = (self._pushes[rows].astype(np.uint64) << np.uint64(32)) | touched
        use[touched == _NO_ROW] = _NEVER
        return use
