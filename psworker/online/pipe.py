"""Lines from standard input or a TCP connection: what was read there cannot be read again.

Offsets count lines. A source that sends all from the beginning to each reader ``replays``: of that as many
lines are passed over as were learnt from before. Else a reader goes on with the next line that comes, and
what a process had read and not learnt from is lost with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from protocol.backoff import Backoff
from protocol.events import about
from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.online.records import LineSplitter, Record, text_of

__all__ = ["PipeStream", "StandardInput", "TcpLines"]

_log = logging.getLogger(__name__)

_BLOCK: Final = 1 << 16

ReadBlock = Callable[[], Awaitable[bytes]]


class PipeStream:
    """Lines of bytes that come and go.

    Args:
        name: of the source, for errors.
        read_block: returns some bytes, waiting for the first; none at the end.
        header: whether the first line names the columns. It is no example, and not counted.
        replays: whether what comes is all from the beginning.
        skip: lines learnt from before.
    """

    def __init__(self, name: str, read_block: ReadBlock, *, header: bool, replays: bool, skip: int) -> None:
        self.header: str | None = None
        self._name = name
        self._read_block = read_block
        self._wants_header = header
        self._headers = int(header)
        self._splitter = LineSplitter(name)
        self._left_out = skip if replays else 0
        self._line = 0 if replays else skip
        self._unlearnt: deque[Record] = deque()  # given out since the last ``done``
        self._again: list[Record] = []
        self._ended = False

    async def begin(self) -> None:
        """Read the header."""
        while self._wants_header and not self._ended:
            self._again += await self._more()

    async def read(self) -> Sequence[Record]:
        """See ``Stream.read``."""
        records: list[Record] = []
        records, self._again = self._again, records
        while not records and not self._ended:
            records = await self._more()
        self._unlearnt.extend(records)
        return records

    async def _more(self) -> list[Record]:
        block = await self._read_block()
        self._ended = not block
        lines = self._splitter.feed(block) if block else self._splitter.rest()
        if self._wants_header and lines:
            self.header, self._wants_header = text_of(self._name, lines.pop(0).text), False
        first = self._line + 1
        self._line += len(lines)
        return [Record(line.text, n) for n, line in enumerate(lines, first) if n > self._left_out]

    def position(self, record: Record) -> Position:
        """See ``Stream.position``: the line, counted from the first one ever, a header included."""
        return Position(self._name, self._headers + record.offset)

    def done(self, offset: int) -> None:
        """See ``Stream.done``."""
        while self._unlearnt and self._unlearnt[0].offset <= offset:
            self._unlearnt.popleft()

    def again(self, skip: int | None) -> None:
        """Have what was given out and not learnt from be given out again, but for what is before ``skip``."""
        if skip is not None:
            self.done(skip)
        self._again = [*self._unlearnt, *self._again]
        self._unlearnt.clear()

    async def close(self) -> None:
        """See ``Stream.close``."""


class StandardInput:
    """This process's standard input, as whichever partition it is given first.

    Args:
        partitions: one for each worker, which all have a standard input of their own.
        header: see ``PipeStream``.
        replays: see ``PipeStream``.
        descriptor: what is read.
    """

    name: Final = "standard input"

    def __init__(self, partitions: int, *, header: bool, replays: bool, descriptor: int = 0) -> None:
        self.partitions = partitions
        self._header = header
        self._replays = replays
        self._blocks = _Blocks(descriptor)
        self._stream: PipeStream | None = None
        self._partition = 0

    async def open(self, partition: int, skip: int) -> PipeStream:
        """See ``Streams.open``; opened once more, it goes on where it was."""
        if self._stream is None:
            made = PipeStream(
                self.name, self._blocks.next, header=self._header, replays=self._replays, skip=skip
            )
            self._stream, self._partition = made, partition
            await made.begin()
        else:
            self._stream.again(skip if partition == self._partition else None)
        return self._stream

    async def close(self) -> None:
        """See ``Streams.close``; a read under way ends with this process."""


class _Blocks:
    """Reads a descriptor of any kind, in a thread that nobody has to wait for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._asked: queue.SimpleQueue[asyncio.Future[bytes]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._reading: asyncio.Future[bytes] | None = None

    async def next(self) -> bytes:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="stream", daemon=True)
            self._thread.start()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_future()
            self._asked.put(self._reading)
        block = await asyncio.shield(self._reading)  # if this is cancelled, the next call gets it
        self._reading = None
        return block

    def _read(self) -> None:
        while True:
            future = self._asked.get()
            try:
                block = os.read(self._descriptor, _BLOCK)
            except OSError:
                block = b""  # a terminal that has gone
            try:
                future.get_loop().call_soon_threadsafe(_resolve, future, block)
            except RuntimeError:  # the loop is closed
                return


def _resolve(future: asyncio.Future[bytes], block: bytes) -> None:
    if not future.done():
        future.set_result(block)


class TcpLines:
    """Lines that a program sends to whoever connects; when a connection ends another one is made.

    Args:
        host: to connect to.
        port: to connect to.
        header: whether the first line of each connection names the columns.
        replays: whether each connection begins with the first line ever.
        reconnect_for: seconds to keep trying while nobody is there.
    """

    partitions = 1

    def __init__(self, host: str, port: int, *, header: bool, replays: bool, reconnect_for: float) -> None:
        self.name = f"tcp://{host}:{port}"
        self._host = host
        self._port = port
        self._header = header
        self._replays = replays
        self._reconnect_for = reconnect_for

    async def open(self, partition: int, skip: int) -> _TcpStream:
        """See ``Streams.open``."""
        stream = _TcpStream(self, skip)
        try:
            await stream.connect()
        except BaseException:
            await stream.close()
            raise
        return stream

    async def close(self) -> None:
        """See ``Streams.close``: every stream closes its own connection."""

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect.

        Raises:
            DataError: nobody was there in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._reconnect_for
        backoff = Backoff()
        warned = False
        while True:
            try:
                return await asyncio.open_connection(self._host, self._port)
            except OSError as error:
                if loop.time() >= deadline:
                    reason = (
                        f"nobody sends lines there ({error.strerror or error}); start the program that does"
                    )
                    raise DataError(self.name, None, reason) from error
                if not warned:
                    _log.warning("%s: %s; trying for %g s", self.name, error, self._reconnect_for,
                                 extra=about("stream.unreachable"))  # fmt: skip
                    warned = True
            await asyncio.sleep(backoff.pause(deadline - loop.time()))

    def lines(self, reader: asyncio.StreamReader, skip: int) -> PipeStream:
        """Return what comes over a connection."""

        async def read_block() -> bytes:
            try:
                return await reader.read(_BLOCK)
            except OSError:
                return b""  # broken; as good as ended

        return PipeStream(self.name, read_block, header=self._header, replays=self._replays, skip=skip)


class _TcpStream:
    """A stream that goes on over any number of connections."""

    def __init__(self, source: TcpLines, skip: int) -> None:
        self.header: str | None = None
        self._source = source
        self._reached = skip
        self._lines: PipeStream | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Have a connection whose header has been read."""
        backoff = Backoff()
        while self._lines is None:
            reader, self._writer = await self._source.dial()
            lines = self._source.lines(reader, self._reached)
            await lines.begin()
            if self._source._header and lines.header is None:  # it ended before the first line
                await self.close()
                await asyncio.sleep(backoff.pause(1.0))
                continue
            if self.header is not None and lines.header != self.header:
                reason = (
                    f"the header was {self.header!r} and is {lines.header!r}; start a job for each of them"
                )
                raise DataError(self._source.name, None, reason)
            self.header, self._lines = lines.header, lines

    async def read(self) -> Sequence[Record]:
        """See ``Stream.read``; this one does not end."""
        backoff = Backoff()
        while True:
            await self.connect()
            assert self._lines is not None  # noqa: S101 (connect has seen to it)
            records = await self._lines.read()
            if records:
                self._reached = records[-1].offset
                return records
            await self.close()
            await asyncio.sleep(backoff.pause(1.0))

    def position(self, record: Record) -> Position:
        """See ``Stream.position``: how many examples came before is known, not over which connection."""
        return Position(f"{self._source.name}, example {record.offset}")

    def done(self, offset: int) -> None:
        """See ``Stream.done``."""

    async def close(self) -> None:
        """See ``Stream.close``."""
        self._lines, writer, self._writer = None, self._writer, None
        if writer is not None:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
