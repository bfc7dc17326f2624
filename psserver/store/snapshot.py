"""A table as it was at one moment, read piece by piece while it goes on being updated.

Nothing is copied at that moment. From then on, before a row is overwritten for the first time, its old record
is saved, until the reader has passed it. Rows that are made later are not looked at, and those that are
dropped keep their place, and so their record, until the snapshot is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import CheckpointFailed
from protocol.tables import Keys
from psserver.store.kernels import Kernels
from psserver.store.records import Records, RowNumbers
from psserver.store.reserved import reserve

__all__ = ["TableSnapshot"]

Array = npt.NDArray[Any]

_PIECE: Final = 8 * 1024 * 1024
_COPIED: Final = 1024 * 1024
"""Bytes that are copied while the guard is held: well below a millisecond."""


class TableSnapshot:
    """The rows of a table at one moment.

    Attributes:
        rows: how many there were.
        width: numbers in a record.
        dtype: of the records.
        is_abandoned: nobody reads it any more; the table closes it when it comes by.
    """

    def __init__(
        self, records: Records, guard: threading.Lock, forget: Callable[[TableSnapshot], None]
    ) -> None:
        self.rows = records.rows
        self.width = records.width
        self.dtype = records.flat.dtype
        self.is_abandoned = False
        self._records = records
        self._guard = guard
        self._forget = forget
        self._end = records.used
        self._passed = 0
        self._free = records.free
        self._saved: RowNumbers = reserve(np.uint32)  # of each row: 0, or its place in ``_old``, from 1 on
        self._old = reserve(records.flat.dtype)
        self._old_rows = 0
        self._failed = False
        self._closed = False
        records.hold()

    def save(self, kernels: Kernels, rows: RowNumbers) -> None:
        """Keep the records of ``rows``, which are about to be overwritten. The guard is held.

        Where there is no room, it is the snapshot that fails, and not the update.
        """
        width = self._records.width
        self._failed |= (self._old_rows + rows.size) * width > self._old.size
        if not self._failed:
            self._old_rows = kernels.save(
                self._records, rows, self._passed, self._end, self._saved, self._old, self._old_rows
            )

    def pieces(self) -> Iterator[tuple[Keys, Array]]:
        """Yield keys and records, (n, width), of all rows, each once, at most 8 MiB at a time. It works once.

        Raises:
            CheckpointFailed: there was no room for all the old records.
        """
        for begin, end, there in self._spans():
            keys, records = self._copy(begin, end)
            if there.all():
                yield keys, records
            elif there.any():
                yield keys[there], records[there]

    def keys(self) -> Iterator[Keys]:
        """Yield the keys of ``pieces``, in the same order, as often as they are asked for."""
        for begin, end, there in self._spans():
            if there.any():  # a row keeps its key as long as there is a snapshot with it
                yield self._records.keys[begin:end][there]

    def _spans(self) -> Iterator[tuple[int, int, npt.NDArray[np.bool_]]]:
        free = np.zeros(self._end, np.bool_)
        for rows in self._free:
            free[rows] = True
        length = max(1, _PIECE // (self.width * self._old.itemsize))
        for begin in range(0, self._end, length):
            end = min(begin + length, self._end)
            yield begin, end, ~free[begin:end]

    def _copy(self, begin: int, end: int) -> tuple[Keys, Array]:
        width = self._records.width
        records = np.empty((end - begin, width), self._old.dtype)
        step = max(1, _COPIED // (width * self._old.itemsize))
        for low in range(begin, end, step):
            high = min(low + step, end)
            with self._guard:
                if self._failed:
                    raise CheckpointFailed("there is no room for the rows that changed while it was written")
                records[low - begin : high - begin] = self._records[low:high]
                self._passed = high
        saved = self._saved[begin:end]
        changed = np.flatnonzero(saved)
        records[changed] = self._old[: self._old_rows * width].reshape(-1, width)[
            saved[changed] - np.uint32(1)
        ]
        return self._records.keys[begin:end].copy(), records

    def close(self) -> None:
        """Let go of what was kept; the table no longer keeps anything for this snapshot."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._records.release()
                self._forget(self)
