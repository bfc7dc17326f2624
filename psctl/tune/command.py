"""The command: its flags, what is checked before anything starts, and what is printed at the end."""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import configargparse

from protocol.daemon.exit_codes import ExitCode
from protocol.errors import BadRequest
from protocol.json_text import json_text
from protocol.measures import MORE_IS_BETTER
from psctl.cluster import sigterm_raises
from psctl.cluster_flags import at_least, process_flags, workers_of
from psctl.figures import plural
from psctl.page import check_place
from psctl.screen import console_for
from psctl.tune.display import display, trial_table
from psctl.tune.engines import Engine, Grid, Random
from psctl.tune.halving import EPOCHS, Halving
from psctl.tune.report import NAME, write_report
from psctl.tune.search import Trial, best_first, search
from psctl.tune.space import Space, ends, overrides, space_of
from psctl.tune.tpe import TPE
from psctl.tune.training import Trainer
from psworker.job import Job, job_to_toml, load_job
from psworker.parts import check

__all__ = ["Found", "flags", "run"]

_TRIALS = 20
_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found, as ``--format json`` prints it; ``best`` is None where all diverged.

    ``trials`` are in the order of their value, the best first; ``command`` trains with the best.
    """

    job: str
    search: str
    measure: str
    more_is_better: bool
    trials: tuple[Trial, ...]
    best: Trial | None
    command: str | None


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl tune``."""
    process_flags(parser, workers=f"[train] workers of the job, or {_WORKERS}", least_workers=1)
    parser.add_argument(
        "--try",
        action="append",
        required=True,
        dest="tries",
        metavar="SECTION.KEY=VALUES",
        help="values of a setting: a list (16,64,256), or a range (0.1..1) with :log, :int or a number of "
        "points (0.01..1:log:5); may be repeated",
    )
    parser.add_argument(
        "--search",
        choices=["grid", "random", "halving", "optuna"],
        default="random",
        help="all combinations of lists; at random; at random with few epochs, the best third of them with "
        "three times as many, and so on; or by what was learnt from earlier trials",
    )
    parser.add_argument(
        "--trials",
        type=at_least(1),
        metavar="N",
        help=f"settings that are tried (default: {_TRIALS}); of halving, those of the first round",
    )
    parser.add_argument(
        "--folds",
        type=_folds,
        default=0,
        metavar="K",
        help="cross-validation: train each trial K times, another of K parts of the rows held out each time "
        "(default: once, with [eval] holdout)",
    )
    parser.add_argument(
        "--parallel", type=at_least(1), default=1, metavar="N", help="trials, and clusters, at a time"
    )
    parser.add_argument(
        "--measure",
        default="loss",
        metavar="NAME",
        help="of the held-out data after the last epoch, by which trials are compared: loss (default), "
        "accuracy or another that the model has",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of what the search draws (default: 0)"
    )
    parser.add_argument(
        "--format",
        choices=["text", "json"],
        default="text",
        help="form of the result on standard output; json: one object, as the last line",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help=f"write {NAME} there at the end")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the job with the best settings there",
    )


def run(options: argparse.Namespace) -> int:
    """Search, show it, and print what was found; also if it ends early, of the trials that are over.

    The exit code is DIVERGED where all trials did: there is no best.

    Raises:
        JobError, DataError: the job, a value that is tried, or the data cannot be used.
        BadRequest: flags cannot be used.
        ProcessFailed: a process of a cluster ended, and not because the training diverged.
    """
    space = space_of(options.tries)
    options.workers = workers_of(options, _WORKERS)
    job = _checked(options, space)
    engine = _engine(options, space, job)
    if options.report is not None:
        check_place(options.report)
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise BadRequest("there is no such directory", field="--output", value=str(options.output))
    trainer = Trainer(
        options.job, options.set, options.servers, options.workers, options.folds, options.measure
    )
    trials: list[Trial] = []
    try:
        with (
            sigterm_raises(),
            display(options.format, options.measure, engine.total, trainer.running) as shown,
        ):

            def seen(trial: Trial) -> None:
                trials.append(trial)
                shown.seen(trial)

            search(
                engine,
                trainer.run,
                measure=options.measure,
                parallel=options.parallel,
                seen=seen,
                look=shown.look,
            )
    finally:
        if trials:
            _tell(options, job, trials)
    return ExitCode.DONE if any(trial.value is not None for trial in trials) else ExitCode.DIVERGED


def _folds(text: str) -> int:
    return at_least(2)(text)


def _checked(options: argparse.Namespace, space: Space) -> Job:
    """Return the job with the first value of each setting, after a look at all that can be known now."""
    _check_names(options, space)
    first = tuple((name, ends(dimension)[0]) for name, dimension in space.items())
    given = (*options.set, *((f"eval.fold=1/{options.folds}",) if options.folds else ()))
    for name, dimension in space.items():
        for value in ends(dimension):
            load_job(options.job, (*given, *overrides(first), *overrides(((name, value),))))
    job = load_job(options.job, (*given, *overrides(first), f"train.workers={options.workers}"))
    if not job.eval.every or not job.eval.held_out:
        raise BadRequest(
            "nothing is held out, by which trials could be compared; set [eval] every, and holdout, or give "
            "--folds",
            field="[eval]",
            value="never" if not job.eval.every else "holdout = 0",
        )
    check(job)
    return job


def _check_names(options: argparse.Namespace, space: Space) -> None:
    refused = {"train.workers": "give --workers", "job.name": "a name changes nothing"}
    if options.search == "halving":
        refused[EPOCHS] = "halving decides on the epochs; set the most of them with --set"
    for name in space:
        why = "trials would be compared on different rows" if name.startswith("eval.") else refused.get(name)
        if why is not None:
            raise BadRequest(f"it cannot be tried: {why}", field="--try", value=name)


def _engine(options: argparse.Namespace, space: Space, job: Job) -> Engine:
    trials = options.trials or _TRIALS
    match options.search:
        case "grid":
            if options.trials is not None:
                raise BadRequest(
                    "a grid tries all combinations; leave it away, or take --search random",
                    field="--trials",
                    value=options.trials,
                )
            return Grid(space)
        case "halving":
            return Halving(space, trials, job.train.epochs, random.Random(options.seed))  # noqa: S311
        case "optuna":
            return TPE(space, trials, options.seed)
        case _:
            return Random(space, trials, random.Random(options.seed))  # noqa: S311 - no secret


def _tell(options: argparse.Namespace, job: Job, trials: Sequence[Trial]) -> None:
    """Print what was found, and write the files that were asked for."""
    ordered = best_first(list(trials), options.measure)
    best = ordered[0] if ordered[0].value is not None else None
    command = None if best is None else _command(options, best)
    files = []
    if options.output is not None and best is not None:
        found = load_job(options.job, (*_overrides(options, best), f"train.workers={options.workers}"))
        options.output.write_text(job_to_toml(found), encoding="utf-8")
        files.append(f"best job: {options.output}")
    if options.report is not None:
        title = f"{job.name} · {job.model.kind}: search by {options.measure}"
        files.append(f"report: {write_report(options.report, title, _how(options), trials, options.measure)}")
    if options.format == "json":
        more = options.measure in MORE_IS_BETTER
        result = Found(job.name, options.search, options.measure, more, tuple(ordered), best, command)
        print(json_text(result), flush=True)
    else:
        console_for("stdout").print(trial_table(trials, options.measure))
        print(command or "all trials diverged; try lower learning rates", flush=True)
    for line in files:
        print(line, file=sys.stderr if options.format == "json" else sys.stdout, flush=True)


def _how(options: argparse.Namespace) -> str:
    folds = f", {options.folds} folds" if options.folds else ""
    cluster = f"{plural(options.servers, 'server')}, {plural(options.workers, 'worker')}"
    return f"{options.search}{folds}, {cluster}, {'; '.join(options.tries)}"


def _overrides(options: argparse.Namespace, trial: Trial) -> tuple[str, ...]:
    """Return what makes the best job of the job file: what all trials were given, but for what was tried."""
    given = (one for one in options.set if one.partition("=")[0].strip() not in trial.settings)
    return (*given, *overrides(tuple(trial.settings.items())))


def _command(options: argparse.Namespace, best: Trial) -> str:
    """Return the command that trains with the settings of the best trial."""
    job = () if options.job is None else ("--job", str(options.job))
    size = ("--servers", str(options.servers), "--workers", str(options.workers))
    sets = (word for one in _overrides(options, best) for word in ("--set", one))
    return shlex.join(("psctl", "train", *job, *size, *sets))
