"""Repetitions of the sparse benchmark, taken in turns: A B C A B C, because the machine's speed drifts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product

from benchmarks.isolated import SystemFailed, isolated
from benchmarks.progress import Progress
from benchmarks.sparse_systems.interface import TableSize, Taken
from benchmarks.sparse_systems.registry import CEILING, Entry
from benchmarks.systems.interface import OPERATIONS, Operation


@dataclass(frozen=True, slots=True)
class Settings:
    """The table, the rows in a batch, how often each figure is taken, and for how long."""

    size: TableSize
    batch: int
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """What the operations of one system took, a list with one figure a round for each."""

    entry: Entry
    taken: Mapping[Operation, list[Taken]]

    def seconds(self, operation: Operation) -> list[float]:
        """Return the seconds of wall time of one operation, one figure a round."""
        return [one.seconds for one in self.taken[operation]]


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured; `missing` gives the reason of each system that was not, by its name."""

    settings: Settings
    rows: tuple[Row, ...]
    missing: Mapping[str, str]


def run(entries: Iterable[Entry], settings: Settings, progress: Progress) -> Report:
    """Measure each operation of each system once a round, no other system running meanwhile.

    One that is not installed, or fails at any time, has no row.

    Raises SystemFailed where the ceiling fails, without which no figure means anything.
    """
    missing = {entry.name: reason for entry in entries if (reason := entry.absent())}
    rows = [Row(entry, {operation: [] for operation in OPERATIONS}) for entry in entries]
    nbytes = settings.batch * settings.size.row_bytes
    for number, row in product(range(1, settings.rounds + 1), rows):
        if row.entry.name in missing:
            continue
        progress(f"round {number} of {settings.rounds}: {row.entry.label}")
        try:
            with isolated(partial(row.entry.build, settings.size)) as measure:
                for operation, series in row.taken.items():
                    series.append(measure(operation, nbytes, settings.seconds))
        except SystemFailed as error:
            if row.entry.name == CEILING.name:
                raise
            missing[row.entry.name] = f"failed, {error}"
    return Report(settings, tuple(row for row in rows if row.entry.name not in missing), missing)
