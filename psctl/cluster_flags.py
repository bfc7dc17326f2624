"""The flags that say what a local cluster consists of, and the cluster that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import configargparse

from psctl.cluster import LocalCluster
from psworker.cli import job_flags

__all__ = ["cluster_flags", "cluster_from"]


def cluster_flags(parser: configargparse.ArgParser, *, workers: int, least_workers: int) -> None:
    """Add ``--servers``, ``--workers`` (by default ``workers``), ``--job``, ``--set`` and ``--verbose``."""
    parser.add_argument("--servers", type=_at_least(1), default=1, metavar="N", help="psserver processes")
    parser.add_argument(
        "--workers", type=_at_least(least_workers), default=workers, metavar="N", help="psworker processes"
    )
    job_flags(parser, without="a demo on handwritten digits")
    parser.add_argument(
        "--verbose", action="store_true", help="pass the processes' logs on to standard error"
    )


def cluster_from(options: argparse.Namespace, *, port: int = 0) -> LocalCluster:
    """Return the cluster that the flags describe, not started yet, with its coordinator on ``port``."""
    return LocalCluster(
        options.servers, options.workers, options.job, options.set, port=port, echo_logs=options.verbose
    )


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, at least {least}")
        return int(text)

    return parse
