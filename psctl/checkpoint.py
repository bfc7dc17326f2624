"""``psctl checkpoint``: have the servers take a checkpoint now."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass

import configargparse

from protocol.credentials import Credentials
from protocol.daemon.access_flags import access_flags, credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.json_text import json_text
from protocol.messages import Checkpoint, Checkpointed
from psctl.figures import printable, size
from psctl.screen import console_for
from psserver.durability.directories import directory_of
from psworker.asking import ask

__all__ = ["Taken", "flags", "run", "take_checkpoint"]


@dataclass(frozen=True, slots=True)
class Taken:
    """A complete checkpoint: its number, directory or URL, bytes, and the seconds that it took."""

    checkpoint: int
    directory: str
    bytes: int
    seconds: float


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl checkpoint``."""
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="form of the output")
    access_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Have a checkpoint taken, however long that takes, and print where it is.

    Raises:
        Unreachable: no server answers.
        BadRequest: the servers keep nothing.
        CheckpointFailed: it was not taken; what there was before is as it was.
    """
    host, port = options.server
    credentials = credentials_from(options)
    with console_for("stderr").status("taking a checkpoint ..."):
        taken = asyncio.run(take_checkpoint(host, port, credentials))
    if options.format == "json":
        print(json_text(taken))
    else:
        print(f"checkpoint {taken.checkpoint}: {size(taken.bytes)} in {taken.seconds:.2f} s")
        print(printable(taken.directory))
    return ExitCode.DONE


async def take_checkpoint(host: str, port: int, credentials: Credentials | None = None) -> Taken:
    """Have the cluster whose coordinator is there take a checkpoint, and return when it is complete.

    Raises:
        Unreachable: nobody answers.
        CheckpointFailed: it was not taken.
        PSError: the coordinator refuses, or goes away.
    """
    done: Checkpointed
    done, _ = await ask(host, port, Checkpoint(), within=0.0, credentials=credentials)
    directory = f"{done.url.rstrip('/')}/{directory_of(done.checkpoint)}"
    return Taken(done.checkpoint, directory, done.bytes, done.seconds)
