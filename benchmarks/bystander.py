"""A client that pulls 1 KB in a closed loop, in a process of its own, and says how long each pull took."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter

import numpy as np
import uvloop

from benchmarks.child_processes import SPAWN, child_process
from psworker import Client, connect

_ELEMENTS = 250  # float32: 1 KB
_PATIENCE_SECONDS = 60.0
_WARM_UP_SECONDS = 0.2

Pulls = Callable[[float], "Latencies"]


class BystanderFailed(Exception):
    """The bystander's process ended, or did not answer."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """What pulls took in seconds: the middle, the 99th and the 99.9th percentile, and the longest."""

    pulls: int
    median: float
    p99: float
    p999: float
    longest: float


def summarize_latencies(seconds: Sequence[float]) -> Latencies:
    """Return the percentiles of `seconds`, each one that a pull took.

    Raises ValueError where there are none.
    """
    if not seconds:
        raise ValueError("seconds: none given; percentiles need at least one pull")
    median, p99, p999 = np.percentile(seconds, (50, 99, 99.9))
    return Latencies(len(seconds), float(median), float(p99), float(p999), max(seconds))


@contextmanager
def bystander(address: str) -> Iterator[Pulls]:
    """Join a job of its own at `address`; yield a function that pulls for so many seconds.

    The function raises BystanderFailed where its process has ended.
    """
    ours, theirs = SPAWN.Pipe()
    with child_process(_run, address, theirs, grace=5.0), ours:
        theirs.close()

        def pull_for(seconds: float) -> Latencies:
            try:
                ours.send(seconds)
                return _receive(ours, seconds + _PATIENCE_SECONDS)
            except (EOFError, ConnectionError) as error:
                raise BystanderFailed("the bystander's process ended; its message is above") from error

        yield pull_for


def _receive(answers: Connection, limit: float) -> Latencies:
    if answers.poll(limit):
        found: Latencies = answers.recv()
        return found
    raise BystanderFailed(f"no answer from the bystander within {limit:g} s")


def _run(address: str, requests: Connection) -> None:
    with suppress(EOFError):  # the benchmark is over
        uvloop.run(_pull_when_told(address, requests))


async def _pull_when_told(address: str, requests: Connection) -> None:
    async with connect(address, "bystander") as client:
        await client.create("w", np.zeros(_ELEMENTS, np.float32))
        while True:
            seconds: float = await asyncio.to_thread(requests.recv)
            await _pull_for(client, _WARM_UP_SECONDS)
            requests.send(summarize_latencies(await _pull_for(client, seconds)))


async def _pull_for(client: Client, seconds: float) -> list[float]:
    taken = []
    end = perf_counter() + seconds
    while (begin := perf_counter()) < end:
        await client.pull("w")
        taken.append(perf_counter() - begin)
    return taken
