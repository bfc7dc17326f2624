"""What only TLS does; that a connection works the same on top of it, test_connection says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from protocol.connection import Traffic, dial
from protocol.errors import ConnectionLost, PSError, Unauthenticated
from protocol.frames import MAGIC
from protocol.messages import Push, Pushed
from protocol.tls_layer import TLSLayer
from tests.certificates import ready_made
from tests.protocol.both_loops import LIMIT, Echo, Link, Watched, linked, on_both_loops, parts

REFUSAL = b"in plain"


@asynccontextmanager
async def secured() -> AsyncIterator[tuple[tuple[str, int], asyncio.Queue[Watched]]]:
    """A server that answers in plain whom it understands; its address, and what it accepts."""
    serving, _ = ready_made()
    accepted: asyncio.Queue[Watched] = asyncio.Queue()

    def accept() -> TLSLayer:
        connection = Watched(Echo(), server=True)
        accepted.put_nowait(connection)
        return TLSLayer(connection, serving.context, channel=serving.channel, refusal=REFUSAL)

    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[:2], accepted
    finally:
        listener.close()


async def answer_to(address: tuple[str, int], sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    try:
        return await reader.read()
    except ConnectionResetError:  # not all of it was read at the other end
        return b""
    finally:
        writer.close()


def why(connection: Watched) -> list[PSError]:
    return [error for _, error in connection.handler.refusals]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (MAGIC + bytes(100), True),
        (MAGIC[:2], True),
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"\x16\x03\x01\xff\xff" + bytes(70_000), False),
        (b"\x16\x03\x01\x00\x04junk", False),
        (b"\x00" * 1000, False),
    ],
    ids=["ours", "the begin of ours", "http", "a record too long", "junk", "zeros"],
)
async def test_who_speaks_no_tls_is_shown_out(sent: bytes, told: bool) -> None:
    async with secured() as (address, accepted):
        answer = await answer_to(address, sent)
        connection = await accepted.get()
        await connection.wait_closed()
        assert answer.startswith(REFUSAL) == told
        (error,) = why(connection)
        assert isinstance(error, Unauthenticated)
        assert error.field == "tls"
        assert connection.received == 0


async def test_garbage_after_the_handshake_ends_the_connection() -> None:
    async with secured() as (address, accepted):
        _, tls = ready_made()
        client = await dial(*address, Echo(), max_payload=LIMIT, traffic=Traffic(), tls=tls)
        server = await accepted.get()
        client._transport._lower.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # type: ignore[union-attr]
        await server.wait_closed()
        await client.wait_closed()
        assert isinstance(client.error, PSError)
        assert [error.field for error in why(server)] == ["tls"]


async def test_both_ends_see_the_same_channel() -> None:
    async with secured() as (address, accepted):
        serving, tls = ready_made()
        client = await dial(*address, Echo(), max_payload=LIMIT, traffic=Traffic(), tls=tls)
        server = await accepted.get()
        assert client.channel == server.channel == serving.channel
        client.close()
        await client.wait_closed()
        await server.wait_closed()


async def test_without_tls_there_is_no_channel() -> None:
    async with linked() as link:
        assert (link.client.channel, link.server.channel) == (b"", b"")


class Plain(asyncio.Protocol):
    """A server that does what it was told as soon as a byte comes: answer and end, or nothing."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is not None and isinstance(self.transport, asyncio.Transport):
            self.transport.write(self._answer)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def dial_plain(answer: bytes | None) -> None:
    """Dial a server that speaks no TLS with a client that does; it has ended when this returns."""
    plain = Plain(answer)
    listener = await asyncio.get_running_loop().create_server(lambda: plain, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    _, tls = ready_made()
    try:
        await dial(host, port, Echo(), max_payload=LIMIT, traffic=Traffic(), tls=tls)
    finally:
        listener.close()
        await plain.ended.wait()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", MAGIC + bytes(64), b"\x15\x03\x03\x00\x02\x02\x46"]
)
async def test_a_server_that_speaks_no_tls(answer: bytes) -> None:
    with pytest.raises(Unauthenticated, match="TLS"):
        await dial_plain(answer)


async def test_a_server_that_ends_the_handshake_may_be_asked_again() -> None:
    with pytest.raises(OSError, match="handshake"):
        await dial_plain(b"")


async def test_who_gives_up_in_the_handshake_leaves_nothing_behind() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await dial_plain(None)


async def test_what_is_sent_before_the_handshake_is_done_waits_for_it() -> None:
    async with secured() as (address, _):
        _, tls = ready_made()
        client = Watched(Echo(), server=False)
        await asyncio.get_running_loop().create_connection(
            lambda: TLSLayer(client, tls, host=address[0]), *address
        )
        array = np.ones(1 << 20, np.uint8)
        reply, _ = await client.request(Push(parts([array]), 3, 1), [array])
        assert reply == Pushed(3)
        client.close()
        await client.wait_closed()


@on_both_loops
async def test_all_that_waits_is_sent_before_a_close(link: Link) -> None:
    array = np.ones(8 << 20, np.uint8)
    link.client.notify(Push((), 1, 1))
    sent = link.client.send(Push(parts([array]), 5, 1), [array])
    link.client.close()
    await link.server.wait_closed()
    assert link.server.received > array.nbytes
    with pytest.raises(ConnectionLost):
        await sent


async def test_a_peer_that_dies_in_the_midst_is_an_end_like_any() -> None:
    async with secured() as (address, accepted):
        _, tls = ready_made()
        client = await dial(*address, Echo(), max_payload=LIMIT, traffic=Traffic(), tls=tls)
        server = await accepted.get()
        client.abort()
        await server.wait_closed()
        assert why(server) == []
        assert isinstance(server.error, ConnectionLost)
