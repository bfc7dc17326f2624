"""``psworker``: flags in, a worker's part of a job done."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import configargparse

from protocol.credentials import Access
from protocol.daemon.access_flags import access_flags, access_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.exposition import Exposition
from protocol.daemon.logs import Speaker, configure_logs
from protocol.daemon.run import announce_ready, on_hangup, run, watch_stdin
from protocol.daemon.settings import address, duration, job_name, log_flags, new_parser, port
from protocol.errors import BadRequest
from protocol.events import about
from psworker.daemon import WorkerSettings, exit_code, work
from psworker.errors import JobError, ModelError
from psworker.job import load_job
from psworker.metrics import WorkerMetrics

__all__ = ["job_flags", "main"]

_log = logging.getLogger("psworker")

_METRICS_PORT: Final = 9465


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    speaker = Speaker()
    configure_logs(options.log_format, options.log_level, speaker)
    try:
        job = load_job(options.job, options.set) if options.job or options.set else None
        access = access_from(options)
    except (JobError, BadRequest) as error:
        parser.error(str(error))
    if options.stop_with_stdin and job is not None and job.stream is not None and job.stream.kind == "-":
        parser.error('--stop-with-stdin: standard input is what [stream] source = "-" reads; take one out')
    speaker.tell = lambda: {"job": job.name if job else None, "worker": options.name}
    host, number = options.server
    settings = WorkerSettings(f"{host}:{number}", job, options.name, options.reconnect_for, access)
    return run(lambda stop: _work(settings, options, stop, speaker))


def _parser() -> configargparse.ArgParser:
    parser = new_parser("psworker", "Train on a cluster: lease chunks of data, push gradients, until done.")
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    job_flags(parser, without="the job that the cluster has")
    parser.add_argument("--name", type=job_name, help="this worker's name in the job; without it, worker-N")
    parser.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="HOST",
        help="address to bind for metrics, which anybody who reaches it may read",
    )
    parser.add_argument(
        "--metrics-port",
        type=port,
        metavar="PORT",
        help=f"HTTP port for metrics (default: {_METRICS_PORT}, or a free one if that is taken)",
    )
    parser.add_argument(
        "--reconnect-for",
        type=duration,
        default="60s",
        metavar="TIME",
        help="how long to try while no server answers",
    )
    parser.add_argument(
        "--ready-file", metavar="FILE", help="write the metrics address there as JSON once bound"
    )
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop when standard input ends, so as not to outlive the process that started this one",
    )
    access_flags(parser)
    log_flags(parser)
    return parser


def job_flags(parser: configargparse.ArgParser, *, without: str) -> None:
    """Add ``--job`` and ``--set``; ``without`` says what is trained without a file."""
    parser.add_argument("--job", type=Path, metavar="FILE", help=f"job file (TOML); without it, {without}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting of the job, for example train.epochs=3; may be repeated",
    )


async def _work(
    settings: WorkerSettings, options: argparse.Namespace, stop: asyncio.Event, speaker: Speaker
) -> int:
    metrics = WorkerMetrics()
    exposition = Exposition(
        metrics.registry, lambda: "it stops" if stop.is_set() else "", asyncio.get_running_loop()
    )
    try:
        bound = exposition.listen(options.metrics_host, options.metrics_port, _METRICS_PORT)
    except OSError as error:
        _log.error(
            "cannot serve metrics on --metrics-host %s --metrics-port %s: %s; port 0 takes a free one",
            options.metrics_host, options.metrics_port, error,
        )  # fmt: skip
        return ExitCode.USAGE
    if settings.access != Access():
        on_hangup(lambda: None)  # each new connection looks at the files
    announce_ready(options.ready_file, metrics=bound)
    watching = asyncio.create_task(_stop_with_stdin(stop)) if options.stop_with_stdin else None
    try:
        return await _until_stopped(settings, metrics, stop, speaker)
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        exposition.close()


async def _until_stopped(
    settings: WorkerSettings, metrics: WorkerMetrics, stop: asyncio.Event, speaker: Speaker
) -> int:
    working = asyncio.create_task(work(settings, metrics, speaker))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        await working
    except asyncio.CancelledError:
        _log.info("stopped before the job was finished", extra=about("work.stopped"))
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        lost = "the cluster is lost: " if code == ExitCode.CLUSTER_LOST else ""
        theirs = error.__cause__ if isinstance(error, ModelError) else None  # where in the user's code
        _log.error("%s%s", lost, error, exc_info=theirs, extra=about("failed"))
        return code
    finally:
        stopped.cancel()
    return ExitCode.DONE


async def _stop_with_stdin(stop: asyncio.Event) -> None:
    await watch_stdin()
    _log.info("standard input has ended, stopping")
    stop.set()
