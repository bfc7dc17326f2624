"""`python -m benchmarks optimizers`: pushes to each of the server's optimizers, beside sgd."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.arguments import positive_float, positive_int, sizes
from benchmarks.columns import align
from benchmarks.progress import progress_on
from benchmarks.rounds import Point, Report, Row, Settings, describe, run
from benchmarks.summary import speed_ratios, summarize
from benchmarks.systems.asyncps import Asyncps
from benchmarks.systems.interface import Operation
from benchmarks.systems.registry import Entry
from benchmarks.table import cell_lines, figure_at, unit_of
from protocol.optimizers import DCSGD, OPTIMIZERS, SGD

MEASURED: tuple[Operation, ...] = ("push", "push_pull")

# The gradients are large, and the same again and again: a usual lambda would overshoot more with each.
_SETTINGS = {name: cls() for name, cls in OPTIMIZERS.items()} | {DCSGD.name: DCSGD(lam=1e-12)}
ENTRIES = tuple(
    Entry(name, name, partial(Asyncps, 1, optimizer), operations=MEASURED)
    for name, optimizer in _SETTINGS.items()
)

LEGEND = (
    "Each figure: median; least - most over the rounds; speed relative to sgd in the same round (median)."
)


def main(arguments: list[str]) -> int:
    """Measure, print the result on standard output, and return the exit status.

    0: all done; 1: an optimizer failed, and is named with the reason; 2: bad arguments.
    """
    options = _parse(arguments)
    settings = Settings(options.sizes, options.repeat, options.seconds)
    with progress_on(sys.stderr) as progress:
        report = run(options.optimizers, settings, progress)
    if SGD.name in report.failed:
        print(f"sgd: failed, {report.failed[SGD.name]}; no figure can be judged", file=sys.stderr)
        return 1
    print(json.dumps(as_json(report)) if options.format == "json" else render_text(report))
    return 1 if report.failed else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks optimizers",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", type=sizes, default="100MB,1MB", metavar="LIST", help="of the tensor")
    parser.add_argument("--repeat", type=positive_int, default=5, metavar="N", help="rounds over all of them")
    parser.add_argument("--seconds", type=positive_float, default=0.4, metavar="S", help="of each figure")
    parser.add_argument(
        "--optimizers",
        type=_entries,
        default=",".join(OPTIMIZERS),
        metavar="LIST",
        help="which to measure, separated by commas; sgd always is",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def _entries(text: str) -> tuple[Entry, ...]:
    names = {name.strip() for name in text.split(",")}
    if unknown := names - OPTIMIZERS.keys():
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: unknown; give some of {', '.join(OPTIMIZERS)}"
        )
    return tuple(entry for entry in ENTRIES if entry.name in names | {SGD.name})


def render_text(report: Report) -> str:
    """Return the table in plain aligned text, with the notes below it."""
    points, sgd = _points(report), _sgd(report)
    lines = [["optimizer", *(f"{describe(point)}, {unit_of(point.nbytes)}" for point in points)]]
    for row in report.rows:
        cells = [cell_lines(figure_at(row, point, sgd), point) for point in points]
        for number, label in enumerate((row.label, "", "")):
            lines.append([label, *(cell[number] for cell in cells)])
    settings = report.settings
    rounds = f"{settings.repeat} rounds of {settings.seconds:g} s a figure, one request outstanding."
    failed = [f"{name}: failed, {reason}" for name, reason in report.failed.items()]
    return "\n".join([align(lines), "", LEGEND, rounds, *failed])


def as_json(report: Report) -> dict[str, Any]:
    """Return every round's figures, to be written as JSON; times in seconds, sizes in bytes."""
    sgd = _sgd(report)
    return {
        "benchmark": "optimizers",
        "repeat": report.settings.repeat,
        "seconds_per_figure": report.settings.seconds,
        "optimizers": [
            {"name": row.name, "points": [_point_json(row, point, sgd) for point in _points(report)]}
            for row in report.rows
        ],
        "failed": dict(report.failed),
    }


def _point_json(row: Row, point: Point, sgd: Row) -> dict[str, Any]:
    ratios = speed_ratios(row.seconds[point], sgd.seconds[point])
    return {
        "bytes": point.nbytes,
        "operation": point.operation,
        "seconds_per_operation": row.seconds[point],
        "ratios_to_sgd": ratios,
        "ratio_to_sgd": summarize(ratios).median,
    }


def _points(report: Report) -> list[Point]:
    return [Point(nbytes, operation) for nbytes in report.settings.sizes for operation in MEASURED]


def _sgd(report: Report) -> Row:
    return next(row for row in report.rows if row.name == SGD.name)
