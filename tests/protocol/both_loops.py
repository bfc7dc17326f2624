"""Two connections over loopback TCP, on uvloop and on asyncio's own loop, for tests of what passes.

A scenario runs on both loops, and a third time through TLS.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import msgpack
import numpy as np
import pytest
import uvloop

from protocol.connection import Array, Connection, Handler, Traffic
from protocol.errors import BadTensor, PSError
from protocol.frames import PRELUDE, encode_prelude
from protocol.messages import Pull, Pulled, Push, Pushed, PushPull
from protocol.tensors import DTYPES, Part, dtype_name
from protocol.tls_layer import TLSLayer
from tests.certificates import ready_made

LIMIT = 64 << 20
REFUSED_STEP = 13
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
WAYS: dict[str, tuple[LoopFactory, bool]] = {
    **{name: (factory, False) for name, factory in LOOPS.items()},
    "uvloop-tls": (uvloop.new_event_loop, True),
}


def on_both_loops(scenario: Callable[["Link"], Awaitable[None]]) -> Callable[[LoopFactory, bool], None]:
    """Make a test of ``scenario`` that runs once on each kind of loop, and once through TLS."""

    @pytest.mark.parametrize(("loop_factory", "secured"), WAYS.values(), ids=WAYS)
    def test(loop_factory: LoopFactory, secured: bool) -> None:
        run_linked(loop_factory, scenario, secured=secured)

    return test


def run_linked(
    loop_factory: LoopFactory, scenario: Callable[["Link"], Awaitable[None]], *, secured: bool = False
) -> None:
    """Run ``scenario`` on a loop of its own; an error that only the loop sees fails it too."""

    async def run() -> None:
        unseen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        async with asyncio.timeout(20), linked(secured=secured) as link:
            await scenario(link)
        assert unseen == []

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


class Echo:
    """A handler that sends back what is pushed, and answers a pull when told to.

    Pushes of ``REFUSED_STEP`` are refused before their payload is looked at.
    """

    def __init__(self) -> None:
        self.held: dict[str, Callable[[], None]] = {}  # the first name of a pull -> answer it
        self.more_held = asyncio.Event()
        self.refusals: list[tuple[str, PSError]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        if isinstance(request, Push | PushPull):
            if request.step == REFUSED_STEP:
                raise BadTensor("an unlucky step", field="step", value=request.step)
            return [np.empty(part.elements, DTYPES[part.dtype]) for part in request.tensors]
        return ()

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        match request:
            case PushPull():
                connection.reply(request_id, Pulled(request.step, request.tensors), arrays)
            case Push():
                connection.reply(request_id, Pushed(request.step))
            case Pull():
                answer = partial(connection.reply, request_id, Pulled(0, parts([ANSWER])), [ANSWER])
                self.held[request.names[0]] = answer
                self.more_held.set()
            case _:
                connection.fail(request_id, request.op, BadTensor("no echo", field="op", value=request.op))

    async def has_held(self, count: int) -> None:
        """Return when ``count`` pulls wait for their answers."""
        while len(self.held) < count:
            self.more_held.clear()
            await self.more_held.wait()

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        self.refusals.append((op, error))

    def lost(self, connection: Connection) -> None:
        self.ended.set_result(None)


ANSWER = np.arange(5, dtype=np.int32)


class Watched(Connection):
    """A connection that says when bytes came, and where they went."""

    def __init__(self, handler: Handler, *, server: bool) -> None:
        super().__init__(handler, max_payload=LIMIT, traffic=Traffic(), server=server)
        self.handler = handler
        self.targets: list[Array] = []
        self.direct = 0  # bytes that were received straight into one of the targets
        self._into_target = False
        self._came = asyncio.Event()
        self.paused = asyncio.Event()  # once it had to stop writing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = super().get_buffer(sizehint)
        raw = np.frombuffer(buffer, np.uint8)
        self._into_target = any(np.shares_memory(raw, target) for target in self.targets)
        return buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.direct += nbytes * self._into_target
        super().buffer_updated(nbytes)
        self._came.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused.set()

    @property
    def sent(self) -> int:
        return self._traffic.sent

    async def has_received(self, count: int) -> None:
        """Return when ``count`` bytes in all have come."""
        while self.received < count:
            self._came.clear()
            await self._came.wait()


@dataclass
class Link:
    """A client and a server that are connected, and where further clients and servers can be made."""

    client: Watched
    server: Watched
    address: tuple[str, int]
    accepted: asyncio.Queue[Watched] = field(default_factory=asyncio.Queue)
    ends: list[Watched] = field(default_factory=list)  # all that were made, to be closed at the end
    tls: ssl.SSLContext | None = None  # how further clients have to connect

    @property
    def echo(self) -> Echo:
        assert isinstance(self.server.handler, Echo)
        return self.server.handler

    async def another(self) -> tuple[Watched, Watched]:
        """Return a further client, and the server's end of its connection."""
        client = Watched(Echo(), server=False)
        await connect_to(self.address, client, self.tls)
        self.ends.append(client)
        return client, await self.accepted.get()

    async def raw_client(self) -> tuple["Raw", Watched]:
        """Return a peer without any manners, and the server's end of its connection."""
        raw = Raw(*await asyncio.open_connection(*self.address, ssl=self.tls))
        return raw, await self.accepted.get()


class Raw:
    """A peer that sends any bytes, and reads frames when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def frame(self) -> tuple[dict[str, Any], bytes]:
        """Return the next frame's header and payload."""
        *_, header, payload = PRELUDE.unpack(await self.reader.readexactly(PRELUDE.size))
        fields = msgpack.unpackb(await self.reader.readexactly(header))
        return fields, await self.reader.readexactly(payload)

    async def rest(self) -> bytes:
        """Return all that comes until the connection ends."""
        return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def frame(fields: dict[str, Any], payload: bytes = b"") -> bytes:
    """Return a frame whose header is any map."""
    header: bytes = msgpack.packb(fields)
    return encode_prelude(len(header), len(payload)) + header + payload


def parts(arrays: Sequence[Array]) -> tuple[Part, ...]:
    """Return the description of ``arrays``."""
    return tuple(Part(f"t{n}", dtype_name(array.dtype), array.size) for n, array in enumerate(arrays))


async def connect_to(address: tuple[str, int], client: Connection, tls: ssl.SSLContext | None) -> None:
    """Connect a client, through TLS if there is a context for it."""
    layer = client if tls is None else TLSLayer(client, tls, host=address[0])
    await asyncio.get_running_loop().create_connection(lambda: layer, *address)
    if isinstance(layer, TLSLayer):
        await layer.established()


@asynccontextmanager
async def linked(*, secured: bool = False) -> AsyncIterator[Link]:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[Watched] = asyncio.Queue()
    ends: list[Watched] = []
    serving, tls = ready_made() if secured else (None, None)

    def accept() -> asyncio.BufferedProtocol:
        connection = Watched(Echo(), server=True)
        ends.append(connection)
        accepted.put_nowait(connection)
        return connection if serving is None else TLSLayer(connection, serving.context)

    listener = await loop.create_server(accept, "127.0.0.1", 0)
    address = listener.sockets[0].getsockname()
    client = Watched(Echo(), server=False)
    await connect_to(address, client, tls)
    ends.append(client)
    server = await accepted.get()
    try:
        yield Link(client, server, address, accepted, ends, tls)
    finally:
        listener.close()
        for connection in ends:
            connection.abort()
            await connection.wait_closed()


@asynccontextmanager
async def dialled_by(serve: Callable[[Raw], Coroutine[Any, Any, None]]) -> AsyncIterator[Watched]:
    """Yield a client of a server that is nothing but ``serve``; its errors come out at the end."""
    ends: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
    listener = await asyncio.start_server(
        lambda reader, writer: ends.set_result(Raw(reader, writer)), "127.0.0.1", 0
    )
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: Watched(Echo(), server=False), *listener.sockets[0].getsockname()
    )
    raw = await ends
    serving = loop.create_task(serve(raw))
    try:
        yield client
        await serving
    finally:
        listener.close()
        client.abort()
        await client.wait_closed()
        await raw.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
