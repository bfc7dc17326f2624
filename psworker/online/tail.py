"""Lines of growing files, as `tail -F` follows them: through renames, new files and truncation.

When a file has been read to its end and another one is there under its name, the old one's last line is
taken as complete, and reading goes on with the next of its successors: files NAME.1, NAME-20261128 and the
like that are newer than it, then NAME. A file that has become shorter is read from its beginning. Compressed
files are not read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from protocol.events import about
from psworker.errors import DataError
from psworker.online.place import Place, mark_of
from psworker.online.records import LineSplitter, Record, text_of

__all__ = ["TailFiles"]

_log = logging.getLogger(__name__)

_BLOCK: Final = 1 << 18
_LOOK_EVERY: Final = 0.1  # seconds, at a file that has nothing new

_ROTATED: Final = re.compile(r"[.-][0-9][0-9-]*")


class TailFiles:
    """Files that grow, one a partition.

    Args:
        paths: of the files; workers on several machines must see the same ones.
        header: whether the first line of each names the columns.
        look_every: seconds between two looks at a file that has nothing new.

    Raises:
        DataError: a file is not there.
    """

    def __init__(self, paths: Sequence[str], *, header: bool, look_every: float = _LOOK_EVERY) -> None:
        self.partitions = len(paths)
        self._paths = paths
        self._header = header
        self._look_every = look_every
        for path in paths:
            try:
                mode = os.stat(path).st_mode
            except OSError as error:
                raise DataError(
                    path, None, f"{error.strerror}; correct [stream] source or the file"
                ) from error
            if not stat.S_ISREG(mode):
                raise DataError(path, None, 'not a regular file; a pipe is read as source = "-"')

    async def open(self, partition: int, skip: int) -> _Tail:
        """See ``Streams.open``."""
        tail = _Tail(Path(self._paths[partition]), skip, header=self._header, look_every=self._look_every)
        await tail.begin()
        return tail

    async def close(self) -> None:
        """See ``Streams.close``: every stream closes its own file."""


class _Tail:
    """One file, and those that follow it."""

    def __init__(self, path: Path, skip: int, *, header: bool, look_every: float) -> None:
        self.header: str | None = None
        self._path = path
        self._wants_header = header
        self._look_every = look_every
        self._begins = Place.of(skip)
        self._place = Place(0, 0, 0)  # of the beginning of what the splitter has been given
        self._splitter = LineSplitter(str(path))
        self._file: BinaryIO | None = None

    async def begin(self) -> None:
        """Have a file open at the place to begin at, its header read."""
        await asyncio.to_thread(self._find)
        while self._wants_header and self.header is None:
            if not await asyncio.to_thread(self._read_header):
                await asyncio.sleep(self._look_every)

    async def read(self) -> Sequence[Record]:
        """See ``Stream.read``; this one does not end."""
        while True:
            records, idle = await asyncio.to_thread(self._next)
            if records:
                return records
            if idle:
                await asyncio.sleep(self._look_every)

    def done(self, offset: int) -> None:
        """See ``Stream.done``."""

    async def close(self) -> None:
        """See ``Stream.close``."""
        if self._file is not None:
            self._file.close()

    # --- in a thread

    def _find(self) -> None:
        """Open the file that the place to begin at is in."""
        place = self._begins
        if place == (0, 0, 0):
            return self._open(self._path, 0, 0)
        candidates = [self._path, *self._rotated()]
        for path in candidates:
            status = os.stat(path)
            if mark_of(status.st_ino) == place.mark and status.st_size >= place.byte:
                return self._open(path, place.file, place.byte)
        _log.warning(
            "%s: the file that was read up to byte %d is not there any more; what was not read of it is "
            "left out, and the file that is there is read from its beginning",
            self._path, place.byte, extra=about("stream.lost"),
        )  # fmt: skip
        return self._open(self._path, place.file + 1, 0)

    def _open(self, path: Path, number: int, byte: int) -> None:
        file = path.open("rb")
        if self._file is not None:
            self._file.close()
        self._file = file
        file.seek(byte)
        self._place = Place(number, mark_of(os.fstat(file.fileno()).st_ino), byte)
        self._splitter = LineSplitter(str(path))

    def _read_header(self) -> bool:
        """Read the first line of the open file, if it is there, and go on after it."""
        assert self._file is not None  # noqa: S101 (begin has opened it)
        position = self._file.tell()
        self._file.seek(0)
        line = self._file.readline()
        complete = line.endswith(b"\n")
        self._file.seek(max(position, len(line)) if complete else position)
        if not complete:
            return False
        self._place = self._place._replace(byte=self._file.tell())
        header = text_of(str(self._path), line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf"))
        if self.header is not None and header != self.header:
            reason = f"the header was {self.header!r} and is {header!r}; start a job for each of them"
            raise DataError(str(self._path), 1, reason)
        self.header = header
        return True

    def _next(self) -> tuple[list[Record], bool]:
        """Return what can be read now, and whether there was nothing to do."""
        assert self._file is not None  # noqa: S101 (begin has opened it)
        if self._file.tell() == 0 and self._wants_header and not self._read_header():
            successor = self._successor()
            if successor is not None:
                self._open(successor, self._place.file + 1, 0)
            return [], successor is None
        block = self._file.read(_BLOCK)
        if block:
            return self._placed(self._splitter.feed(block)), False
        status = os.fstat(self._file.fileno())
        if status.st_size < self._file.tell():
            self._file.seek(0)
            self._place = self._place._replace(file=self._place.file + 1, byte=0)
            self._splitter = LineSplitter(str(self._path))
            return [], False
        successor = self._successor()
        if successor is None:
            return [], True
        if self._file.read(1):  # written before it was renamed, after we looked
            self._file.seek(-1, os.SEEK_CUR)
            return [], False
        records = self._placed(self._splitter.rest())
        self._open(successor, self._place.file + 1, 0)
        return records, False

    def _placed(self, records: list[Record]) -> list[Record]:
        file, mark, byte = self._place
        try:
            return [Record(text, Place(file, mark, byte + taken).offset) for text, taken in records]
        except OverflowError as error:
            reason = f"the stream has grown beyond what can be numbered ({error}); start a new job"
            raise DataError(str(self._path), None, reason) from error

    def _rotated(self) -> list[Path]:
        """Return the files that had the name before, the oldest first."""
        name = self._path.name
        found = [
            entry
            for entry in os.scandir(self._path.parent)
            if entry.name.startswith(name) and _ROTATED.fullmatch(entry.name, len(name)) and entry.is_file()
        ]
        return [Path(entry.path) for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns)]

    def _successor(self) -> Path | None:
        """Return the file to read after the open one; None while it has not been replaced."""
        assert self._file is not None  # noqa: S101 (begin has opened it)
        mine = os.fstat(self._file.fileno())
        try:
            current = self._path.stat()
        except FileNotFoundError:
            return None  # between the rename and the new file
        if current.st_ino == mine.st_ino or not current.st_size:
            return None
        rotated = self._rotated()
        inodes = [path.stat().st_ino for path in rotated]
        after = inodes.index(mine.st_ino) + 1 if mine.st_ino in inodes else len(rotated)
        return [*rotated[after:], self._path][0]
