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
from psworker.job import load_job

__all__ = ["at_least", "cluster_flags", "cluster_from", "process_flags", "workers_of"]


def cluster_flags(parser: configargparse.ArgParser, *, workers: str, least_workers: int) -> None:
    """Add what says how many processes there are, what they work on, and what outlives them.

    Args:
        parser: of the command.
        workers: says what the default of ``--workers`` is.
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


def process_flags(parser: configargparse.ArgParser, *, workers: str, least_workers: int) -> None:
    """Add what says how many processes there are, and what they work on; arguments as above."""
    parser.add_argument("--servers", type=at_least(1), default=1, metavar="N", help="psserver processes")
    parser.add_argument(
        "--workers",
        type=at_least(least_workers),
        metavar="N",
        help=f"psworker processes, with which the job starts (default: {workers})",
    )
    job_flags(parser, without="a demo on handwritten digits")


def workers_of(options: argparse.Namespace, otherwise: int) -> int:
    """Return how many workers there are to be: ``--workers``, or what the job says, or ``otherwise``.

    Raises:
        BadRequest: ``--workers`` and ``--set`` say different numbers.
        JobError: the job cannot be used.
    """
    if options.workers is None:
        return load_job(options.job, options.set, [f"train.workers={otherwise}"]).train.workers
    given: int = options.workers
    said = load_job(
        None, [*filter(_sets_workers, options.set)], [f"train.workers={given or 1}"]
    ).train.workers
    if given and said != given:
        raise BadRequest(
            f"--set train.workers={said} says another number; leave one of them out",
            field="--workers",
            value=given,
        )
    return given


def _sets_workers(override: str) -> bool:
    return override.partition("=")[0].strip() == "train.workers"


def cluster_from(options: argparse.Namespace, workers: int, *, port: int = 0) -> LocalCluster:
    """Return the cluster that the flags describe, not started yet, with its coordinator on ``port``.

    Raises:
        BadRequest: flags that are right one by one contradict each other.
    """
    _check_durability(options.durability, options.checkpoint_dir)
    access_from(options, server=True)  # the same flags are for the servers, too
    return LocalCluster(
        options.servers,
        workers,
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
    """Raise BadRequest for what every server would refuse."""
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
