"""`python -m benchmarks sparse`: push, pull and push_pull of a table's rows, systems side by side."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.arguments import positive_float, positive_int
from benchmarks.isolated import SystemFailed
from benchmarks.progress import progress_on
from benchmarks.sparse_rounds import Settings, run
from benchmarks.sparse_systems.interface import TableSize
from benchmarks.sparse_systems.registry import CEILING, Entry, entries
from benchmarks.sparse_table import as_json, render_text


def main(arguments: list[str]) -> int:
    """Measure, print the result on standard output, and return the exit status.

    0: all done; 1: a system failed, and is named with the reason; 2: bad arguments.
    """
    options = _parse(arguments)
    size = TableSize(options.rows, options.dim, options.keys)
    settings = Settings(size, options.batch, options.rounds, options.seconds)
    try:
        with progress_on(sys.stderr) as progress:
            report = run(_chosen(options), settings, progress)
    except SystemFailed as error:
        print(f"{CEILING.name}: failed, {error}; no figure can be judged", file=sys.stderr)
        return 1
    print(json.dumps(as_json(report)) if options.format == "json" else render_text(report))
    return 1 if any(reason.startswith("failed") for reason in report.missing.values()) else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sparse",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    number: dict[str, Any] = {"type": positive_int, "metavar": "N"}
    parser.add_argument("--rows", **number, default=1_000_000, help="of the table")
    parser.add_argument("--dim", **number, default=16, help="float32 in a row")
    parser.add_argument("--batch", **number, default=65_536, help="keys in a request")
    parser.add_argument(
        "--keys", choices=("uniform", "zipf"), default="uniform", help="which rows are asked for"
    )
    parser.add_argument(
        "--shards", type=_numbers, default="1,2", metavar="LIST", help="this project's servers"
    )
    parser.add_argument("--rounds", **number, default=5, help="over all systems")
    parser.add_argument(
        "--seconds", type=positive_float, default=0.7, metavar="S", help="for each figure in each round"
    )
    parser.add_argument(
        "--systems", metavar="LIST", help="which to measure, by their names in --format json; None: all"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    options = parser.parse_args(arguments)
    known = {entry.name for entry in entries(options.shards)}
    if options.systems and (unknown := set(options.systems.split(",")) - known):
        parser.error(
            f"--systems {', '.join(sorted(unknown))}: unknown; give some of {', '.join(sorted(known))}"
        )
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive_int(number) for number in text.split(",")))


def _chosen(options: argparse.Namespace) -> tuple[Entry, ...]:
    every = entries(options.shards)
    if options.systems is None:
        return every
    names = {*options.systems.split(","), CEILING.name}
    return tuple(entry for entry in every if entry.name in names)
