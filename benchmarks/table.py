"""The report of the dense benchmark as a table for people or as JSON."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.columns import align
from benchmarks.rounds import Point, Report, Row, points_of
from benchmarks.sizes import format_size
from benchmarks.summary import Summary, speed_ratios, summarize
from benchmarks.systems.registry import CEILING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

# From here on a transfer is judged by its rate, below by its time.
RATE_FROM_BYTES = 100_000

LEGEND = (
    "Each figure: median; least - most over the rounds; speed relative to raw TCP in the same "
    "round (median).",
    "push_pull moves the tensor both ways, and its GB/s count both.",
)

SMALL_SIZES_PINNED = (
    "µs: client and server keep to a core each; on one core together, as the scheduler sometimes puts them, "
    "nobody has to be woken, and all are several times faster."
)
ECHO = "uvloop-echo"


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell: seconds per operation, and speed relative to the ceiling (1.0 = as fast)."""

    seconds: Summary
    ratio: float


def figure_at(row: Row, point: Point, ceiling: Row) -> Figure | None:
    """Return the figure of `row` at `point`, or None where it has not been measured there."""
    if point not in row.seconds:
        return None
    ratios = speed_ratios(row.seconds[point], ceiling.seconds[point])
    return Figure(summarize(row.seconds[point]), summarize(ratios).median)


def unit_of(nbytes: int) -> str:
    """Return the unit in which figures for tensors of `nbytes` bytes are shown."""
    return "GB/s" if nbytes >= RATE_FROM_BYTES else "µs"


def cell_lines(figure: Figure | None, point: Point) -> tuple[str, str, str]:
    """Return median, spread and ratio as text, in the unit of the point's size."""
    if figure is None:
        return "-", "", ""
    seconds = figure.seconds
    if unit_of(point.nbytes) == "µs":
        shown = [f"{1e6 * taken:.1f}" for taken in (seconds.median, seconds.least, seconds.most)]
    else:
        moved = point.nbytes * (2 if point.operation == "push_pull" else 1)
        shown = [f"{moved / taken / 1e9:.2f}" for taken in (seconds.median, seconds.most, seconds.least)]
    return shown[0], f"{shown[1]} - {shown[2]}", f"{figure.ratio:.0%}"


def notes(report: Report) -> Iterator[str]:
    """Yield the lines below the table: how to read it, and which systems are missing from it."""
    yield from LEGEND
    settings = report.settings
    if any(unit_of(nbytes) == "µs" for nbytes in settings.sizes):
        yield SMALL_SIZES_PINNED
        yield from _times_the_echo(report)
    yield f"{settings.repeat} rounds of {settings.seconds:g} s a figure, one request outstanding."
    for name, reason in report.skipped.items():
        yield f"{name}: {reason}"
    for name, reason in report.failed.items():
        yield f"{name}: failed, {reason}"


def _times_the_echo(report: Report) -> Iterator[str]:
    """Yield how many round trips of a uvloop echo each small request takes, by system."""
    echo = next((row for row in report.rows if row.name == ECHO), None)
    if echo is None:
        return
    for row in report.rows:
        if row.name in (ECHO, CEILING.name):
            continue
        for point in points_of(report.settings.sizes):
            round_trip = Point(point.nbytes, "push_pull")
            if round_trip in echo.seconds and point in row.seconds:
                times = [1 / ratio for ratio in speed_ratios(row.seconds[point], echo.seconds[round_trip])]
                yield (
                    f"{row.label}, {format_size(point.nbytes)} {point.operation}: "
                    f"{summarize(times).median:.2f} x the uvloop echo"
                )


def render_text(report: Report) -> str:
    """Return the table in plain aligned text, with the notes below it."""
    points = points_of(report.settings.sizes)
    lines = [
        ["", *(f"{format_size(point.nbytes)} {unit_of(point.nbytes)}" for point in points)],
        ["system", *(point.operation for point in points)],
    ]
    for row in report.rows:
        cells = _cells(row, report, points)
        for number, label in enumerate((row.label, "", "")):
            lines.append([label, *(cell[number] for cell in cells)])
    return "\n".join([align(lines), "", *notes(report)])


def print_rich(report: Report, console: "Console") -> None:
    """Print the table in colour; one for each size where the terminal is too narrow for all."""
    whole = _rich_table(report, points_of(report.settings.sizes))
    if console.measure(whole, options=_unlimited(console)).maximum <= console.width:
        console.print(whole)
    else:
        for nbytes in report.settings.sizes:
            console.print(_rich_table(report, points_of([nbytes])))
    for note in notes(report):
        console.print(note, style="dim", highlight=False, markup=False)


def _unlimited(console: "Console") -> "ConsoleOptions":
    # What a table measures is otherwise never more than the terminal.
    return console.options.update(max_width=10_000)


def _rich_table(report: Report, points: Sequence[Point]) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("system", no_wrap=True)
    for point in points:
        unit = unit_of(point.nbytes)
        heading = f"{format_size(point.nbytes)} {unit}\n{point.operation}"
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        cells = (
            f"[bold]{median}[/]\n[dim]{spread}[/]\n[cyan]{ratio}[/]"
            for median, spread, ratio in _cells(row, report, points)
        )
        table.add_row(row.label, *cells)
    return table


def _cells(row: Row, report: Report, points: Sequence[Point]) -> list[tuple[str, str, str]]:
    ceiling = _ceiling_of(report)
    return [cell_lines(figure_at(row, point, ceiling), point) for point in points]


def as_json(report: Report) -> dict[str, Any]:
    """Return every round's figures, to be written as JSON; times in seconds, sizes in bytes."""
    ceiling = _ceiling_of(report)
    points = points_of(report.settings.sizes)
    settings = report.settings
    return {
        "benchmark": "dense",
        "sizes": settings.sizes,
        "repeat": settings.repeat,
        "seconds_per_figure": settings.seconds,
        "machine": _machine(),
        "ceiling": ceiling.name,
        "systems": [_row_json(row, points, ceiling) for row in report.rows],
        "skipped": dict(report.skipped),
        "failed": dict(report.failed),
    }


def _row_json(row: Row, points: Sequence[Point], ceiling: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "label": row.label,
        "points": [
            {
                "bytes": point.nbytes,
                "operation": point.operation,
                "seconds_per_operation": row.seconds[point],
                "ratios_to_ceiling": speed_ratios(row.seconds[point], ceiling.seconds[point]),
                **_summary_json(figure),
            }
            for point in points
            if (figure := figure_at(row, point, ceiling)) is not None
        ],
    }


def _summary_json(figure: Figure) -> dict[str, float]:
    return {
        "median": figure.seconds.median,
        "least": figure.seconds.least,
        "most": figure.seconds.most,
        "ratio_to_ceiling": figure.ratio,
    }


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _ceiling_of(report: Report) -> Row:
    return next(row for row in report.rows if row.name == CEILING.name)
