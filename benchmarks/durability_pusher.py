"""A client that pushes without a pause, in a process of its own, and says when each push began and ended.

Each push adds 1 to every element, so the tensor says how many have been counted.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from benchmarks.child_processes import SPAWN, child_process
from protocol.errors import Fenced, PSError
from psworker import Add, Client, connect

JOB = "durability"

# (pushes, 2): when each began and when it was acknowledged, in the seconds of `time.perf_counter`, which
# is one clock for all processes.
Moments = npt.NDArray[np.float64]

_PATIENCE_SECONDS = 120.0


class PusherFailed(Exception):
    """The pusher's process ended or did not answer, or what it pushed was not acknowledged."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What is pushed: tensors `NAME-0`, `NAME-1`, ... of `nbytes` each, a push under way for each of them."""

    name: str
    nbytes: int
    tensors: int = 1


class Pusher:
    """The parent's end of a pusher.

    All methods raise PusherFailed where the process has ended, or cannot push.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def start(self) -> None:
        """Push from now on."""
        self._ask("start")

    def stop(self) -> Moments:
        """Push no more, and return when the pushes since the start were, as soon as all are acknowledged."""
        moments: Moments = self._ask("stop")
        return moments

    def counted(self) -> float:
        """Return how many pushes the servers have counted; raises PusherFailed where elements differ."""
        found: float = self._ask("count")
        return found

    def _ask(self, what: str) -> Any:
        try:
            self._pipe.send(what)
        except ConnectionError as error:
            raise PusherFailed("the pusher's process ended; its message is above") from error
        return self.receive()

    def receive(self) -> Any:
        """Return the next answer."""
        if not self._pipe.poll(_PATIENCE_SECONDS):
            raise PusherFailed(f"no answer from the pusher within {_PATIENCE_SECONDS:g} s")
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise PusherFailed("the pusher's process ended; its message is above") from error
        if isinstance(answer, PusherFailed):
            raise answer
        return answer


@contextmanager
def pusher(address: str, stream: Stream) -> Iterator[Pusher]:
    """Join the job at `address`, make the stream's tensors of zeros, and yield what pushes them."""
    ours, theirs = SPAWN.Pipe()
    with child_process(_run, address, stream, theirs, grace=5.0), ours:
        theirs.close()
        made = Pusher(ours)
        made.receive()  # the tensors are there
        yield made


def _run(address: str, stream: Stream, requests: Connection) -> None:
    with suppress(EOFError):  # the benchmark is over
        try:
            uvloop.run(_push_when_told(address, stream, requests))
        except PSError as error:
            requests.send(PusherFailed(str(error)))


async def _push_when_told(address: str, stream: Stream, requests: Connection) -> None:
    gradient = np.ones(stream.nbytes // 4, np.float32)
    names = [f"{stream.name}-{number}" for number in range(stream.tensors)]
    async with connect(address, JOB) as client:
        for name in names:
            await client.create(name, np.zeros_like(gradient), Add())
        requests.send(None)
        while True:
            match await asyncio.to_thread(requests.recv):
                case "start":
                    requests.send(None)
                    requests.send(await _push_until_told(client, names, gradient, requests))
                case "count":
                    requests.send(await _count(client, names))


async def _push_until_told(
    client: Client, names: list[str], gradient: npt.NDArray[np.float32], requests: Connection
) -> Moments:
    told = asyncio.create_task(asyncio.to_thread(requests.recv))
    moments: list[tuple[float, float]] = []

    async def push_on(name: str) -> None:
        while not told.done():
            begin = perf_counter()
            await _push(client, name, gradient)
            moments.append((begin, perf_counter()))

    await asyncio.gather(*map(push_on, names))
    await told
    return np.array(moments).reshape(-1, 2)


async def _push(client: Client, name: str, gradient: npt.NDArray[np.float32]) -> None:
    while True:
        try:
            return await client.push({name: gradient})
        except Fenced:
            with suppress(Fenced):
                await client.pull(name)  # which joins again


async def _count(client: Client, names: list[str]) -> float | PusherFailed:
    found = 0.0
    for name in names:
        values = await client.pull(name)
        if not (values == values[0]).all():
            return PusherFailed(f"{name}: not every element was added to as often as the others")
        found += float(values[0])
    return found
