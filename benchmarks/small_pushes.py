"""A load of small requests over many connections, each with one outstanding.

The generator is a process of its own on uvloop that does as little as Python can for a request, so
that the server is what is measured; the server's own CPU time tells its cost without the generator.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import uvloop

from benchmarks.child_processes import SPAWN, child_process

# `(connection, number) -> bytes`: the frame that a connection sends as its number-th request. Both
# count from 0, so that number 0 may be a greeting.
RequestMaker = Callable[[int, int], bytes]
# How many complete replies the bytes hold that came since the last complete one.
ReplyCounter = Callable[[bytes], int]

# For connecting, greeting, and a server that is slow to answer.
_PATIENCE_SECONDS = 30.0


class LoadFailed(Exception):
    """The server closed a connection, or did not answer, while under load."""


@dataclass(frozen=True, slots=True)
class Load:
    """Which server to load, and with what.

    `server_pid` is the process whose CPU time is counted. `request` is the same frame each time, or
    makes each; `reply` is the size of one in bytes, or counts complete ones. Functions are called
    in the generator's process: importable by name, or a `functools.partial` of such. The first
    `greetings` requests of each connection are answered on all of them before any pushes.
    """

    address: tuple[str, int]
    server_pid: int
    request: bytes | RequestMaker
    reply: int | ReplyCounter
    greetings: int = 1


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the server did in `seconds` of wall time, and the seconds of CPU time it took."""

    pushes: int
    seconds: float
    server_cpu_seconds: float

    @property
    def pushes_per_second(self) -> float:
        """Requests answered in a second of wall time."""
        return self.pushes / self.seconds

    @property
    def pushes_per_cpu_second(self) -> float:
        """Requests answered for each second of the server's CPU time; infinite below one tick."""
        if self.server_cpu_seconds == 0:
            return float("inf")
        return self.pushes / self.server_cpu_seconds


def run_load(load: Load, connections: int, seconds: float) -> LoadResult:
    """Keep `connections` connections busy for `seconds`, all of them greeted before it counts.

    Raises LoadFailed where a connection is lost or a reply does not come.
    """
    ours, theirs = SPAWN.Pipe()
    with ours, child_process(_generate, load, connections, seconds, theirs):
        theirs.close()
        if not ours.poll(seconds + 3 * _PATIENCE_SECONDS):
            raise LoadFailed(f"{connections} connections: no result from the load generator")
        try:
            result: LoadResult | LoadFailed = ours.recv()
        except EOFError as error:
            raise LoadFailed("the load generator ended; its message is above") from error
    if isinstance(result, LoadFailed):
        raise result
    return result


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that process `pid` and its threads have taken."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user_ticks, system_ticks = after_name[11:13]
    return (int(user_ticks) + int(system_ticks)) / os.sysconf("SC_CLK_TCK")


def _generate(load: Load, connections: int, seconds: float, results: Connection) -> None:
    try:
        results.send(uvloop.run(_load(load, connections, seconds)))
    except (LoadFailed, OSError) as error:
        results.send(LoadFailed(str(error)))


async def _load(load: Load, count: int, seconds: float) -> LoadResult:
    loop = asyncio.get_running_loop()
    failure: asyncio.Future[None] = loop.create_future()
    make, count_replies = _as_functions(load)
    clients = []
    for number in range(count):
        build = partial(_Client, number, make, count_replies, load.greetings, failure)
        _, client = await loop.create_connection(build, *load.address)
        clients.append(client)
    await _greet(clients, failure)
    cpu_before, begin = cpu_seconds(load.server_pid), perf_counter()
    for client in clients:
        client.send_next()
    with suppress(TimeoutError):
        await asyncio.wait_for(failure, seconds)
    pushes = sum(client.answered - load.greetings for client in clients)
    result = LoadResult(pushes, perf_counter() - begin, cpu_seconds(load.server_pid) - cpu_before)
    for client in clients:
        client.close()
    if pushes == 0:
        raise LoadFailed(f"{count} connections: no request was answered within {seconds:g} s")
    return result


async def _greet(clients: "list[_Client]", failure: asyncio.Future[None]) -> None:
    """Send every connection's greetings and wait until all are answered."""
    for client in clients:
        client.send_next()
    greeted = asyncio.gather(*(client.greeted for client in clients))
    waiting: set[asyncio.Future[Any]] = {greeted, failure}
    finished, _ = await asyncio.wait(waiting, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if failure in finished:
        failure.result()
    if not finished:
        raise LoadFailed(f"{len(clients)} connections: not all greeted within {_PATIENCE_SECONDS:g} s")


def _as_functions(load: Load) -> tuple[RequestMaker, ReplyCounter]:
    request, reply = load.request, load.reply
    return (
        (lambda connection, number: request) if isinstance(request, bytes) else request,
        (lambda received: len(received) // reply) if isinstance(reply, int) else reply,
    )


class _Client(asyncio.Protocol):
    """One connection: a request, its reply, the next request."""

    def __init__(
        self,
        number: int,
        make: RequestMaker,
        count_replies: ReplyCounter,
        greetings: int,
        failure: asyncio.Future[None],
    ) -> None:
        self.answered = 0
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number = number
        self._make = make
        self._count_replies = count_replies
        self._greetings = greetings
        self._failure = failure
        self._partial = b""
        self._closing = False

    def send_next(self) -> None:
        self._transport.write(self._make(self._number, self.answered))

    def close(self) -> None:
        self._closing = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        if not self._count_replies(data):
            self._partial = data
            return
        self._partial = b""
        self.answered += 1
        if self.answered == self._greetings:  # all connections begin to push together
            self.greeted.set_result(None)
        else:
            self._transport.write(self._make(self._number, self.answered))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing and not self._failure.done():
            reason = f"{type(exc).__name__}: {exc}" if exc else "closed by the server"
            self._failure.set_exception(
                LoadFailed(f"connection {self._number} after {self.answered} replies: {reason}")
            )
