"""Examples as text, each with the place in its stream to go on from after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from psworker.data.lines import MAX_LINE
from psworker.data.rows import Position
from psworker.errors import DataError

__all__ = ["LineSplitter", "Record", "Stream", "Streams", "text_of"]


class Record(NamedTuple):
    """One example as it came, without a line end. ``offset`` is where the stream goes on after it."""

    text: bytes
    offset: int


class Stream(Protocol):
    """One partition of a stream, open for reading.

    Attributes:
        header: the line that names the columns; None: there is none.
    """

    header: str | None

    async def read(self) -> Sequence[Record]:
        """Return the next records, waiting for the first; none where the stream has ended.

        A call that is cancelled loses nothing that another ``read`` would not give.

        Raises:
            DataError: the stream cannot be read.
        """

    def position(self, record: Record) -> Position:
        """Say to people where a record is that ``read`` has returned."""

    def done(self, offset: int) -> None:
        """Hear that the examples before ``offset`` have been learnt from, and will not be asked for again."""

    async def close(self) -> None:
        """Let go of it."""


class Streams(Protocol):
    """The partitions of an endless source, each of which one worker reads at a time.

    Attributes:
        partitions: how many there are.
    """

    partitions: int

    async def open(self, partition: int, skip: int) -> Stream:
        """Open a partition at the offset ``skip``; 0: at its beginning.

        Raises:
            DataError: it cannot be opened.
        """

    async def close(self) -> None:
        """Let go of everything."""


class LineSplitter:
    """Cuts bytes into lines as they come. A state machine without I/O.

    Args:
        name: of the source, for errors.

    Attributes:
        taken: bytes of the lines that were given out, their ends included.
    """

    def __init__(self, name: str) -> None:
        self.taken = 0
        self._name = name
        self._rest = b""

    def feed(self, data: bytes) -> list[Record]:
        """Return the lines that are complete now, without their ends; offsets count bytes from here on.

        Raises:
            DataError: a line has no end.
        """
        *lines, self._rest = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        if len(self._rest) > MAX_LINE:
            reason = f"a line is longer than {MAX_LINE >> 20} MiB; is this text of one example per line?"
            raise DataError(self._name, None, reason)
        return [self._record(line, len(line) + 1) for line in lines]

    def rest(self) -> list[Record]:
        """Return the last line, where the stream has ended without a line end after it."""
        line, self._rest = self._rest, b""
        return [self._record(line, len(line))] if line else []

    def _record(self, line: bytes, size: int) -> Record:
        self.taken += size
        return Record(line.removesuffix(b"\r"), self.taken)


def text_of(name: str, line: bytes) -> str:
    """Return a line as text.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: {line[:40]!r}; have the stream write UTF-8"
        raise DataError(name, None, reason) from error
