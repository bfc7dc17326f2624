"""A thousand workers that only live: each says hello, joins, and sends its heartbeats.

They share one process and one uvloop loop, and do as little as Python can, so that the server is what is
measured. Their heartbeats are spread evenly over the interval, as those of real workers are.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, cast

import uvloop

from benchmarks.child_processes import SPAWN, child_process
from protocol.frames import PRELUDE, VERSION, encode_prelude
from protocol.messages import (
    Header,
    Heartbeat,
    Hello,
    Join,
    Joined,
    Request,
    Welcome,
    decode_header,
    decode_reply,
    encode_request,
)

# For connecting and for joining; both take a fraction of a second.
_PATIENCE_SECONDS = 60.0

_HEARTBEAT_ID = 3


class CrowdFailed(Exception):
    """A simulated worker was refused, declared dead or disconnected."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Workers `first` to `first + count - 1` of the `total` that the job `crowd` starts with.

    Each sends a heartbeat every `interval` seconds to the server at `address`.
    """

    address: tuple[str, int]
    first: int
    count: int
    total: int
    interval: float


class Lives:
    """A running crowd, seen from the process that started it."""

    def __init__(self, answers: list[Connection], joined_in: float) -> None:
        self._answers = answers
        self.joined_in = joined_in

    def check(self) -> None:
        """Raise CrowdFailed if one of the workers has."""
        for answer in self._answers:
            if answer.poll():
                _receive(answer)


@contextmanager
def living_crowd(address: tuple[str, int], total: int, interval: float, processes: int) -> Iterator[Lives]:
    """Have `total` workers join and send heartbeats for as long as the context lasts.

    All are connected and greeted before the first joins; `joined_in` is the time in seconds from there
    until the last is told that the job has started.

    Raises CrowdFailed where one of them is refused.
    """
    share = -(-total // processes)
    crowds = [
        Crowd(address, first, min(share, total - first), total, interval) for first in range(0, total, share)
    ]
    with _crowd_processes(crowds) as answers:
        for answer in answers:
            _receive(answer)
        begin = perf_counter()
        for answer in answers:
            answer.send("join")
        for answer in answers:
            _receive(answer)
        lives = Lives(answers, perf_counter() - begin)
        yield lives
        lives.check()


@contextmanager
def _crowd_processes(crowds: list[Crowd]) -> Iterator[list[Connection]]:
    if not crowds:
        yield []
        return
    ours, theirs = SPAWN.Pipe()
    with ours, child_process(_run, crowds[0], theirs):
        theirs.close()
        with _crowd_processes(crowds[1:]) as others:
            yield [ours, *others]


def _receive(answers: Connection) -> None:
    if not answers.poll(_PATIENCE_SECONDS):
        raise CrowdFailed(f"no answer from the simulated workers within {_PATIENCE_SECONDS:g} s")
    try:
        answer: str | CrowdFailed = answers.recv()
    except (EOFError, ConnectionError) as error:
        raise CrowdFailed("the simulated workers' process ended; its message is above") from error
    if isinstance(answer, CrowdFailed):
        raise answer


def _run(crowd: Crowd, parent: Connection) -> None:
    # Real workers are elsewhere: these take what the server and who is measured leave of the processor.
    os.nice(19)
    try:
        uvloop.run(_live(crowd, parent))
    except (CrowdFailed, OSError) as error:
        with suppress(ConnectionError):
            parent.send(CrowdFailed(str(error)))


async def _live(crowd: Crowd, parent: Connection) -> None:
    loop = asyncio.get_running_loop()
    failure: asyncio.Future[None] = loop.create_future()
    workers, greetings = [], []
    for number in range(crowd.first, crowd.first + crowd.count):
        made = partial(SimulatedWorker, f"simulated-{number}", crowd.total, failure)
        _, worker = await loop.create_connection(made, *crowd.address)
        workers.append(worker)
        greetings.append(worker.greet())  # at once: a server has no patience with crowds of strangers
    await _all(failure, greetings)
    parent.send("greeted")
    await asyncio.to_thread(parent.recv)
    await _all(failure, [worker.join() for worker in workers])
    parent.send("joined")
    begin = loop.time()
    for place, worker in enumerate(workers):
        worker.beat(begin + crowd.interval * (crowd.first + place) / crowd.total, crowd.interval)
    await failure


async def _all(failure: asyncio.Future[None], answers: list[asyncio.Future[None]]) -> None:
    every = asyncio.gather(*answers)
    waiting: set[asyncio.Future[Any]] = {every, failure}
    done, _ = await asyncio.wait(waiting, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if failure in done:
        failure.result()
    if not done:
        answered = sum(answer.done() for answer in answers)
        raise CrowdFailed(f"{answered} of {len(answers)} were answered within {_PATIENCE_SECONDS:g} s")


class SimulatedWorker(asyncio.Protocol):
    """One bare connection. What goes wrong with any is set on `failure`, which they share."""

    def __init__(self, name: str, total: int, failure: asyncio.Future[None]) -> None:
        self._name = name
        self._total = total
        self._failure = failure
        self._received = b""
        self._answer: asyncio.Future[None] | None = None
        self._heartbeat = _frame(_HEARTBEAT_ID, Heartbeat(0, 0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def greet(self) -> asyncio.Future[None]:
        """Say hello; the future is that of the answer."""
        return self._ask(1, Hello((VERSION,), "benchmark"))

    def join(self) -> asyncio.Future[None]:
        """Join the job, which starts when all have."""
        return self._ask(2, Join(self._name, "crowd", self._name, workers=self._total))

    def beat(self, at: float, interval: float) -> None:
        """Send a heartbeat at time `at` of the loop, and then every `interval` seconds."""
        asyncio.get_running_loop().call_at(at, self._beat, at, interval)

    def _beat(self, at: float, interval: float) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._heartbeat)
            self.beat(at + interval, interval)

    def _ask(self, request_id: int, request: Request) -> asyncio.Future[None]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(_frame(request_id, request))
        return self._answer

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        received = self._received + data if self._received else data
        begin = 0
        while begin + PRELUDE.size <= len(received):
            _, _, _, header, payload = PRELUDE.unpack_from(received, begin)
            end = begin + PRELUDE.size + header + payload
            if end > len(received):
                break
            self._take(decode_header(received[begin + PRELUDE.size : end - payload]))
            begin = end
        self._received = received[begin:]

    def _take(self, header: Header) -> None:
        if header.op != "ok":
            self._fail(f"{header.op} {header.fields}")
        elif header.id < _HEARTBEAT_ID and self._answer is not None:
            decode_reply(header, Welcome if header.id == 1 else Joined)
            self._answer.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._fail(f"{type(exc).__name__}: {exc}" if exc else "closed by the server")

    def _fail(self, reason: str) -> None:
        if not self._failure.done():
            self._failure.set_exception(CrowdFailed(f"{self._name}: {reason}"))


def _frame(request_id: int, request: Request) -> bytes:
    header = encode_request(request_id, request)
    return encode_prelude(len(header), 0) + header
