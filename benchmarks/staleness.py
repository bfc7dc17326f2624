"""`python -m benchmarks staleness`: what waiting for slow workers costs, and what not waiting costs."""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_int
from benchmarks.measured_page import with_figures
from benchmarks.progress import Progress, progress_on
from benchmarks.staleness_table import TARGET_LOSS, Results, markdown_table, text_table
from benchmarks.trial import SLOWDOWN, Setting, Stragglers, run_trial, write_digits
from psctl import ProcessFailed

SETTINGS = (
    Setting("BSP", 0),
    Setting("SSP, k = 1", 1),
    Setting("SSP, k = 3", 3),
    Setting("SSP, k = 10", 10),
    Setting("ASP", math.inf),
    Setting("BSP, 1 backup", 0, backup=1),
)

ALWAYS = Stragglers(
    "always", f"One worker of four is always {SLOWDOWN:g} times as slow", (1.0, 0.0, 0.0, 0.0), 4.5
)
SOMETIMES = Stragglers(
    "sometimes", f"Each worker is {SLOWDOWN:g} times as slow in one mini-batch of ten", (0.1,) * 4, 3.0
)

_DOCS = Path(__file__).parents[1] / "docs"


def main(arguments: list[str]) -> int:
    """Measure, print the result and, if asked, write it into docs/; return the exit status."""
    options = _parse(arguments)
    if options.docs:
        try:
            import matplotlib as _  # noqa: F401 - better missed now than after four minutes
        except ImportError:
            print("staleness: --docs draws; pip install 'asyncps[plots]'", file=sys.stderr)
            return 2
    try:
        with progress_on(sys.stderr) as progress:
            results = measure(options.repeat, progress)
    except (ProcessFailed, TimeoutError) as error:
        print(f"staleness: {error}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps(as_json(results)))
    else:
        print("\n\n".join(f"{key.label}\n{text_table(key, found)}" for key, found in results.items()))
    if options.docs:
        write_docs(results, _DOCS)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks staleness",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repeat", type=positive_int, default=3, metavar="N", help="rounds")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    parser.add_argument("--docs", action="store_true", help="write docs/staleness.md and .svg anew")
    return parser.parse_args(arguments)


def measure(repeat: int, progress: Progress) -> Mapping[Stragglers, Results]:
    """Train with each setting under each kind of stragglers, in turns, `repeat` times.

    Raises ProcessFailed, TimeoutError where a run does not get on.
    """
    results: dict[Stragglers, Results] = {
        stragglers: {setting: [] for setting in SETTINGS} for stragglers in (ALWAYS, SOMETIMES)
    }
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "digits.csv")
        write_digits(data)
        for seed in range(repeat):
            for stragglers, found in results.items():
                for setting in SETTINGS:
                    progress(f"round {seed + 1} of {repeat}: slow {stragglers.name}, {setting.label}")
                    found[setting].append(run_trial(setting, stragglers, data, seed))
    return results


def as_json(results: Mapping[Stragglers, Results]) -> dict[str, Any]:
    """Return every run's figures, to be written as JSON; infinity as None."""
    return {
        "benchmark": "staleness",
        "target_loss": TARGET_LOSS,
        "series": [
            {
                "stragglers": stragglers.name,
                "setting": setting.label,
                "runs": [_finite(asdict(trial)) for trial in trials],
            }
            for stragglers, found in results.items()
            for setting, trials in found.items()
        ],
    }


def _finite(value: Any) -> Any:
    """Return `value` with None where JSON has no number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if value == math.inf else value


def write_docs(results: Mapping[Stragglers, Results], docs: Path) -> None:
    """Draw `staleness.svg` in the directory `docs` and put the tables into its `staleness.md`."""
    from benchmarks.staleness_plot import draw

    draw(results, docs / "staleness.svg")
    page = docs / "staleness.md"
    page.write_text(with_figures(page.read_text(encoding="utf-8"), figures(results)), encoding="utf-8")


def figures(results: Mapping[Stragglers, Results]) -> str:
    """Return all that is measured, as Markdown."""
    tables = [f"**{key.label}**\n\n{markdown_table(key, found)}" for key, found in results.items()]
    repeat = max(len(trials) for found in results.values() for trials in found.values())
    machine = f"one {os.cpu_count()}-core {platform.machine()} machine, Python {platform.python_version()}"
    plot = "![The held-out loss over time, and what the workers' time went into](staleness.svg)"
    return "\n\n".join([plot, *tables, f"Medians of {repeat} runs on {machine}."])
