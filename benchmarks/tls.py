"""`python -m benchmarks tls`: what TLS costs: push, pull and push_pull with it and without."""

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.arguments import positive_float, positive_int, sizes
from benchmarks.isolated import SystemFailed
from benchmarks.progress import progress_on
from benchmarks.rounds import Settings, run
from benchmarks.systems.asyncps import OneShard, OneShardWithTLS
from benchmarks.systems.registry import CEILING, Entry
from benchmarks.table import as_json, render_text

ENTRIES = (
    CEILING,
    Entry("asyncps", "asyncps, plain TCP", OneShard),
    Entry("asyncps-tls", "asyncps, mutual TLS 1.3", OneShardWithTLS),
)


def main(arguments: list[str]) -> int:
    """Measure, print the result on standard output, and return the exit status."""
    options = _parse(arguments)
    settings = Settings(options.sizes, options.repeat, options.seconds)
    try:
        with progress_on(sys.stderr) as progress:
            report = run(ENTRIES, settings, progress)
    except SystemFailed as error:
        print(f"{CEILING.name}: failed, {error}; no figure can be judged", file=sys.stderr)
        return 1
    print(json.dumps(as_json(report)) if options.format == "json" else render_text(report))
    return 1 if report.failed else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks tls", description=__doc__)
    parser.add_argument(
        "--sizes",
        type=sizes,
        default="100MB,1MB,1KB",
        metavar="LIST",
        help="sizes of the tensor, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--repeat", type=positive_int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=positive_float,
        default=0.4,
        metavar="S",
        help="seconds for each figure in each round (default: %(default)s)",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")
    return parser.parse_args(arguments)
