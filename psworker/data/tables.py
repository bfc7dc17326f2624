"""Several tables as one: the chunks of each follow those of the former."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from psworker.data.rows import Fault, Position, Rows, Table, Wanted

__all__ = ["joined"]


@dataclass(frozen=True, slots=True)
class _Tables:
    """`starts[i]` is the first chunk of table i; the last one is how many chunks there are."""

    tables: tuple[Table, ...]
    starts: tuple[int, ...]

    @property
    def chunks(self) -> int:
        """See `Table.chunks`."""
        return self.starts[-1]

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[Rows, list[Fault]]:
        """See `Table.read`."""
        table, own = self._of(chunk)
        return table.read(own, wanted, part)

    def position(self, chunk: int, index: int) -> Position:
        """See `Table.position`."""
        table, own = self._of(chunk)
        return table.position(own, index)

    def _of(self, chunk: int) -> tuple[Table, int]:
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of {len(self.tables)} files, which have {self.chunks}")
        number = bisect.bisect_right(self.starts, chunk) - 1
        return self.tables[number], chunk - self.starts[number]


def joined(tables: Sequence[Table]) -> Table:
    """One table of the chunks of all of them, in their order."""
    if len(tables) == 1:
        return tables[0]
    starts = itertools.accumulate((table.chunks for table in tables), initial=0)
    return _Tables(tuple(tables), tuple(starts))
