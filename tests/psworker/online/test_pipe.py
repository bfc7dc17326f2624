import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from psworker.errors import DataError
from psworker.online.pipe import PipeStream, StandardInput, TcpLines
from psworker.online.records import Record


def stream_of(*blocks: bytes, header: bool = False, replays: bool = False, skip: int = 0) -> PipeStream:
    left = iter(blocks)

    async def read_block() -> bytes:
        return next(left, b"")

    return PipeStream("test", read_block, header=header, replays=replays, skip=skip)


async def all_of(stream: PipeStream) -> list[Record]:
    await stream.begin()
    found: list[Record] = []
    while records := await stream.read():
        found += records
    return found


async def test_lines_are_counted() -> None:
    found = await all_of(stream_of(b"a\nb", b"c\n", b"d"))
    assert found == [Record(b"a", 1), Record(b"bc", 2), Record(b"d", 3)]


async def test_what_comes_after_a_restart_is_counted_on() -> None:
    assert await all_of(stream_of(b"a\nb\n", skip=5)) == [Record(b"a", 6), Record(b"b", 7)]


async def test_what_is_sent_again_is_passed_over() -> None:
    assert await all_of(stream_of(b"a\nb\n", b"c\n", replays=True, skip=2)) == [Record(b"c", 3)]
    assert await all_of(stream_of(b"a\nb\n", replays=True, skip=2)) == []


@pytest.mark.parametrize("replays", [False, True])
async def test_the_header_is_not_counted(replays: bool) -> None:
    stream = stream_of(b"x", b",y\n1,2\n", b"3,4\n", header=True, replays=replays)
    assert await all_of(stream) == [Record(b"1,2", 1), Record(b"3,4", 2)]
    assert stream.header == "x,y"


async def test_what_was_not_learnt_from_comes_again() -> None:
    stream = stream_of(b"a\nb\nc\n", b"d\n")
    assert len(await stream.read()) == 3
    stream.done(1)
    stream.again(2)  # the push of b had arrived, and its answer had not
    assert await stream.read() == [Record(b"c", 3)]
    assert await stream.read() == [Record(b"d", 4)]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


async def test_standard_input_is_read_as_it_comes(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    source = StandardInput(1, header=False, replays=False, descriptor=reading)
    stream = await source.open(0, 0)
    os.write(writing, b"a\nb")
    assert await stream.read() == [Record(b"a", 1)]
    interrupted = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    interrupted.cancel()
    await asyncio.gather(interrupted, return_exceptions=True)
    os.write(writing, b"c\n")
    assert await stream.read() == [Record(b"bc", 2)]  # nothing was lost with the reader
    stream = await source.open(0, 1)  # this worker was taken for dead, and has joined again
    assert await stream.read() == [Record(b"bc", 2)]
    os.close(writing)
    assert await stream.read() == []


class Sender:
    """Sends these texts, one to each connection."""

    def __init__(self, *texts: bytes) -> None:
        self._texts = iter(texts)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = next(self._texts, None)
        if text is None:
            await reader.read()  # as long as the client likes
        else:
            writer.write(text)
        writer.close()


async def from_tcp(texts: Sequence[bytes], lines: int, **settings: bool) -> tuple[str | None, list[Record]]:
    server = await asyncio.start_server(Sender(*texts), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    defaults = {"header": False, "replays": False}
    source = TcpLines("127.0.0.1", port, reconnect_for=10.0, **{**defaults, **settings})
    stream = await source.open(0, 0)
    found: list[Record] = []
    try:
        async with asyncio.timeout(20):
            while len(found) < lines:
                found += await stream.read()
    finally:
        await stream.close()
        server.close()
    return stream.header, found


async def test_a_connection_that_ends_is_made_anew() -> None:
    assert (await from_tcp([b"a\nb\n", b"c\n"], 3))[1] == [Record(b"a", 1), Record(b"b", 2), Record(b"c", 3)]


async def test_what_each_connection_sends_again_is_passed_over() -> None:
    _, found = await from_tcp([b"a\nb\n", b"a\nb\nc\n"], 3, replays=True)
    assert found == [Record(b"a", 1), Record(b"b", 2), Record(b"c", 3)]


async def test_each_connection_begins_with_the_header() -> None:
    header, found = await from_tcp([b"x\n1\n", b"", b"x\n2\n"], 2, header=True)
    assert (header, found) == ("x", [Record(b"1", 1), Record(b"2", 2)])
    with pytest.raises(DataError, match="the header was 'x' and is 'y'"):
        await from_tcp([b"x\n1\n", b"y\n2\n"], 2, header=True)


async def test_nobody_sends(unused_tcp_port: int) -> None:
    source = TcpLines("127.0.0.1", unused_tcp_port, header=False, replays=False, reconnect_for=0.0)
    with pytest.raises(DataError, match=f"tcp://127.0.0.1:{unused_tcp_port}: nobody sends lines there"):
        await source.open(0, 0)
