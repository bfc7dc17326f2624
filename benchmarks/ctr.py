"""`python -m benchmarks ctr`: click-through rates learned from a stream, learners side by side."""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_float, positive_int
from benchmarks.ctr_learners.registry import ENTRIES, Entry
from benchmarks.ctr_table import as_json, markdown_table, notes, text_table
from benchmarks.ctr_trial import Report, run, write_stream
from benchmarks.measured_page import with_figures
from benchmarks.progress import progress_on

PAGE = "ctr.md"


def main(arguments: list[str]) -> int:
    """Measure, print the result and, if asked, write it into a directory; return the exit status."""
    options = _parse(arguments)
    if options.docs:
        try:
            import matplotlib as _  # noqa: F401 - better missed now than after some minutes
        except ImportError:
            print("ctr: --docs draws; pip install 'asyncps[plots]'", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as directory, progress_on(sys.stderr) as progress:
        progress(f"making {options.examples:,} examples")
        stream = write_stream(
            Path(directory), options.seed, options.examples, options.held_out, options.segment
        )
        report = run(options.learners, stream, options.rounds, progress)
    if options.format == "json":
        print(json.dumps(as_json(report, options.target)))
    else:
        print("\n".join([text_table(report, options.target), "", *notes(report)]))
    if options.docs:
        write_docs(report, options.target, options.docs)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ctr",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    number: dict[str, Any] = {"type": positive_int, "metavar": "N"}
    parser.add_argument("--examples", **number, default=400_000, help="to learn from")
    parser.add_argument("--held-out", **number, default=6, help="chunks of 8192 examples to be judged by")
    parser.add_argument("--segment", **number, default=4, help="chunks of 8192 examples between two looks")
    parser.add_argument("--rounds", **number, default=2, help="over all learners")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the stream")
    parser.add_argument(
        "--target", type=positive_float, default=0.515, metavar="LOSS", help="log-loss to reach"
    )
    parser.add_argument(
        "--learners",
        type=_learners,
        default=",".join(entry.name for entry in ENTRIES),
        metavar="LIST",
        help="whom to measure",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    parser.add_argument("--docs", type=Path, metavar="DIR", help=f"write DIR/{PAGE} and its picture anew")
    return parser.parse_args(arguments)


def _learners(text: str) -> tuple[Entry, ...]:
    names = {name.strip() for name in text.split(",")}
    known = {entry.name for entry in ENTRIES}
    if unknown := names - known:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: unknown; give some of {', '.join(sorted(known))}"
        )
    return tuple(entry for entry in ENTRIES if entry.name in names)


def write_docs(report: Report, target: float, docs: Path) -> None:
    """Draw `ctr.svg` in the directory `docs` and put the table into its `ctr.md`."""
    from benchmarks.ctr_plot import draw

    draw(report, docs / "ctr.svg")
    page = docs / PAGE
    page.write_text(with_figures(page.read_text(encoding="utf-8"), figures(report, target)), encoding="utf-8")


def figures(report: Report, target: float) -> str:
    """Return all that is measured, as Markdown."""
    plot = "![The held-out log-loss over seconds and over examples](ctr.svg)"
    machine = f"One {os.cpu_count()}-core {platform.machine()} machine, Python {platform.python_version()}."
    return "\n\n".join([plot, markdown_table(report, target), " ".join([*notes(report), machine])])
