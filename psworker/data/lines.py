"""Chunks of a text file by byte range, cut at line ends.

As with Hadoop's input splits, chunk i is the lines that START in bytes [i * B, (i + 1) * B) after the
header, so every line is in exactly one chunk and a reader needs no index. B follows from the
file alone, so all workers cut alike. At most one chunk is ever held in memory.

A line ends in \\n or \\r\\n, the last one with or without. The text is UTF-8, with or without BOM.
"""

import codecs
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from psworker.errors import DataError

MAX_LINE = 64 << 20
"""Bytes of the longest line that is read."""

MAX_CHUNK = 8 << 20
"""Bytes of the largest B: a chunk passes through several copies on its way to numbers."""

MAX_ROWS = 1 << 19
"""Lines of the largest chunk: each is an object of its own, however short."""

_SAMPLE = 1 << 20


@dataclass(frozen=True, slots=True)
class LineChunks:
    """How the bytes [start, size) of the file `path` are cut into chunks of about `chunk_bytes`."""

    path: str
    start: int
    size: int
    chunk_bytes: int

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-(self.size - self.start) // self.chunk_bytes)

    def read(self, chunk: int) -> tuple[int, list[str]]:
        """The byte offset of the chunk's first line, and its lines without their ends, empty ones too.

        Raises DataError if they cannot be read, IndexError if there is no such chunk.
        """
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of {self.path}, which has {self.chunks}")
        begin = self.start + chunk * self.chunk_bytes
        end = min(begin + self.chunk_bytes, self.size)
        with open_file(self.path) as file:
            # The line that reaches into this chunk, if any, is of an earlier one. Beginning one byte
            # early, we pass over just a line end if a line starts exactly here.
            file.seek(begin - 1 if chunk else begin)
            if chunk:
                _read_line(file, self.path)
            offset = file.tell()
            if offset >= end:
                return offset, []
            text = file.read(end - offset)
            if not text.endswith(b"\n"):
                file.seek(offset + text.rfind(b"\n") + 1)
                text = text[: text.rfind(b"\n") + 1] + _read_line(file, self.path)
        return offset, _split(text, offset, self.path)


def open_lines(path: str, chunk_rows: int, *, header: bool) -> tuple[str, LineChunks]:
    """The header line of a file ("" if it has none) and how the rest is cut into chunks.

    Chunks hold about `chunk_rows` lines, judged by the mean line of the first MiB, but at most about
    MAX_ROWS, and never more than MAX_CHUNK bytes plus the rest of a line. Raises DataError if the
    file cannot be read or has no lines.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        first = _read_line(file, path) if header else b""
        start = file.tell()
        sample = file.read(_SAMPLE)
    if header and not first.strip():
        raise DataError(path, 1, "the header is missing; name the columns in the first line")
    if not sample.strip() and start + len(sample) >= size:
        raise DataError(path, None, "the file has no rows; write at least one example into it")
    mean = len(sample) / max(1, sample.count(b"\n"))
    chunk_bytes = max(1, min(MAX_CHUNK, round(min(chunk_rows, MAX_ROWS) * mean)))
    return "".join(_split(first, 0, path)), LineChunks(path, start, size, chunk_bytes)


def line_number(path: str, offset: int) -> int:
    """The 1-based number of the line that holds byte `offset`; reads all that comes before it."""
    number = 1
    with open_file(path) as file:
        while block := file.read(min(_SAMPLE, offset)):
            number += block.count(b"\n")
            offset -= len(block)
    return number


@contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading; what the system refuses becomes a DataError."""
    try:
        # Opening a pipe would wait for a writer; it could not be read in chunks anyway.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(path, None, "not a regular file; give the path of a file")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DataError(path, None, f"{error.strerror}; correct [data] source or the file") from error


def _read_line(file: BinaryIO, path: str) -> bytes:
    offset = file.tell()
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise DataError(
            path,
            line_number(path, offset),
            f"the line is longer than {MAX_LINE >> 20} MiB; is this a text file of one row per line?",
        )
    return line


def _split(text: bytes, offset: int, path: str) -> list[str]:
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            path, line_number(path, offset + error.start), "not UTF-8; convert the file to UTF-8"
        ) from error
    lines = decoded.removesuffix("\n").split("\n")
    if "\r" in decoded:
        return [line.removesuffix("\r") for line in lines]
    return lines
