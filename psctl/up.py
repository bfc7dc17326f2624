"""``psctl up``: a local cluster that stays until it is interrupted."""

from __future__ import annotations

import argparse
import time
from typing import Final, NoReturn

import configargparse

from protocol.daemon.settings import port
from psctl.cluster import LocalCluster
from psctl.cluster_flags import cluster_flags, cluster_from, workers_of
from psctl.figures import plural
from psworker.job import load_job
from psworker.parts import check

__all__ = ["flags", "greeting", "run"]

_LOOK_EVERY: Final = 0.2  # seconds


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl up``."""
    parser.add_argument(
        "--port",
        type=port,
        default=7070,
        metavar="PORT",
        help="TCP port of the coordinator; 0 takes a free one",
    )
    cluster_flags(parser, workers="none", least_workers=0)


def run(options: argparse.Namespace) -> NoReturn:
    """Start a cluster, say how to use it, and keep it.

    Raises:
        JobError, DataError: the job, its model or its data cannot be used.
        ProcessFailed: a process of the cluster ended that should not have.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; the cluster has been stopped.
    """
    job = load_job(options.job, options.set)
    workers = 0 if options.workers is None else workers_of(options, 0)
    if workers:
        check(job)
    with cluster_from(options, workers, port=options.port) as cluster:
        print(greeting(cluster.address, cluster.metrics, len(cluster.workers)), flush=True)
        _stay(cluster)


def _stay(cluster: LocalCluster) -> NoReturn:
    at_work = len(cluster.workers) > 0
    while True:
        finished = cluster.poll()
        if at_work and finished:
            print("all workers have finished; the servers stay up", flush=True)
            at_work = False
        time.sleep(_LOOK_EVERY)


def greeting(address: str, metrics: tuple[str, ...], workers: int) -> str:
    """Return where the cluster is and what can be done with it."""
    with_workers = f" with {plural(workers, 'worker')}" if workers else ""
    urls = "\n           ".join(f"http://{one}/metrics" for one in metrics)
    return f"""\
{plural(len(metrics), "server")}{with_workers} at {address}; Ctrl-C stops all
  watch    http://{metrics[0]}/
  metrics  {urls}
  python   from psworker.sync import connect
           with connect("{address}") as ps: ps.create("w", [0.0, 0.0]); print(ps.pull("w"))
  shell    psworker --server {address} --job job.toml
           psctl top --server {address}"""
