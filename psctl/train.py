"""``psctl train``: a local cluster, from the first example to the result."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import configargparse

from protocol.daemon.access_flags import credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.errors import ClusterError
from protocol.json_text import json_text
from protocol.status import ClusterStatus
from psctl.checkpoint import Taken, take_checkpoint
from psctl.child import ProcessFailed
from psctl.cluster import LocalCluster
from psctl.cluster_flags import cluster_flags, cluster_from
from psctl.display import job_status
from psctl.figures import count
from psctl.page import check_place
from psctl.recording import Recording
from psctl.report import NAME as REPORT
from psctl.report import write_report
from psctl.result import Result, result_of, result_table
from psctl.screen import Say, Screen, console_for, screen
from psctl.step_time import fetch_split
from psworker.asking import fetch_status
from psworker.errors import JobError
from psworker.job import Job, load_job
from psworker.parts import check

__all__ = ["flags", "run", "train"]

Fetch = Callable[[str, int], Coroutine[Any, Any, ClusterStatus]]
Save = Callable[[str, int], Coroutine[Any, Any, Taken]]

_LOOK_EVERY: Final = 0.2  # seconds
_WRONG: Final = (ExitCode.USAGE, ExitCode.CHECKPOINT_UNUSABLE, ExitCode.DATA_UNREADABLE, ExitCode.DIVERGED)


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl train``."""
    cluster_flags(parser, workers=2, least_workers=1)
    parser.add_argument(
        "--format",
        choices=["text", "json"],
        default="text",
        help="form of the result on standard output; json: one object, as the last line",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help=f"write {REPORT} there at the end: curves and settings, to be read in a browser",
    )


def run(options: argparse.Namespace) -> int:
    """Train, show it, and print the result.

    Raises:
        JobError, DataError: the job, its model or its data cannot be used.
        BadRequest: flags that are right one by one contradict each other.
        ProcessFailed: a process of the cluster ended in the middle of it.
        CheckpointFailed: the last checkpoint was not taken.
    """
    job = load_job(options.job, (*options.set, f"train.workers={options.workers}"))
    check(job)
    if options.report is not None:
        check_place(options.report)
    if job.train.on_divergence == "lower-rate" and options.checkpoint_dir is None:
        raise JobError(
            '[train] on-divergence = "lower-rate" goes back to a checkpoint; give --checkpoint-dir, and '
            "--checkpoint-every, which says how far at most"
        )
    cluster = cluster_from(options)
    credentials = credentials_from(options)
    recording = None if options.report is None else Recording()
    with screen(job, options.format) as shown, _says_how_to_go_on(cluster):
        fetch = partial(fetch_status, credentials=credentials)
        save = partial(take_checkpoint, credentials=credentials)
        result = train(cluster, job, shown, fetch, save, recording)
    report = None if recording is None else write_report(options.report, recording, job, result)
    if options.format == "json":
        print(json_text(result), flush=True)
    else:
        console_for("stdout").print(result_table(result))
    if report is not None:
        print(f"report: {report}", file=sys.stderr if options.format == "json" else sys.stdout, flush=True)
    return ExitCode.DONE


@contextmanager
def _says_how_to_go_on(cluster: LocalCluster) -> Iterator[None]:
    """When the training is interrupted, say how it can go on, if it can."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, ProcessFailed, ClusterError) as error:
        remedy = _remedy(error) if cluster.checkpoint_dir is not None else ""
        if remedy:
            print(f"psctl train: {remedy.format(cluster.checkpoint_dir)}", file=sys.stderr)
        raise


def _remedy(error: BaseException) -> str:
    """Return what can be done with what there is in ``{}``; "" if the error says it."""
    match error:
        case ProcessFailed(returncode=ExitCode.JOB_MISMATCH):
            return "{} is of a job with other settings: go on with those, or give another --checkpoint-dir"
        case ProcessFailed() if error.returncode in _WRONG:
            return ""
        case _:
            return "the same command goes on from what is in {}"


def train(
    cluster: LocalCluster,
    job: Job,
    shown: Screen,
    fetch: Fetch,
    save: Save,
    recording: Recording | None = None,
) -> Result:
    """Run ``cluster`` until its job is finished and return what came of it.

    Args:
        cluster: not started yet; it is stopped at the end.
        job: what its workers train.
        shown: is shown None before the start, and then each status.
        fetch: returns the status of the cluster whose coordinator is at host and port.
        save: has that cluster take a checkpoint.
        recording: is told what is seen on the way; None: nobody wants to know.

    Raises:
        ProcessFailed: a process of the cluster ended in the middle of it.
        CheckpointFailed: the cluster has a place for checkpoints, and the last one was not taken.
        PSError: the cluster cannot say what came of it.
    """
    shown.show(None)
    with cluster, asyncio.Runner() as runner:
        host, port = address(cluster.address)
        if cluster.checkpoint_dir is not None:
            _say_where_it_begins(cluster.checkpoint_dir, runner.run(fetch(host, port)), job, shown.say)
        while not _finished(cluster):
            try:
                status = runner.run(fetch(host, port))
                shown.show(status)
                if recording is not None:
                    _record(recording, status, job, cluster)
            except ClusterError:  # a server that is gone; the next look at the processes says why
                continue
        status = runner.run(fetch(host, port))
        last = None if cluster.checkpoint_dir is None else runner.run(save(host, port)).directory
    shown.show(status)
    found = job_status(status, job.name)
    if recording is not None and found is not None:
        recording.note(found)
    return replace(result_of(status, job), checkpoint=last)


def _record(recording: Recording, status: ClusterStatus, job: Job, cluster: LocalCluster) -> None:
    found = job_status(status, job.name)
    if found is None:
        return
    recording.note(found)
    for worker, place in cluster.worker_metrics().items():
        split = fetch_split(place)
        if split is not None:
            recording.note_split(worker, split)


def _say_where_it_begins(place: str, status: ClusterStatus, job: Job, say: Say) -> None:
    """Say if the job goes on from what an earlier run has done: its workers have hardly been started."""
    found = job_status(status, job.name)
    progress = None if found is None else found.progress
    if progress is None:
        return
    if progress.phase == "finished":
        say(
            f"{job.name} is finished already in {place}: nothing is left to train. "
            "To train it anew, give another --checkpoint-dir"
        )
    elif progress.chunks_done:
        done = f"{count(progress.chunks_done)}/{count(progress.chunks)} chunks done"
        say(f"going on from {place}: epoch {progress.epoch}/{progress.epochs}, {done}")


def _finished(cluster: LocalCluster) -> bool:
    """Return whether all workers are done, after some time if they are not."""
    try:
        cluster.wait(timeout=_LOOK_EVERY)
    except TimeoutError:
        return False
    return True
