"""`python -m benchmarks online`: is a change of the concept found, is nothing else, and is it learnt?"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_int
from benchmarks.measured_page import with_figures
from benchmarks.online_detectors import Found, sensitivity, sensitivity_table
from benchmarks.online_streams import STREAMS, Stream, write
from benchmarks.progress import Progress, progress_on
from psctl import LocalCluster, ProcessFailed

LATEST = 2000
"""Examples over which the accuracy is taken: before the change, and at the end."""

ALLOWED = 0.02
"""By how much the accuracy may be worse in the end than it was before the change."""

DRIFTING, AFTER = 10_000, 10_000
"""Examples before and after the change, of each worker."""

_DOCS = Path(__file__).parents[1] / "docs"

_JOB = """
[job]
name = "online"
[model]
kind = "logistic"
[data]
columns = [{columns}]
target = "y"
[train]
batch-size = 32
workers = {workers}
[optimizer]
lr = 0.1
[stream]
source = "-"
window = {latest}
report-every = 250
drift = "{drift}"
on-drift = "{reaction}"
"""


@dataclass(frozen=True)
class Setting:
    """What is run."""

    stream: Stream
    drift: str
    reaction: str
    workers: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.stream.label}, {self.drift}, {self.reaction}, {self.workers} worker(s)"


@dataclass(frozen=True)
class Trial:
    """What one worker has seen. `curve`: examples, and the accuracy of the latest 2,000 by then."""

    alarms: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]


Results = list[tuple[Setting, list[list[Trial]]]]
"""Of each setting, for each seed: what each worker has seen."""


def settings() -> list[Setting]:
    """Return all that is measured, in order."""
    found = []
    for stream in STREAMS:
        for drift, reaction in (("adwin", "restart"), ("page-hinkley", "raise-rate")):
            found.append(Setting(stream, drift, reaction, 1))
    found.append(Setting(STREAMS[0], "adwin", "restart", 2))
    return found


def main(arguments: list[str]) -> int:
    """Measure, print the result and, if asked, write it into docs/; return 1 if a promise is broken."""
    options = _parse(arguments)
    for package, extra in (("river", "dev"), *([("matplotlib", "plots")] if options.docs else [])):
        try:
            __import__(package)
        except ImportError:
            print(f"online: {package} is missing; pip install 'asyncps[{extra}]'", file=sys.stderr)
            return 2
    try:
        with progress_on(sys.stderr) as progress:
            seeds = range(options.seed, options.seed + options.seeds)
            results = measure(seeds, progress)
            found = sensitivity(seeds, progress)
    except (ProcessFailed, TimeoutError, subprocess.SubprocessError) as error:
        print(f"online: {error}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps(as_json(results, found)))
    else:
        print(f"{table(results)}\n\n{sensitivity_table(found)}")
    if options.docs:
        write_docs(results, found, _DOCS)
    broken = [
        f"{setting.label}: {what}"
        for setting, runs in results
        for trials in runs
        for what in problems(trials)
    ]
    for one in broken:
        print(f"online: {one}", file=sys.stderr)
    return 1 if broken else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks online",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=positive_int, default=1, metavar="N", help="the first one, of streams")
    parser.add_argument("--seeds", type=positive_int, default=5, metavar="N", help="how many of them")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    parser.add_argument("--docs", action="store_true", help="write docs/online.md and .svg anew")
    return parser.parse_args(arguments)


def measure(seeds: Sequence[int], progress: Progress) -> Results:
    """Run every setting with every seed, each on a cluster of its own.

    Raises ProcessFailed, TimeoutError, SubprocessError where a process does not end as it should.
    """
    found: Results = []
    for setting in settings():
        runs = []
        for seed in seeds:
            progress(f"{setting.label}, seed {seed}")
            with tempfile.TemporaryDirectory() as directory:
                runs.append(run(setting, Path(directory), seed))
        found.append((setting, runs))
    return found


def run(setting: Setting, directory: Path, seed: int) -> list[Trial]:
    """Have workers learn from streams on their standard inputs; return what each has said."""
    features = 0
    for number in range(setting.workers):
        features = write(directory / f"{number}.csv", setting.stream, (DRIFTING, AFTER), seed + 100 * number)
    job = directory / "job.toml"
    columns = ", ".join(f'"x{number}"' for number in range(features))
    job.write_text(_JOB.format(columns=columns, latest=LATEST, **{**asdict(setting), "stream": None}))
    with LocalCluster(servers=1) as cluster:
        workers = [_worker(cluster.address, job, directory / str(n)) for n in range(setting.workers)]
        try:
            for number, worker in enumerate(workers):
                if worker.wait(600):
                    log = (directory / f"{number}.log").read_text()
                    raise subprocess.CalledProcessError(worker.returncode, "psworker", stderr=log)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    return [trial_of((directory / f"{number}.log").read_text()) for number in range(setting.workers)]


def _worker(address: str, job: Path, name: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "psworker", "--server", address, "--job", str(job)]
    with name.with_suffix(".csv").open("rb") as stream, name.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--metrics-port", "0", "--log-format", "json"], stdin=stream, stderr=log
        )


def trial_of(log: str) -> Trial:
    """Return what a worker's log tells."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    alarms = tuple(line["examples"] for line in lines if line.get("event") == "drift.detected")
    reports = [line for line in lines if line.get("event") == "stream.report"]
    curve = tuple((line["examples"], line["window"]["accuracy"]) for line in reports)
    return Trial(alarms, curve)


def problems(trials: Sequence[Trial]) -> list[str]:
    """Return which promises are broken, each as half a sentence."""
    false = [alarm for trial in trials for alarm in trial.alarms if alarm <= DRIFTING]
    found = [f"{len(false)} false alarms, at {false}"] if false else []
    if not any(alarm > DRIFTING for trial in trials for alarm in trial.alarms):
        found.append("nobody has found the change")
    found += [
        f"the accuracy was {before(trial):.1%} and is {at_end(trial):.1%}"
        for trial in trials
        if at_end(trial) < before(trial) - ALLOWED
    ]
    return found


def before(trial: Trial) -> float:
    """Return the accuracy before the change."""
    return max((one for one in trial.curve if one[0] <= DRIFTING), key=lambda one: one[0])[1]


def at_end(trial: Trial) -> float:
    """Return the accuracy at the end."""
    return trial.curve[-1][1]


def table(results: Results) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| stream | detector | reaction | workers | examples | runs | false alarms | found in | after "
        "| accuracy before | at the end |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setting, runs in results:
        trials = [trial for run in runs for trial in run]
        false = sum(alarm <= DRIFTING for trial in trials for alarm in trial.alarms)
        after = [
            [alarm - DRIFTING for trial in run for alarm in trial.alarms if alarm > DRIFTING] for run in runs
        ]
        delays = [min(alarms) for alarms in after if alarms]
        cells = [
            setting.stream.label + (" (real)" if setting.stream.real else ""),
            setting.drift,
            setting.reaction,
            str(setting.workers),
            f"{setting.workers * (DRIFTING + AFTER):,}",
            str(len(runs)),
            str(false),
            str(len(delays)),
            _spread(delays, "{:,.0f}") if delays else "-",
            _spread([before(trial) for trial in trials], "{:.1%}"),
            _spread([at_end(trial) for trial in trials], "{:.1%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median, and the least and largest."""
    median, least, most = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return median if least == most else f"{median} ({least} to {most})"


def as_json(results: Results, found: Sequence[Found]) -> dict[str, Any]:
    """Return every run's figures, to be written as JSON."""
    return {
        "benchmark": "online",
        "runs": [
            {
                "stream": setting.stream.name,
                "real": setting.stream.real,
                "drift": setting.drift,
                "reaction": setting.reaction,
                "workers": setting.workers,
                "change_at": DRIFTING,
                "trials": [[asdict(trial) for trial in trials] for trials in runs],
            }
            for setting, runs in results
        ],
        "detectors": [asdict(one) for one in found],
    }


def write_docs(results: Results, found: Sequence[Found], docs: Path) -> None:
    """Draw `online.svg` in the directory `docs` and put the tables into its `online.md`."""
    from benchmarks.online_plot import draw

    draw(results, docs / "online.svg")
    page = docs / "online.md"
    page.write_text(with_figures(page.read_text(encoding="utf-8"), figures(results, found)), encoding="utf-8")


def figures(results: Results, found: Sequence[Found]) -> str:
    """Return all that is measured, as Markdown."""
    machine = f"one {os.cpu_count()}-core {platform.machine()} machine, Python {platform.python_version()}"
    plot = "![Prequential accuracy before and after a change, and where it was found](online.svg)"
    seeds = f"Medians, and the least and largest where they differ; on {machine}."
    return "\n\n".join([plot, table(results), seeds, sensitivity_table(found)])
