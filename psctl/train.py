"""``psctl train``: a local cluster, from the first example to the result."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import configargparse

from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.errors import ClusterError
from protocol.status import ClusterStatus
from psctl.cluster import LocalCluster
from psctl.cluster_flags import cluster_flags, cluster_from
from psctl.json_text import json_text
from psctl.result import Result, result_of, result_table
from psctl.screen import Show, console_for, screen
from psworker.asking import fetch_status
from psworker.daemon import check
from psworker.job import Job, load_job

__all__ = ["flags", "run", "train"]

Fetch = Callable[[str, int], Coroutine[Any, Any, ClusterStatus]]

_LOOK_EVERY: Final = 0.2  # seconds


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl train``."""
    cluster_flags(parser, workers=2, least_workers=1)
    parser.add_argument(
        "--format",
        choices=["text", "json"],
        default="text",
        help="form of the result on standard output; json: one object, as the last line",
    )


def run(options: argparse.Namespace) -> int:
    """Train, show it, and print the result.

    Raises:
        JobError, DataError: the job, its model or its data cannot be used.
        ProcessFailed: a process of the cluster ended in the middle of it.
    """
    job = load_job(options.job, (*options.set, f"train.workers={options.workers}"))
    check(job)
    with screen(job, options.format) as show:
        result = train(cluster_from(options), job, show, fetch_status)
    if options.format == "json":
        print(json_text(result), flush=True)
    else:
        console_for("stdout").print(result_table(result))
    return ExitCode.DONE


def train(cluster: LocalCluster, job: Job, show: Show, fetch: Fetch) -> Result:
    """Run ``cluster`` until its job is finished and return what came of it.

    Args:
        cluster: not started yet; it is stopped at the end.
        job: what its workers train.
        show: called with None before the start, and then with each status.
        fetch: returns the status of the cluster whose coordinator is at host and port.

    Raises:
        ProcessFailed: a process of the cluster ended in the middle of it.
        PSError: the cluster cannot say what came of it.
    """
    show(None)
    with cluster, asyncio.Runner() as runner:
        host, port = address(cluster.address)
        while not _finished(cluster):
            try:
                show(runner.run(fetch(host, port)))
            except ClusterError:  # a server that is gone; the next look at the processes says why
                continue
        status = runner.run(fetch(host, port))
    show(status)
    return result_of(status, job)


def _finished(cluster: LocalCluster) -> bool:
    """Return whether all workers are done, after some time if they are not."""
    try:
        cluster.wait(timeout=_LOOK_EVERY)
    except TimeoutError:
        return False
    return True
