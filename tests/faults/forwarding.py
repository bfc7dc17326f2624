"""One connection through the proxy: two sockets, and a pipe for each direction."""

import asyncio
import fcntl
import math
import random
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Literal

from tests.faults.conditions import WAYS, Conditions, Counters, Way

_CHUNK: Final = 1 << 16
_MOST_IN_FLIGHT: Final = 1024  # chunks, so 64 MiB: more than a test's latency times its bandwidth
_SLICES_A_SECOND: Final = 100  # into which a throttled stream is cut
_UNACKNOWLEDGED_POLL: Final = 0.0005

Fate = Literal["cuts", "broken", "lost"]


class Cut(Exception):
    """As many bytes have passed as were to pass."""


def abort(end: socket.socket) -> None:
    """Close a connected socket with a reset."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


class Pipe:
    """One direction. What was read waits here, in order, until the conditions let it pass."""

    def __init__(
        self, way: Way, source: socket.socket, sink: socket.socket, conditions: Conditions,
        counters: Counters, rng: random.Random,
    ) -> None:  # fmt: skip
        self.conditions = conditions
        self.back: Pipe  # the other direction, set by the connection
        self.holed = False  # bytes are missing: nothing that follows would make sense
        self._way = way.replace("-", "_")
        self._source = source
        self._sink = sink
        self._counters = counters
        self._rng = rng
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._in_flight: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(_MOST_IN_FLIGHT)
        self._free_at = 0.0  # when a throttled line has sent what it was given

    def change(self, **fields: Any) -> None:
        """Change the conditions from the next piece on."""
        self.conditions = replace(self.conditions, **fields)
        self._changed.set()

    async def run(self, record: Callable[[bytes], None]) -> None:
        """Pass bytes on until the source ends; each chunk that is read is recorded.

        Raises:
            ExceptionGroup: of ``Cut``, or of an ``OSError`` where an end is gone.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(record))
            group.create_task(self._deliver())

    async def _receive(self, record: Callable[[bytes], None]) -> None:
        while data := await self._read():
            await self._in_flight.put((self._loop.time() + self._lag(), data))
            if isinstance(data, OSError):
                return
            record(data)
            await self._while(lambda now: now.stalled)
        await self._in_flight.put((self._loop.time() + self._lag(), b""))

    async def _read(self) -> bytes | OSError:
        try:
            return await self._loop.sock_recv(self._source, _CHUNK)
        except OSError as error:
            return error  # it is told behind the bytes that are under way

    def _lag(self) -> float:
        now = self.conditions
        if not (now.latency or now.jitter):
            return 0.0
        self._counters.add(delayed=1)
        return now.latency + self._rng.uniform(0, now.jitter)

    async def _deliver(self) -> None:
        while True:
            due, data = await self._in_flight.get()
            await self._clear(due)
            if isinstance(data, OSError):
                await self.audible()
                raise data
            if not data:
                break
            await self._pass_on(memoryview(data), due)
        await self.audible()
        with suppress(OSError):  # it has gone as well, which its own direction will tell
            self._sink.shutdown(socket.SHUT_WR)

    async def _pass_on(self, data: memoryview, due: float) -> None:
        while data:
            await self._clear(due)
            if self.conditions.swallowing:
                self.holed = True
                self._counters.add(swallowed=len(data))
                return
            piece = data[: self._slice(len(data))]
            data = data[len(piece) :]
            self._account(len(piece))
            await self._send(piece)
            self._counters.add(**{self._way: len(piece)})
            if self.conditions.cut_after == 0:
                await self._acknowledged()
                raise Cut

    def _slice(self, size: int) -> int:
        now = self.conditions
        if now.rate is not None:
            size = min(size, max(1, int(now.rate / _SLICES_A_SECOND)))
        return size if now.cut_after is None else min(size, now.cut_after)

    def _account(self, size: int) -> None:
        now = self.conditions
        if now.rate is not None:
            self._free_at = max(self._free_at, self._loop.time()) + size / now.rate
            self._counters.add(throttled=size)
        if now.cut_after is not None:
            self.conditions = replace(now, cut_after=now.cut_after - size)

    async def _send(self, piece: memoryview) -> None:
        try:
            await self._loop.sock_sendall(self._sink, piece)
        except OSError:
            await self.back.audible()  # that the sink is gone is news of the other direction
            raise

    async def _acknowledged(self) -> None:
        # A reset throws away what the kernel still holds; so that exactly those bytes arrive, wait for
        # it to hold none. There is no event for it. A cut, or the proxy's end, ends this by cancelling.
        while struct.unpack("i", fcntl.ioctl(self._sink, termios.TIOCOUTQ, bytes(4)))[0]:  # noqa: ASYNC110
            await asyncio.sleep(_UNACKNOWLEDGED_POLL)

    async def audible(self) -> None:
        """Return when the other end may hear of what happened at this one."""
        self._counters.add(hidden=self.conditions.dark)
        await self._while(lambda now: now.dark)

    async def _while(self, obstructed: Callable[[Conditions], bool]) -> None:
        while obstructed(self.conditions):
            self._changed.clear()
            await self._changed.wait()

    async def _clear(self, due: float) -> None:
        while (time := self._earliest(due)) > self._loop.time():
            self._changed.clear()
            self._counters.add(held=self.conditions.stalled)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if time == math.inf else time):
                    await self._changed.wait()

    def _earliest(self, due: float) -> float:
        now = self.conditions
        if now.stalled:
            return math.inf
        return max(due if now.latency or now.jitter else 0.0, self._free_at if now.rate else 0.0)


class Forwarded:
    """A client's connection and its counterpart to the upstream."""

    def __init__(
        self, client: socket.socket, upstream: tuple[str, int], conditions: dict[Way, Conditions],
        counters: Counters, rng: random.Random, record_at_most: int,
    ) -> None:  # fmt: skip
        self.recorded = bytearray()  # what the client has sent, from the beginning
        self.fate: Fate | None = None  # what it ended of, if not by itself
        self._clean = False
        self._record_at_most = record_at_most
        self._client = client
        self._upstream = upstream
        self._server = unconnected()
        self._counters = counters
        ends = {"to-upstream": (client, self._server), "to-client": (self._server, client)}
        self.pipes = {way: Pipe(way, *ends[way], conditions[way], counters, rng) for way in WAYS}
        self.pipes["to-upstream"].back = self.pipes["to-client"]
        self.pipes["to-client"].back = self.pipes["to-upstream"]

    @property
    def holed(self) -> bool:
        """Whether bytes were swallowed, in either direction."""
        return any(pipe.holed for pipe in self.pipes.values())

    @property
    def swallowing(self) -> bool:
        """Whether bytes are swallowed still, in either direction."""
        return any(pipe.conditions.swallowing for pipe in self.pipes.values())

    async def run(self) -> None:
        """Pass bytes on until both ends have ended, one is lost, or it is cut."""
        try:
            await self._pass_on()
            self._clean = True
        except* Cut:
            self.fate = self.fate or "cuts"
        except* OSError:
            self.fate = self.fate or "lost"

    def close(self) -> None:
        """Close both ends after ``run``, with a reset unless both had ended; count what it ended of."""
        for end in (self._client, self._server):
            if self._clean:
                end.close()
            else:
                abort(end)
        if self.fate is not None:
            self._counters.add(**{self.fate: 1})

    async def _pass_on(self) -> None:
        await asyncio.get_running_loop().sock_connect(self._server, self._upstream)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pipes["to-upstream"].run(self._record))
            group.create_task(self.pipes["to-client"].run(lambda _: None))

    def _record(self, data: bytes) -> None:
        self.recorded += data[: self._record_at_most - len(self.recorded)]


def unconnected() -> socket.socket:
    """Return a socket to connect with, which does not hold small pieces back."""
    end = socket.socket()
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end
