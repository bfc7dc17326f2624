"""``psctl drop``: end a job and forget all of it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator

import configargparse

from protocol.daemon.access_flags import access_flags, credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address, job_name
from protocol.json_text import json_text
from protocol.messages import Dropped
from psctl.figures import plural, printable, size
from psworker.asking import drop

__all__ = ["flags", "run"]


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl drop``."""
    parser.add_argument("job", type=job_name, metavar="JOB", help="the job's name, as in psctl status")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if workers are at work on it: they are told that it was dropped, and end",
    )
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="form of the output")
    access_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Have the job dropped, and print what that has freed.

    Raises:
        Unreachable: no server answers.
        UnknownJob: there is no such job.
        JobMismatch: workers are at work on it, and ``--force`` was not said.
        Forbidden: ``--force`` was said without an admin's token.
    """
    host, port = options.server
    credentials = credentials_from(options)
    dropped = asyncio.run(
        drop(host, port, options.job, force=options.force, within=0.0, credentials=credentials)
    )
    print(json_text(dropped) if options.format == "json" else "\n".join(_lines(dropped)))
    return ExitCode.DONE


def _lines(dropped: Dropped) -> Iterator[str]:
    freed = f"{plural(dropped.tensor_count, 'tensor')}, {size(dropped.bytes)} of memory freed"
    yield f"job {printable(dropped.job)} dropped: {freed}"
    for shard in dropped.away:
        yield f"  server {shard} is away: it drops its part as soon as it is back"
