"""``psctl restore``: have a cluster go on from a checkpoint."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import configargparse

from protocol.credentials import Credentials
from protocol.daemon.access_flags import access_flags, credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.errors import BadRequest
from protocol.json_text import json_text
from protocol.messages import Checkpointed, Restore
from protocol.status import ClusterStatus, JobStatus, TensorStatus
from protocol.tensors import DTYPES
from psctl.figures import count, plural, printable, size
from psctl.screen import console_for
from psserver.durability.directories import number_of
from psworker.asking import ask, fetch_status

__all__ = ["flags", "run", "wanted"]


@dataclass(frozen=True, slots=True)
class _Job:
    """A job as it was restored: the furthest worker's step, and how many tensors of how many bytes it has."""

    name: str
    step: int
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Restored:
    """What the cluster has become: which checkpoint, from where, its bytes on disk, and how long it took."""

    checkpoint: int
    place: str
    bytes: int
    seconds: float
    timeline: int
    jobs: tuple[_Job, ...]


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl restore``."""
    parser.add_argument(
        "place",
        metavar="DIRECTORY",
        help="a directory of checkpoints as all servers see it, or one checkpoint in it; or a URL such as "
        "s3://bucket/run",
    )
    parser.add_argument(
        "--checkpoint", type=_number, metavar="N", help="which; without it, the newest that is sound"
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="even if workers are at work: what they have done since that checkpoint is dropped, and they go "
        "on from it",
    )
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="form of the output")
    access_flags(parser)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no checkpoint's number; write for example 12")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Have the state of the cluster replaced, however long that takes, and print by what.

    Raises:
        Unreachable: no server answers.
        JobMismatch: workers are at work, and ``--replace`` was not said.
        CheckpointUnusable: there is no checkpoint, or it is damaged; the cluster is as it was.
        BadRequest: the place names no storage, or the servers keep nothing.
    """
    request = wanted(options.place, options.checkpoint, replace=options.replace)
    host, port = options.server
    credentials = credentials_from(options)
    with console_for("stderr").status("restoring ..."):
        restored = asyncio.run(_restored(host, port, request, credentials))
    if options.format == "json":
        print(json_text(restored))
    else:
        print("\n".join(_lines(restored)))
    return ExitCode.DONE


def wanted(place: str, checkpoint: int | None, *, replace: bool) -> Restore:
    """Return the request for what an operator has named: a directory, one checkpoint in it, or a URL.

    Raises:
        BadRequest: the directory is one checkpoint's, and another number was given.
    """
    if "://" not in place:
        place = str(Path(place).resolve())
    parent, _, name = place.rstrip("/").rpartition("/")
    number = number_of(name)
    if number is None:
        return Restore(place, checkpoint, replace)
    if checkpoint not in (None, number):
        raise BadRequest(
            f"the directory is that of checkpoint {number}", field="checkpoint", value=checkpoint
        )
    return Restore(parent or "/", number, replace)


async def _restored(host: str, port: int, request: Restore, credentials: Credentials) -> _Restored:
    done: Checkpointed
    done, _ = await ask(host, port, request, within=0.0, credentials=credentials)
    status: ClusterStatus = await fetch_status(host, port, within=0.0, credentials=credentials)
    jobs = tuple(map(_job, status.jobs))
    timeline = status.durability.timeline
    return _Restored(done.checkpoint, done.url, done.bytes, done.seconds, timeline, jobs)


def _job(job: JobStatus) -> _Job:
    return _Job(job.name, job.step, len(job.tensors), sum(map(_nbytes, job.tensors)))


def _nbytes(tensor: TensorStatus) -> int:
    return 0 if tensor.dim else math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize


def _lines(restored: _Restored) -> Iterator[str]:
    yield (
        f"checkpoint {restored.checkpoint} of {printable(restored.place)} restored: "
        f"{size(restored.bytes)} in {restored.seconds:.2f} s; timeline {restored.timeline} begins"
    )
    for job in restored.jobs:
        tensors = f"{plural(job.tensors, 'tensor')} of {size(job.bytes)}"
        yield f"  job {printable(job.name)}: step {count(job.step)}, {tensors}"
