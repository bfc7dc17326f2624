"""A system in a process of its own, so that no peer's threads or settings reach another's client."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from benchmarks.child_processes import SPAWN, child_process
from benchmarks.pinning import kept_apart
from benchmarks.systems.interface import Operation, System

Figure = TypeVar("Figure")
Measure = Callable[[Operation, int, float], Figure]

# Ray needs some seconds for either on a busy machine; both are far beyond what is usual.
ANSWER_LIMIT_SECONDS = 120.0
STOP_LIMIT_SECONDS = 20.0


class SystemFailed(Exception):
    """A system could not be started or measured; the message is its own."""


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str


@contextmanager
def isolated(build: Callable[[], System[Figure]]) -> Iterator[Measure[Figure]]:
    """Start the system that `build` makes; yield its `measure`; stop it on leaving.

    Raises SystemFailed where it does not start; the function yielded raises it likewise.
    """
    ours, theirs = SPAWN.Pipe()
    # Our end is closed first, which is what tells the child to stop.
    with child_process(_run_system, build, theirs, grace=STOP_LIMIT_SECONDS), ours:
        theirs.close()
        _receive(ours, ANSWER_LIMIT_SECONDS)

        def measure(operation: Operation, nbytes: int, seconds: float) -> Figure:
            ours.send((operation, nbytes, seconds))
            figure: Figure = _receive(ours, ANSWER_LIMIT_SECONDS + seconds)
            return figure

        yield measure


def _receive(answers: Connection, limit: float) -> Any:
    if not answers.poll(limit):
        raise SystemFailed(f"no answer within {limit:.0f} s")
    try:
        answer = answers.recv()
    except EOFError as error:
        raise SystemFailed("its process ended unexpectedly") from error
    if isinstance(answer, _Failure):
        raise SystemFailed(answer.message)
    return answer


def _run_system(build: Callable[[], System[object]], requests: Connection) -> None:
    # Standard output carries the result of the benchmark alone.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    system = build()
    try:
        system.start()
        _send(requests, None)
        for operation, nbytes, seconds in _requests_until_closed(requests):
            with kept_apart(nbytes):
                _send(requests, system.measure(operation, nbytes, seconds))
    except Exception as error:
        traceback.print_exc()
        _send(requests, _Failure(f"{type(error).__name__}: {error}"))
    finally:
        system.stop()


def _requests_until_closed(requests: Connection) -> Iterator[tuple[Operation, int, float]]:
    while True:
        try:
            request = requests.recv()
        except (EOFError, ConnectionError):  # the benchmark is over or interrupted
            return
        yield request


def _send(requests: Connection, answer: object) -> None:
    # Nobody may be there any more: the benchmark was interrupted, as the next receive will tell.
    with suppress(ConnectionError):
        requests.send(answer)
