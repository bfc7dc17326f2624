"""Repetitions taken in turns: A B C A B C, never A A B B, because the machine's speed drifts."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

from benchmarks.isolated import SystemFailed, isolated
from benchmarks.progress import Progress
from benchmarks.sizes import format_size
from benchmarks.systems.interface import OPERATIONS, Operation
from benchmarks.systems.registry import CEILING, Entry

INSTALL_PEERS = "pip install 'asyncps[peers]'"


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured: an operation on a float32 tensor of `nbytes` bytes."""

    nbytes: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class Settings:
    """How often and how long each point is measured, and on which sizes in bytes."""

    sizes: tuple[int, ...]
    repeat: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """The seconds per operation of one system, a list with one figure a round for each point."""

    name: str
    label: str
    seconds: Mapping[Point, list[float]]


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured; `skipped` and `failed` give the reason by the system's name."""

    settings: Settings
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    failed: Mapping[str, str]


def points_of(sizes: Iterable[int]) -> tuple[Point, ...]:
    """Return the points of `sizes`, in the order of the columns."""
    return tuple(Point(nbytes, operation) for nbytes in sizes for operation in OPERATIONS)


def run(entries: Iterable[Entry], settings: Settings, progress: Progress) -> Report:
    """Measure each system at each of its points once a round.

    No other system runs meanwhile: an idle one may still poll (torch's does, all the time), which
    takes a core from the one that is measured. One that is not installed, or fails at any time,
    has no row.

    Raises SystemFailed where the ceiling fails, without which no figure means anything.
    """
    present, absent = _by_presence(entries)
    points = points_of(settings.sizes)
    figures = {entry.name: _empty_series(entry, points) for entry in present}
    failed: dict[str, str] = {}
    for number, entry in product(range(1, settings.repeat + 1), present):
        if entry.name in failed:
            continue
        turn = f"round {number} of {settings.repeat}: {entry.label}"
        progress(f"{turn}, starting")
        with _noting_failure(entry, failed), isolated(entry.build) as measure:
            for point, series in figures[entry.name].items():
                progress(f"{turn}, {describe(point)}")
                series.append(measure(point.operation, point.nbytes, settings.seconds))
    rows = tuple(
        Row(entry.name, entry.label, figures[entry.name]) for entry in present if entry.name not in failed
    )
    skipped = {entry.name: "not installed, skipped (" + INSTALL_PEERS + ")" for entry in absent}
    return Report(settings, rows, skipped, failed)


def describe(point: Point) -> str:
    """Return the point as people say it, e.g. `100 MB push`."""
    return f"{format_size(point.nbytes)} {point.operation}"


def _by_presence(entries: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    present: list[Entry] = []
    absent: list[Entry] = []
    for entry in entries:
        (present if entry.is_installed() else absent).append(entry)
    return present, absent


def _empty_series(entry: Entry, points: Iterable[Point]) -> dict[Point, list[float]]:
    return {point: [] for point in points if entry.measures(point.operation, point.nbytes)}


@contextmanager
def _noting_failure(entry: Entry, failed: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except SystemFailed as error:
        if entry.name == CEILING.name:
            raise
        failed[entry.name] = str(error)
