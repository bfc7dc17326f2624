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
from tempfile import TemporaryDirectory
from typing import Any, Final

import configargparse

from protocol.daemon.access_flags import credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.errors import BadRequest, ClusterError
from protocol.json_text import json_text
from protocol.status import ClusterStatus
from psctl.checkpoint import Taken, take_checkpoint
from psctl.child import ProcessFailed
from psctl.cluster import LocalCluster, sigterm_raises
from psctl.cluster_flags import cluster_flags, cluster_from, workers_of
from psctl.display import job_status
from psctl.figures import count
from psctl.overview import returned
from psctl.page import check_place
from psctl.recording import Recording
from psctl.report import NAME as REPORT
from psctl.report import write_report
from psctl.result import Result, result_of, result_table
from psctl.screen import Say, Screen, console_for, screen
from psctl.step_time import fetch_split
from psctl.workers import GONE
from psworker.asking import fetch_status
from psworker.job import Job, load_job
from psworker.parts import check, unscaled_columns

__all__ = ["flags", "run", "train"]

Fetch = Callable[[str, int], Coroutine[Any, Any, ClusterStatus]]
Save = Callable[[str, int], Coroutine[Any, Any, Taken]]

_WORKERS: Final = 2
_LOOK_EVERY: Final = 0.2  # seconds
_WRONG: Final = (ExitCode.USAGE, ExitCode.CHECKPOINT_UNUSABLE, ExitCode.DATA_UNREADABLE, ExitCode.DIVERGED)


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl train``."""
    cluster_flags(parser, workers=f"[train] workers of the job, or {_WORKERS}", least_workers=1)
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
    workers = workers_of(options, _WORKERS)
    job = load_job(options.job, (*options.set, f"train.workers={workers}"))
    check(job)
    if options.report is not None:
        check_place(options.report)
    credentials = credentials_from(options)
    recording = None if options.report is None else Recording()
    fetch = partial(fetch_status, credentials=credentials)
    save = None if options.checkpoint_dir is None else partial(take_checkpoint, credentials=credentials)
    with _checkpoints_somewhere(options, job) as placed:
        cluster = cluster_from(placed, workers)
        goes_on_from = None if save is None else cluster.checkpoint_dir
        with screen(job, options.format) as shown, _says_how_to_go_on(goes_on_from):
            result = train(cluster, job, shown, fetch, save, recording, partial(unscaled_columns, job))
    report = None if recording is None else write_report(options.report, recording, job, result)
    if options.format == "json":
        print(json_text(result), flush=True)
    else:
        console_for("stdout").print(result_table(result))
    if report is not None:
        print(f"report: {report}", file=sys.stderr if options.format == "json" else sys.stdout, flush=True)
    for warning in result.warnings:
        print(f"psctl train: warning: {warning}", file=sys.stderr, flush=True)
    return ExitCode.DONE


@contextmanager
def _checkpoints_somewhere(options: argparse.Namespace, job: Job) -> Iterator[argparse.Namespace]:
    """Yield the flags with a directory for checkpoints, for as long as this lasts, if the job needs one."""
    if job.train.on_divergence == "stop" or options.checkpoint_dir is not None:
        yield options
        return
    if options.durability is not None:
        raise BadRequest(
            '[train] on-divergence = "lower-rate" goes back to checkpoints: give --checkpoint-dir, too, or '
            "leave this away, and they are kept until the job is finished",
            field="--durability",
            value=options.durability,
        )
    with sigterm_raises(), TemporaryDirectory(prefix="asyncps-") as place:
        yield argparse.Namespace(**vars(options) | {"checkpoint_dir": place})


@contextmanager
def _says_how_to_go_on(place: str | None) -> Iterator[None]:
    """When the training is interrupted, say how it can go on from ``place``, if it can."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, ProcessFailed, ClusterError) as error:
        remedy = "" if place is None else _remedy(error)
        if remedy:
            print(f"psctl train: {remedy.format(place)}", file=sys.stderr)
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
    save: Save | None,
    recording: Recording | None = None,
    unscaled: Callable[[], str] = lambda: "",
) -> Result:
    """Run ``cluster`` until its job is finished and return what came of it.

    Args:
        cluster: not started yet; it is stopped at the end.
        job: what its workers train.
        shown: is shown None before the start, and then each status.
        fetch: returns the status of the cluster whose coordinator is at host and port.
        save: has that cluster take a checkpoint; None: nothing of it is to be kept.
        recording: is told what is seen on the way; None: nobody wants to know.
        unscaled: as ``psctl.doubts.warnings_of``.

    Raises:
        ProcessFailed: a process of the cluster ended in the middle of it.
        CheckpointFailed: the cluster has a place for checkpoints, and the last one was not taken.
        PSError: the cluster cannot say what came of it.
    """
    shown.show(None)
    kept = None if save is None else cluster.checkpoint_dir
    went_back = 0
    with cluster, asyncio.Runner() as runner:
        host, port = address(cluster.address)
        beginning = "" if kept is None else _where_it_begins(kept, runner.run(fetch(host, port)), job)
        while not _finished(cluster):
            try:
                status = runner.run(fetch(host, port))
                if beginning and _is_joined(status, job):  # those with other settings are not let in
                    shown.say(beginning)
                    beginning = ""
                shown.show(status)
                went_back = _say_whether_it_went_back(went_back, status, job, shown.say)
                if recording is not None:
                    _record(recording, status, job, cluster)
            except ClusterError:  # a server that is gone; the next look at the processes says why
                continue
        status = runner.run(fetch(host, port))
        last = None if save is None or kept is None else runner.run(save(host, port)).directory
    if beginning:
        shown.say(beginning)
    shown.show(status)
    _say_whether_it_went_back(went_back, status, job, shown.say)
    found = job_status(status, job.name)
    if recording is not None and found is not None:
        recording.note(found)
    return replace(result_of(status, job, unscaled), checkpoint=last)


def _record(recording: Recording, status: ClusterStatus, job: Job, cluster: LocalCluster) -> None:
    found = job_status(status, job.name)
    if found is None:
        return
    recording.note(found)
    for worker, place in cluster.worker_metrics().items():
        split = fetch_split(place)
        if split is not None:
            recording.note_split(worker, split)


def _where_it_begins(place: str, status: ClusterStatus, job: Job) -> str:
    """Return what an earlier run has done that the job goes on from, if anything: no worker has joined."""
    found = job_status(status, job.name)
    progress = None if found is None else found.progress
    if progress is None:
        return ""
    if progress.phase == "finished":
        return (
            f"{job.name} is finished already in {place}: nothing is left to train. "
            "To train it anew, give another --checkpoint-dir"
        )
    if not progress.chunks_done:
        return ""
    done = f"{count(progress.chunks_done)}/{count(progress.chunks)} chunks done"
    return f"going on from {place}: epoch {progress.epoch}/{progress.epochs}, {done}"


def _is_joined(status: ClusterStatus, job: Job) -> bool:
    """Return whether any worker is at work on the job."""
    found = job_status(status, job.name)
    return found is not None and any(worker.state not in GONE for worker in found.workers)


def _say_whether_it_went_back(said: int, status: ClusterStatus, job: Job, say: Say) -> int:
    """Say how the job has gone back after divergence since ``said`` times of it; return how often it has."""
    found = job_status(status, job.name)
    if found is None or len(found.returns) <= said:
        return said
    say(f"{job.name} went back after divergence: {returned(found.returns)}; learning rate x {found.rate:g}")
    return len(found.returns)


def _finished(cluster: LocalCluster) -> bool:
    """Return whether all workers are done, after some time if they are not."""
    try:
        cluster.wait(timeout=_LOOK_EVERY)
    except TimeoutError:
        return False
    return True
