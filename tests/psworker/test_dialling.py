import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from protocol.addresses import split_address
from protocol.connection import Connection, RefuseAll, Traffic
from protocol.errors import BadRequest, Unreachable, VersionMismatch
from protocol.messages import Hello
from psserver.server import Server, ServerSettings
from psworker import dialling
from psworker.dialling import reach
from tests.cluster import hello, running_cluster
from tests.ports import reserved_port


async def reached(host: str, port: int, *, within: float, said: Hello | None = None) -> Connection:
    return await reach(
        host, port, hello=said or hello(), within=within, traffic=Traffic(), handler=RefuseAll()
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("some.host:1", ("some.host", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("::1:7070", ("::1", 7070)),  # as a server that listens on ::1 writes it
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:-1",
        "host:1.0",
        "host:²",
        "host:" + "9" * 5000,
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(BadRequest, match="HOST:PORT") as caught:
        split_address(address)
    assert caught.value.field == "address"


@pytest.mark.parametrize("within", [0.0, 0.05])
async def test_nobody_answers(within: float) -> None:
    with reserved_port() as port, pytest.raises(Unreachable) as caught:
        await reached("127.0.0.1", port, within=within)
    assert (caught.value.field, caught.value.value) == ("server", f"127.0.0.1:{port}")
    assert "psserver" in str(caught.value)


async def test_a_server_that_comes_later_is_reached() -> None:
    with reserved_port() as port:
        reaching = asyncio.create_task(reached("127.0.0.1", port, within=60.0))
        await asyncio.sleep(0)  # it has begun; whether it has failed once or not is all the same
        server = Server(ServerSettings(port=port))
        await server.start()
        try:
            connection = await reaching
            assert connection.is_open
            connection.close()
            await connection.wait_closed()
        finally:
            await server.stop()


@asynccontextmanager
async def mute_server() -> AsyncIterator[int]:
    """It takes connections and says nothing, as one that hangs."""
    writers = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_ANSWER_WITHIN", 0.01)
    async with mute_server() as port:
        with pytest.raises(Unreachable, match=r"no answer within 0\.01 s"):
            await reached("127.0.0.1", port, within=0.0)


async def test_a_server_that_is_full_is_asked_again() -> None:
    async with running_cluster(max_connections=1, kept_connections=0) as cluster:
        host, port = cluster.endpoint
        first = await reached(host, port, within=0.0)
        with pytest.raises(Unreachable):
            await reached(host, port, within=0.05)
        second = asyncio.create_task(reached(host, port, within=60.0))
        first.close()
        await first.wait_closed()
        connection = await second
        connection.close()
        await connection.wait_closed()


async def test_a_server_of_another_version_is_not_asked_again() -> None:
    async with running_cluster() as cluster:
        host, port = cluster.endpoint
        with pytest.raises(VersionMismatch):
            await reached(host, port, within=60.0, said=Hello((99,), "test"))
