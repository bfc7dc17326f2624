"""`python -m benchmarks dense`: push, pull and push_pull of dense tensors, systems side by side."""

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.arguments import positive_float, positive_int, sizes
from benchmarks.isolated import SystemFailed
from benchmarks.progress import progress_on
from benchmarks.pushes_per_second import as_json as small_pushes_as_json
from benchmarks.pushes_per_second import measure
from benchmarks.pushes_per_second import render_text as render_small_pushes
from benchmarks.rounds import Report, Settings, run
from benchmarks.small_pushes import LoadFailed
from benchmarks.systems.registry import CEILING, ENTRIES, Entry
from benchmarks.table import as_json, print_rich, render_text

CONNECTIONS = (16, 500)

_REPEAT, _SECONDS = 5, 0.4
_QUICK_REPEAT, _QUICK_SECONDS = 3, 0.05


def main(arguments: list[str]) -> int:
    """Measure, print the result on standard output, and return the exit status.

    0: all done; 1: a system failed, and is named with the reason; 2: bad arguments.
    """
    options = _parse(arguments)
    settings = Settings(options.sizes, options.repeat, options.seconds)
    try:
        with progress_on(sys.stderr) as progress:
            report = run(options.systems, settings, progress)
            small = measure(CONNECTIONS, options.repeat, options.seconds, progress)
    except SystemFailed as error:
        print(f"{CEILING.name}: failed, {error}; no figure can be judged", file=sys.stderr)
        return 1
    except LoadFailed as error:
        print(f"small pushes: {error}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps({**as_json(report), "small_pushes": small_pushes_as_json(small)}))
    else:
        _print(report)
        print("\n" + render_small_pushes(small))
    return 1 if report.failed else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks dense", description=__doc__)
    parser.add_argument(
        "--sizes",
        type=sizes,
        default="100MB,1MB,1KB",
        metavar="LIST",
        help="sizes of the tensor, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat",
        type=positive_int,
        metavar="N",
        help=f"rounds over all systems (default: {_REPEAT})",
    )
    parser.add_argument(
        "--seconds",
        type=positive_float,
        metavar="S",
        help=f"seconds for each figure in each round (default: {_SECONDS})",
    )
    parser.add_argument(
        "--systems",
        type=_systems,
        default=",".join(entry.name for entry in ENTRIES),
        metavar="LIST",
        help="which to measure, separated by commas; the ceiling always is (default: %(default)s)",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a rough look: --repeat {_QUICK_REPEAT} --seconds {_QUICK_SECONDS}, if not given",
    )
    options = parser.parse_args(arguments)
    if options.repeat is None:
        options.repeat = _QUICK_REPEAT if options.quick else _REPEAT
    if options.seconds is None:
        options.seconds = _QUICK_SECONDS if options.quick else _SECONDS
    return options


def _systems(text: str) -> tuple[Entry, ...]:
    names = {name.strip() for name in text.split(",")}
    known = {entry.name for entry in ENTRIES}
    if unknown := names - known:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: unknown; give some of {', '.join(sorted(known))}"
        )
    return tuple(entry for entry in ENTRIES if entry.name in names | {CEILING.name})


def _print(report: Report) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        print_rich(report, Console())
    else:
        print(render_text(report))
