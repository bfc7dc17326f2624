"""The rows of a table: records of equal width in one array that grows without being copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys
from psserver.store.reserved import reserve

__all__ = ["Records", "RowNumbers"]

Array = npt.NDArray[Any]
RowNumbers = npt.NDArray[np.uint32]


class Records:
    """Rows by number: what is in them, whose they are, and which numbers are free.

    Attributes:
        flat: all the numbers of the rows, one row after the other.
        keys: the key of each row.
        width: numbers in a row.
        used: rows ever in use: those from here on are zeros.
    """

    __slots__ = ("_free", "_free_rows", "_held", "_holders", "flat", "keys", "used", "width")

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self.flat: Array = reserve(dtype)
        self.keys: Keys = reserve(np.uint64)
        self.width = width
        self.used = 0
        self._free: list[RowNumbers] = []  # in portions, the last of which is used first
        self._free_rows = 0  # all that are free, those held back, too
        self._held: list[RowNumbers] = []
        self._holders = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that were ever in use."""
        return self.used * (self.width * self.flat.itemsize + self.keys.itemsize)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.used - self._free_rows

    @property
    def free(self) -> tuple[RowNumbers, ...]:
        """The rows that are not in use, in portions."""
        return (*self._free, *self._held)

    def hold(self) -> None:
        """From now on, leave the content of rows that are given back as it is, until ``release``."""
        self._holders += 1

    def release(self) -> None:
        """Undo one ``hold``."""
        self._holders -= 1
        if not self._holders:
            self._free += self._held
            self._held = []

    def take(self, rows: int) -> RowNumbers:
        """Return the numbers of ``rows`` rows that are in use from now on.

        Raises:
            MemoryError: there is no room for so many; nothing has changed.
        """
        most = min(self.flat.size // self.width, self.keys.size, 2**32 - 1)
        begin, end = self.used, self.used + max(0, rows - sum(map(len, self._free)))
        if end > most:
            raise MemoryError(f"a table has room for {most} rows in this process, and they are all in use")
        parts = []
        wanted = rows
        while wanted and self._free:
            part = self._free.pop()
            if part.size > wanted:
                self._free.append(part[wanted:])
                part = part[:wanted]
            parts.append(part)
            wanted -= part.size
        self._free_rows -= rows - wanted
        self.used = end
        parts.append(np.arange(begin, end, dtype=np.uint32))
        return np.concatenate(parts)

    def give_back(self, rows: RowNumbers) -> None:
        """Let rows be used again."""
        if rows.size:
            (self._held if self._holders else self._free).append(rows)
            self._free_rows += rows.size

    def return_unused(self, rows: RowNumbers) -> None:
        """Let the last ``rows`` of those that were just taken be taken again: nothing was written to them."""
        first = self.used
        while rows.size and rows[-1] == first - 1:
            first -= 1
            rows = rows[:-1]
        self.used = first
        if rows.size:
            self._free.append(rows)
            self._free_rows += rows.size

    def __getitem__(self, rows: Any) -> Array:
        """Return rows by number, or a slice of them."""
        table: Array = self.flat[: self.used * self.width].reshape(-1, self.width)[rows]
        return table
