"""``psctl status``: the servers, jobs and workers of a cluster."""

from __future__ import annotations

import argparse
import asyncio

import configargparse

from protocol.daemon.access_flags import access_flags, credentials_from
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.json_text import json_text
from psctl.overview import overview
from psctl.screen import console_for
from psworker.asking import fetch_status

__all__ = ["flags", "run"]


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl status``."""
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="form of the output")
    access_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Ask for the status and print it.

    Raises:
        Unreachable: no server answers.
        PSError: the server is not a coordinator.
    """
    status = asyncio.run(fetch_status(*options.server, within=0.0, credentials=credentials_from(options)))
    if options.format == "json":
        print(json_text(status))
    else:
        console = console_for("stdout")
        console.print(overview(status, width=console.width))
    return ExitCode.DONE
