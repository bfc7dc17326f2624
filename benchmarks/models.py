"""`python -m benchmarks models`: each built-in model on a cluster, beside scikit-learn's on the same rows."""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measured_page import with_figures
from benchmarks.models_cases import CASES, Case
from benchmarks.models_choice import read_choice, write_choice
from benchmarks.models_choosing import chosen
from benchmarks.models_data import load
from benchmarks.models_table import MAY_BE_WORSE, Outcome, markdown_table, text_table
from benchmarks.models_trial import SERVERS, WORKERS, ours, reference
from benchmarks.progress import Progress, progress_on
from psctl import LocalCluster, ProcessFailed

_DOCS = Path(__file__).parents[1] / "docs"


def main(arguments: list[str]) -> int:
    """Train all, print the table and, if asked, write it into docs/; return 1 if one is off."""
    options = _parse(arguments)
    cases = [case for case in CASES if options.only in (None, case.kind)]
    try:
        with progress_on(sys.stderr) as progress:
            if options.choose:
                choose(cases, progress)
                return 0
            outcomes = list(measure(cases, progress))
    except (ProcessFailed, TimeoutError, ValueError) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    print(text_table(outcomes))
    if options.docs:
        page = options.docs / "models.md"
        page.write_text(with_figures(page.read_text(encoding="utf-8"), figures(outcomes)), encoding="utf-8")
    off = [outcome for outcome in outcomes if outcome.is_off]
    for outcome in off:
        case = outcome.case
        print(
            f"models: {case.label} on {case.data} is worse than {case.reference_name} "
            f"by {outcome.worse:.1%}; {MAY_BE_WORSE:.0%} is allowed",
            file=sys.stderr,
        )
    return 1 if off else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks models", description=__doc__)
    parser.add_argument("--only", choices=sorted({case.kind for case in CASES}), help="this kind of model")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="choose the settings anew, on a part of the training rows, and write models_chosen.json",
    )
    parser.add_argument(
        "--docs", type=Path, nargs="?", const=_DOCS, metavar="DIRECTORY", help="write models.md there anew"
    )
    options = parser.parse_args(arguments)
    if options.docs and (options.only or options.choose):
        parser.error("--docs writes about all models as they are measured; leave out --only and --choose")
    return options


def choose(cases: Sequence[Case], progress: Progress) -> None:
    """Choose the settings of each case, and keep them."""
    for number, case in enumerate(cases, 1):
        progress(f"{number} of {len(cases)}: {case.label} on {case.data}")
        write_choice(case, chosen(case, load(case.data).validation()))


def measure(cases: Sequence[Case], progress: Progress) -> Iterator[Outcome]:
    """Train each on one cluster after the other, synchronously and asynchronously.

    Raises ProcessFailed, TimeoutError where a run does not get on, ValueError where no settings are chosen.
    """
    choices = [read_choice(case) for case in cases]
    with tempfile.TemporaryDirectory() as directory, LocalCluster(SERVERS) as cluster:
        for number, (case, choice) in enumerate(zip(cases, choices, strict=True), 1):
            progress(f"{number} of {len(cases)}: {case.label} on {case.data}")
            data = load(case.data)
            files = data.write(Path(directory))
            theirs = reference(case, choice, data, files[0])
            yield Outcome(case, choice, theirs, *ours(cluster, case, choice, data, files))


def figures(outcomes: Sequence[Outcome]) -> str:
    """Return all that is measured, as Markdown."""
    machine = f"one {os.cpu_count()}-core {platform.machine()} machine, Python {platform.python_version()}"
    return f"{markdown_table(outcomes)}\n\n{SERVERS} servers and {WORKERS} workers on {machine}."
