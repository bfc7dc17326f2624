"""Chunks of a text file by byte range, cut at line ends.

As with Hadoop's input splits, chunk i is the lines that START in bytes [i * B, (i + 1) * B) after the
header, so every line is in exactly one chunk and a reader needs no index. B follows from the
file alone, so all workers cut alike. At most one chunk is ever held in memory.

A line ends in \\n or \\r\\n, the last one with or without. The text is UTF-8, with or without BOM.
"""

import codecs
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias

from psworker.data.files import File, open_file
from psworker.errors import DataError

Undecodable: TypeAlias = Literal["strict", "surrogateescape"]
"""Bytes that are not UTF-8 are an error, or each is a lone surrogate of the text."""

MAX_LINE = 64 << 20
"""Bytes of the longest line that is read."""

MAX_CHUNK = 8 << 20
"""Bytes of the largest B: a chunk passes through several copies on its way to numbers."""

MAX_ROWS = 1 << 19
"""Lines of the largest chunk: each is an object of its own, however short."""

_SAMPLE = 1 << 20


@dataclass(frozen=True, slots=True)
class LineChunks:
    """How the bytes [start, size) of `file` are cut into chunks of about `chunk_bytes`."""

    file: File
    start: int
    size: int
    chunk_bytes: int

    @property
    def path(self) -> str:
        """The file's, for messages."""
        return self.file.path

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-(self.size - self.start) // self.chunk_bytes)

    def read(self, chunk: int, errors: Undecodable = "strict") -> tuple[int, list[str]]:
        """The byte offset of the chunk's first line, and its lines without their ends, empty ones too.

        Raises DataError if they cannot be read, IndexError if there is no such chunk.
        """
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of {self.path}, which has {self.chunks}")
        begin = self.start + chunk * self.chunk_bytes
        end = min(begin + self.chunk_bytes, self.size)
        with open_file(self.file) as file:
            # The line that reaches into this chunk, if any, is of an earlier one. Beginning one byte
            # early, we pass over just a line end if a line starts exactly here.
            file.seek(begin - 1 if chunk else begin)
            if chunk:
                _read_line(file, self.file)
            offset = file.tell()
            if offset >= end:
                return offset, []
            text = file.read(end - offset)
            if not text.endswith(b"\n"):
                file.seek(offset + text.rfind(b"\n") + 1)
                text = text[: text.rfind(b"\n") + 1] + _read_line(file, self.file)
        return offset, _split(text, offset, self.file, errors)


def open_lines(file: File, chunk_rows: int, *, header: bool) -> tuple[str, LineChunks]:
    """The header line of a file ("" if it has none) and how the rest is cut into chunks.

    Chunks hold about `chunk_rows` lines, judged by the mean line of the first MiB, but at most about
    MAX_ROWS, and never more than MAX_CHUNK bytes plus the rest of a line. Raises DataError if the
    file cannot be read or has no lines.
    """
    path, size = file.path, file.size
    with open_file(file) as opened:
        if opened.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            opened.seek(0)
        first = _read_line(opened, file) if header else b""
        start = opened.tell()
        sample = opened.read(_SAMPLE)
    if header and not first.strip():
        raise DataError(path, 1, "the header is missing; name the columns in the first line")
    if not sample.strip() and start + len(sample) >= size:
        raise DataError(path, None, "the file has no rows; write at least one example into it")
    mean = len(sample) / max(1, sample.count(b"\n"))
    chunk_bytes = max(1, min(MAX_CHUNK, round(min(chunk_rows, MAX_ROWS) * mean)))
    return "".join(_split(first, 0, file)), LineChunks(file, start, size, chunk_bytes)


def line_number(file: File, offset: int) -> int:
    """The 1-based number of the line that holds byte `offset`; reads all that comes before it."""
    number = 1
    with open_file(file) as opened:
        while block := opened.read(min(_SAMPLE, offset)):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def is_text(text: str) -> bool:
    """Whether it was UTF-8: what was not is lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_line(opened: BinaryIO, file: File) -> bytes:
    offset = opened.tell()
    line = opened.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise DataError(
            file.path,
            line_number(file, offset),
            f"the line is longer than {MAX_LINE >> 20} MiB; is this a text file of one row per line?",
        )
    return line


def _split(text: bytes, offset: int, file: File, errors: Undecodable = "strict") -> list[str]:
    try:
        decoded = text.decode(errors=errors)
    except UnicodeDecodeError as error:
        line = line_number(file, offset + error.start)
        raise DataError(file.path, line, "not UTF-8; convert the file to UTF-8") from error
    lines = decoded.removesuffix("\n").split("\n")
    if "\r" in decoded:
        return [line.removesuffix("\r") for line in lines]
    return lines
