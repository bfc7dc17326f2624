"""``psctl``: a command and its flags in, an exit code out."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import protocol
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import new_parser
from protocol.errors import CheckpointFailed, CheckpointUnusable, PSError
from psctl.child import ProcessFailed
from psworker.daemon import exit_code
from psworker.errors import DataError, JobError
from psworker.job import nearest

__all__ = ["main"]

_DEFECT: Final = 1  # what Python itself exits with after a traceback


class _Command(NamedTuple):
    module: str  # of this package; it is imported when the command is given, for others need not wait for it
    summary: str
    examples: tuple[str, ...]


_COMMANDS: Final = {
    "train": _Command(
        "train",
        "Train on a local cluster, from start to finish.",
        (
            "psctl train                                # handwritten digits, 1 server, 2 workers",
            "psctl train --servers 2 --workers 4 --job job.toml",
            "psctl train --set train.epochs=3 --set optimizer.lr=0.5",
            "psctl train --checkpoint-dir run           # again: goes on where it was interrupted",
            "psctl train --format json | tail -n 1      # the result, for scripts",
        ),
    ),
    "tune": _Command(
        "tune",
        "Search for the settings with which a job learns best, on local clusters.",
        (
            "psctl tune --job job.toml --try optimizer.lr=0.01..1:log",
            "psctl tune --try optimizer.lr=0.1,0.3,1 --try train.batch-size=16,64 --search grid --folds 5",
            "psctl tune --try optimizer.lr=0.01..10:log --search halving --trials 27 --parallel 2",
            "psctl tune --try model.l2=0,1e-4,1e-2 --measure accuracy --output best.toml --report search",
        ),
    ),
    "up": _Command(
        "up",
        "Run a local cluster until Ctrl-C, to use from Python or with workers of your own.",
        (
            "psctl up                                   # a server; says how to connect",
            "psctl up --servers 2 --workers 4 --job job.toml --verbose",
            "psctl up --checkpoint-dir run --durability log",
        ),
    ),
    "status": _Command(
        "status",
        "Show the servers, jobs and workers of a cluster.",
        (
            "psctl status",
            "psctl status --server 10.0.0.5:7070 --format json",
        ),
    ),
    "top": _Command(
        "top",
        "Show the servers, jobs and workers of a cluster, live, until q or Ctrl-C.",
        (
            "psctl top",
            "psctl top --server 10.0.0.5:7070 --every 5s",
            "psctl top --format json | jq -c '.jobs[0].step'",
        ),
    ),
    "set": _Command(
        "change",
        "Change how a job's workers are kept together, while it runs.",
        (
            "psctl set staleness=3                      # at most 3 steps apart",
            "psctl set staleness=0 backup-workers=1     # synchronous, not waiting for the slowest",
            "psctl set staleness=inf --job digits --server 10.0.0.5:7070",
        ),
    ),
    "drop": _Command(
        "drop",
        "End a job and forget all of it: free the memory that the servers keep it in.",
        (
            "psctl drop digits                          # refused while workers are at work on it",
            "psctl drop digits --force                  # they are told that it was dropped",
            "psctl drop digits --server 10.0.0.5:7070 --format json | jq .bytes",
        ),
    ),
    "predict": _Command(
        "predict",
        "Predict with a job's model, while it is trained or afterwards.",
        (
            "psctl predict --input new.csv              # a header and rows, with the target or without",
            "psctl predict --input 'part-*.parquet' --format csv --probabilities --output predicted.csv",
            "psctl predict --input monday.csv.gz tuesday.csv.gz --job clicks",
            "tail -f clicks.jsonl | psctl predict --job clicks --server 10.0.0.5:7070",
        ),
    ),
    "checkpoint": _Command(
        "checkpoint",
        "Have the servers take a checkpoint now, and wait until it is complete.",
        (
            "psctl checkpoint",
            "psctl checkpoint --server 10.0.0.5:7070 --format json | jq -r .directory",
        ),
    ),
    "restore": _Command(
        "restore",
        "Have a cluster, of any number of servers, go on from a checkpoint.",
        (
            "psctl restore checkpoints                  # the newest there that is sound",
            "psctl restore checkpoints/checkpoint-00000012 --replace",
            "psctl restore s3://bucket/run --server 10.0.0.5:7070",
        ),
    ),
    "inspect": _Command(
        "inspect",
        "Show what is in checkpoints, and whether they are sound: every byte is read.",
        (
            "psctl inspect checkpoints                  # all of them, and the newest in detail",
            "psctl inspect checkpoints/checkpoint-00000012",
            "psctl inspect checkpoints --format json | jq .usable",
        ),
    ),
    "token": _Command(
        "token",
        "Print new tokens, for --token-file of servers, workers and operators.",
        (
            "(umask 077; psctl token > tokens)          # a file for the servers",
            "(umask 077; grep worker: tokens > worker)  # what a worker may have of it",
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a worker's name may be more than the terminal can show
    match list(sys.argv[1:] if arguments is None else arguments):
        case [] | ["-h" | "--help" | "help", *_]:
            print(_overview())
            return ExitCode.DONE
        case ["--version", *_]:
            print(f"psctl {protocol.__version__}")
            return ExitCode.DONE
        case [name, *rest] if name in _COMMANDS:
            return _run(name, rest)
        case [name, *_]:
            print(f'psctl: there is no command "{name}"{nearest(name, _COMMANDS)}', file=sys.stderr)
            return ExitCode.USAGE
    raise AssertionError("a list is empty or has a first element")


def _overview() -> str:
    commands = "\n".join(f"  {name:<12}{command.summary}" for name, command in _COMMANDS.items())
    return f"""\
usage: psctl COMMAND [FLAGS]

Operate asyncps, a parameter server: train, keep a cluster, look into one.

commands:
{commands}

{_examples(*(example for command in _COMMANDS.values() for example in command.examples[:1]))}
psctl COMMAND --help tells more; psctl --version the version."""


def _examples(*examples: str) -> str:
    return "examples:\n" + "".join(f"  {example}\n" for example in examples)


def _run(name: str, arguments: Sequence[str]) -> int:
    command = _COMMANDS[name]
    parser = new_parser("psctl", command.summary, command=name, examples=_examples(*command.examples) + "\n")
    module = importlib.import_module(f"psctl.{command.module}")
    module.flags(parser)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = module.run
    try:
        return run(options)
    except KeyboardInterrupt:
        print(f"psctl {name}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (JobError, DataError, ProcessFailed, PSError, OSError) as error:
        print(f"psctl {name}: {error}", file=sys.stderr)
        return _exit_code(error)


def _exit_code(error: Exception) -> int:
    match error:
        case CheckpointUnusable():
            return ExitCode.CHECKPOINT_UNUSABLE
        case CheckpointFailed():
            return ExitCode.CHECKPOINT_FAILED
        case TimeoutError():
            return ExitCode.UNREACHABLE
        case ProcessFailed() if error.returncode in _MEANT_FOR_OTHERS:
            return error.returncode
        case ProcessFailed() if error.name.startswith("server-"):
            return ExitCode.CLUSTER_LOST
        case _:
            return exit_code(error) or _DEFECT


# What a child's exit code says of the whole: not that it was stopped alone, which 130 and 143 say.
_MEANT_FOR_OTHERS: Final = frozenset(ExitCode) - {ExitCode.DONE, ExitCode.INTERRUPTED, ExitCode.TERMINATED}
