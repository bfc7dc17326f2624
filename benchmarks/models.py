"""`python -m benchmarks models`: each built-in model on a cluster, beside scikit-learn's on the same rows."""

import argparse
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measured_page import with_figures
from benchmarks.models_cases import CASES, Case
from benchmarks.models_data import Data, load
from benchmarks.models_table import MAY_BE_WORSE, Outcome, markdown_table, text_table
from benchmarks.models_trial import SERVERS, WORKERS, first_centres, trained
from benchmarks.progress import Progress, progress_on
from psctl import LocalCluster, ProcessFailed

_DOCS = Path(__file__).parents[1] / "docs"


def main(arguments: list[str]) -> int:
    """Train all, print the table and, if asked, write it into docs/; return 1 if one is off."""
    options = _parse(arguments)
    cases = [case for case in CASES if options.only in (None, case.kind)]
    try:
        with progress_on(sys.stderr) as progress:
            outcomes = list(measure(cases, progress))
    except (ProcessFailed, TimeoutError) as error:
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
        "--docs", type=Path, nargs="?", const=_DOCS, metavar="DIRECTORY", help="write models.md there anew"
    )
    options = parser.parse_args(arguments)
    if options.docs and options.only:
        parser.error("--docs writes about all models; leave out --only")
    return options


def measure(cases: Sequence[Case], progress: Progress) -> Iterator[Outcome]:
    """Train each on one cluster after the other, synchronously and asynchronously.

    Raises ProcessFailed, TimeoutError where a run does not get on.
    """
    with tempfile.TemporaryDirectory() as directory, LocalCluster(SERVERS) as cluster:
        for number, case in enumerate(cases, 1):
            data = load(case.data)
            files = data.write(Path(directory))
            ours = []
            for staleness in (0.0, math.inf):
                progress(f"{number} of {len(cases)}: {case.label} on {case.data}, staleness {staleness:g}")
                predicted = trained(cluster, case, data, files, staleness)
                ours.append(case.measure.of(data.y_test, predicted))
            yield Outcome(case, _reference(case, data, files[0]), *ours)


def _reference(case: Case, data: Data, train: Path) -> float:
    if case.kind != "kmeans":
        return case.measure.of(data.y_test, case.reference(data))
    from sklearn.cluster import KMeans

    centres = first_centres(case, data, train)
    theirs = KMeans(len(centres), init=centres, n_init=1).fit(data.x)
    return case.measure.of(data.y_test, np.square(theirs.transform(data.x_test).min(axis=1)))


def figures(outcomes: Sequence[Outcome]) -> str:
    """Return all that is measured, as Markdown."""
    machine = f"one {os.cpu_count()}-core {platform.machine()} machine, Python {platform.python_version()}"
    return f"{markdown_table(outcomes)}\n\n{SERVERS} servers and {WORKERS} workers on {machine}."
