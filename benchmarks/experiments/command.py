"""`python -m benchmarks experiments`: what the textbooks say of stochastic gradients, tried on a cluster."""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_int
from benchmarks.columns import align
from benchmarks.experiments import batch_rate, crew, one_example, partitions, rules, together
from benchmarks.experiments.digits import write_digits
from benchmarks.experiments.experiment import Experiment, Table
from benchmarks.experiments.trials import Results, Setting, Trial, run
from benchmarks.measured_page import with_figures
from benchmarks.progress import Progress, progress_on
from psctl import ProcessFailed

EXPERIMENTS: Mapping[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (batch_rate, rules, one_example, together, partitions, crew)
}

DOCS = Path(__file__).parents[2] / "docs" / "experiments"


def main(arguments: list[str]) -> int:
    """Run what is named, print its table and, if asked, write it into docs/; return the exit status."""
    options = _parse(arguments)
    if options.docs:
        try:
            import matplotlib as _  # noqa: F401 - better missed now than after some minutes
        except ImportError:
            print("experiments: --docs draws; pip install 'asyncps[plots]'", file=sys.stderr)
            return 2
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a worker is one thread: they are what is compared
    for name in options.names or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        try:
            with progress_on(sys.stderr) as progress:
                results = measure(experiment, options.seeds or experiment.seeds, progress)
        except (ProcessFailed, TimeoutError) as error:
            print(f"experiments: {name}: {error}", file=sys.stderr)
            return 1
        if options.format == "json":
            print(json.dumps(as_json(experiment, results)), flush=True)
        else:
            print(f"{experiment.question}\n{align(experiment.table(results))}\n", flush=True)
        if options.docs:
            write_docs(experiment, results, DOCS)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks experiments",
        description=f"{__doc__} Without a name, all of them: {', '.join(EXPERIMENTS)}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default: all")
    parser.add_argument(
        "--seeds",
        type=positive_int,
        metavar="N",
        help="trainings of each setting (default: 3, or 1 of a grid)",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    parser.add_argument(
        "--docs", action="store_true", help="write tables and pictures into docs/experiments/"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in EXPERIMENTS:
            parser.error(f'no experiment "{name}"; there are {", ".join(EXPERIMENTS)}')
    return options


def measure(experiment: Experiment, seeds: int, progress: Progress) -> Results:
    """Train with each setting, in turns, with `seeds` seeds.

    Raises ProcessFailed, TimeoutError where a training does not get on.
    """
    results: dict[Setting, list[Trial]] = {setting: [] for setting in experiment.settings}
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "digits.csv")
        write_digits(data, experiment.order)
        for seed in range(seeds):
            for setting in experiment.settings:
                progress(f"{experiment.name}, seed {seed + 1} of {seeds}: {setting.label}")
                results[setting].append(run(setting, data, seed))
    return results


def as_json(experiment: Experiment, results: Results) -> dict[str, Any]:
    """Return every training's figures, to be written as JSON."""
    return {
        "experiment": experiment.name,
        "settings": [
            {"setting": setting.label, "overrides": setting.overrides, "trials": [asdict(t) for t in trials]}
            for setting, trials in results.items()
        ],
    }


def write_docs(experiment: Experiment, results: Results, docs: Path) -> None:
    """Draw the picture of an experiment in `docs`, and put its table into its page there."""
    from benchmarks.experiments.picture import save

    save(experiment, results, docs / f"{experiment.name}.svg")
    page = docs / f"{experiment.name}.md"
    measured = measured_part(experiment, results)
    page.write_text(with_figures(page.read_text(encoding="utf-8"), measured), encoding="utf-8")


def measured_part(experiment: Experiment, results: Results) -> str:
    """Return all that is measured, as Markdown."""
    trained = max(len(trials) for trials in results.values())
    machine = f"one {os.cpu_count()}-core {platform.machine()} machine, Python {platform.python_version()}"
    several = f"Means of {trained} trainings, and the least and the most of them" if trained > 1 else "Once"
    return "\n\n".join(
        [
            f"![{experiment.alt}]({experiment.name}.svg)",
            _markdown(experiment.table(results)),
            f"{several}, on {machine}.",
        ]
    )


def _markdown(table: Table) -> str:
    lines = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
