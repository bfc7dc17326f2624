"""The ceiling of latency for an event loop: a uvloop echo server and a uvloop client."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import cast

import uvloop

from benchmarks.child_processes import child_process, exit_with_parent, loopback_listener
from benchmarks.systems.closed_loop import LEAST_OPERATIONS, WARM_UP_SHARE
from benchmarks.systems.interface import Operation
from benchmarks.systems.verification import WrongResult, make_gradient


@dataclass(frozen=True, slots=True)
class EchoServer:
    """Where the server listens, and its process."""

    address: tuple[str, int]
    pid: int


@contextmanager
def echo_server() -> Iterator[EchoServer]:
    """Run a server that sends back whatever it gets, in a process of its own."""
    with ExitStack() as stack:
        with loopback_listener() as listener:
            process = stack.enter_context(child_process(_serve, listener))
            address = listener.getsockname()
        yield EchoServer(address, cast(int, process.pid))


class UvloopEcho:
    """One round trip of `nbytes` bytes: there, and the same bytes back."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._loop = uvloop.new_event_loop()
        self._client = _EchoClient()

    def start(self) -> None:
        """Start the server process and connect to it."""
        server = self._resources.enter_context(echo_server())
        self._loop.run_until_complete(self._loop.create_connection(lambda: self._client, *server.address))

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds of one round trip; `operation` is push_pull."""
        if operation != "push_pull":
            raise ValueError(f"operation {operation!r}: an echo goes both ways, use 'push_pull'")
        frame = make_gradient(nbytes).tobytes()
        for duration in (seconds * WARM_UP_SHARE, seconds):
            mean = self._loop.run_until_complete(self._client.repeat(frame, duration))
        return mean

    def stop(self) -> None:
        """Close the connection and end the server process."""
        self._client.close()
        self._loop.close()
        self._resources.close()


class _EchoClient(asyncio.Protocol):
    """Sends a frame, waits until all of it is back, sends it again."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._mean: asyncio.Future[float] | None = None
        self._frame = b""
        self._echo = bytearray()
        self._done = 0
        self._begin = 0.0
        self._seconds = 0.0

    async def repeat(self, frame: bytes, seconds: float) -> float:
        """Return the mean seconds of a round trip of `frame`, repeated for `seconds`."""
        if self._transport is None:
            raise ConnectionError("echo: not connected; call start() first")
        self._mean = asyncio.get_running_loop().create_future()
        self._frame, self._seconds, self._done = frame, seconds, 0
        self._begin = perf_counter()
        self._transport.write(frame)
        return await self._mean

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._echo += data
        if len(self._echo) >= len(self._frame) and self._transport and self._mean:
            self._finish_round_trip(self._transport, self._mean)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._mean is not None and not self._mean.done():
            self._mean.set_exception(exc or ConnectionError("echo: closed by the server"))

    def _finish_round_trip(self, transport: asyncio.Transport, mean: asyncio.Future[float]) -> None:
        if self._done == 0 and self._echo != self._frame:
            mean.set_exception(WrongResult("echo: other bytes came back than were sent"))
            return
        self._echo.clear()
        self._done += 1
        elapsed = perf_counter() - self._begin
        if elapsed >= self._seconds and self._done >= LEAST_OPERATIONS:
            mean.set_result(elapsed / self._done)
        else:
            transport.write(self._frame)


class _EchoServer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def _serve(listener: socket.socket) -> None:
    exit_with_parent()
    uvloop.run(_serve_forever(listener))


async def _serve_forever(listener: socket.socket) -> None:
    listener.setblocking(False)
    server = await asyncio.get_running_loop().create_server(_EchoServer, sock=listener)
    await server.serve_forever()
