"""The flags that say what a local cluster consists of, and the cluster that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import configargparse

from protocol.daemon.access_flags import access_flags, access_from
from protocol.daemon.settings import duration
from protocol.errors import BadRequest
from psctl.cluster import LocalCluster
from psworker.cli import job_flags

__all__ = ["at_least", "cluster_flags", "cluster_from", "process_flags"]


def cluster_flags(parser: configargparse.ArgParser, *, workers: int, least_workers: int) -> None:
    """Add what says how many processes there are, what they work on, and what outlives them.

    Args:
        parser: of the command.
        workers: default of ``--workers``.
        least_workers: that can be asked for.
    """
    process_flags(parser, workers=workers, least_workers=least_workers)
    parser.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        help="where the servers keep checkpoints and the update log; what is there already is gone on from",
    )
    parser.add_argument(
        "--durability",
        choices=["none", "snapshot", "log"],
        help="what outlives a server that is killed: nothing, what was in the last checkpoint, or every "
        "acknowledged update (default: snapshot with --checkpoint-dir, else none)",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=_time,
        metavar="TIME",
        help="between two checkpoints, if anything has changed (default: 30s); 0s: only on demand and at "
        "the end",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="pass the processes' logs on to standard error"
    )
    access_flags(parser, server=True)


def process_flags(parser: configargparse.ArgParser, *, workers: int, least_workers: int) -> None:
    """Add what says how many processes there are, and what they work on; arguments as above."""
    parser.add_argument("--servers", type=at_least(1), default=1, metavar="N", help="psserver processes")
    parser.add_argument(
        "--workers", type=at_least(least_workers), default=workers, metavar="N", help="psworker processes"
    )
    job_flags(parser, without="a demo on handwritten digits")


def cluster_from(options: argparse.Namespace, *, port: int = 0) -> LocalCluster:
    """Return the cluster that the flags describe, not started yet, with its coordinator on ``port``.

    Raises:
        BadRequest: flags that are right one by one contradict each other.
    """
    _check_durability(options.durability, options.checkpoint_dir)
    access_from(options, server=True)  # the same flags are for the servers, too
    return LocalCluster(
        options.servers,
        options.workers,
        options.job,
        options.set,
        port=port,
        echo_logs=options.verbose,
        checkpoint_dir=options.checkpoint_dir,
        durability=options.durability,
        checkpoint_every=options.checkpoint_every,
        access=access_from(options),
    )


def _check_durability(mode: str | None, directory: str | None) -> None:
    """Refuse what every server would refuse."""
    problem = ""
    if directory is None and mode in ("snapshot", "log"):
        problem = "there is no --checkpoint-dir to keep anything in"
    elif directory is not None and mode == "none":
        problem = "keeps nothing; leave --checkpoint-dir away, or say snapshot or log"
    elif directory is not None and mode == "log" and "://" in directory:
        problem = "an update log needs a directory of this machine as --checkpoint-dir"
    if problem:
        raise BadRequest(problem, field="--durability", value=mode)


def _time(text: str) -> str:
    duration(text)
    return text


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a flag's whole number that is ``least`` or more."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, at least {least}")
        return int(text)

    return parse
