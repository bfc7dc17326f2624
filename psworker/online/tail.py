"""Lines of growing files, as `tail -F` follows them: through renames, copies, new files and truncation.

When a file has been read to its end and another one is there under its name, the old one's last line is
taken as complete, and reading goes on with the next of its successors: files NAME.1, NAME-20261128 and the
like that are newer than it, then NAME. A file in which what was read is not there any more was cut: reading
goes on in its copy, if there is one among these, and then at its beginning. Compressed files are not read.

Files are known again by what they have before the place that was read up to; see `place`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from protocol.events import about
from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.online.place import KNOWN, Place, mark_of
from psworker.online.records import LineSplitter, Record, text_of

__all__ = ["TailFiles"]

_log = logging.getLogger(__name__)

_BLOCK: Final = 1 << 18
_MAX_HEADER: Final = 1 << 20
_LOOK_EVERY: Final = 0.1  # seconds, at a file that has nothing new

_ROTATED: Final = re.compile(r"[.-][0-9][0-9-]*")


class _Rotated(NamedTuple):
    """A file that had the name before: when it was changed last, in ns, and its inode's number."""

    changed: int
    inode: int
    path: Path


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
        self._file: FileIO | None = None
        self._number = 0  # of the file
        self._at = 0  # the next byte to read
        self._head = b""  # the first bytes, at most KNOWN, of those before ``_at``
        self._before = b""  # and the last
        self._splitter = LineSplitter(str(path))
        self._splits_from = 0  # the byte at which it began

    async def begin(self) -> None:
        """Have a file open at the place to begin at, its header read."""
        await self._until(self._find)
        if self._wants_header:
            await self._until(self._read_header)

    async def _until(self, done: Callable[[], bool]) -> None:
        while True:
            if await asyncio.to_thread(done):
                return
            await asyncio.sleep(self._look_every)

    async def read(self) -> Sequence[Record]:
        """See ``Stream.read``; this one does not end."""
        while True:
            records, idle = await asyncio.to_thread(self._next)
            if records:
                return records
            if idle:
                await asyncio.sleep(self._look_every)

    def position(self, record: Record) -> Position:
        """See ``Stream.position``: the file may have another name by now."""
        return Position(f"{self._path}, line up to byte {Place.of(record.offset).byte}")

    def done(self, offset: int) -> None:
        """See ``Stream.done``."""

    async def close(self) -> None:
        """See ``Stream.close``."""
        if self._file is not None:
            self._file.close()

    # --- in a thread

    @property
    def _open_file(self) -> FileIO:
        assert self._file is not None  # noqa: S101 (begin has opened it)
        return self._file

    def _find(self) -> bool:
        """Open the file that the place to begin at is in; return whether there was a file at all."""
        number, byte, mark = self._begins
        if not byte:
            return self._take(_opened(self._path), 0, 0)
        for path in (self._path, *(one.path for one in self._rotated())):
            file = _opened(path)
            if file is not None:
                if _is_known(file, byte, mark):
                    return self._take(file, number, byte)
                file.close()
        found = self._take(_opened(self._path), number + 1, 0)
        if found:
            self._tell_lost(f"the file that was read up to byte {byte} is not there any more")
        return found

    def _take(self, file: FileIO | None, number: int, byte: int) -> bool:
        """Go on with a file, from a byte; return whether it is one."""
        if file is None:
            return False
        if self._file is not None:
            self._file.close()
        self._file, self._number = file, number
        self._head = os.pread(file.fileno(), min(KNOWN, byte), 0)
        self._begin_at(byte)
        return True

    def _begin_at(self, byte: int) -> None:
        self._at = self._splits_from = byte
        self._before = _before(self._open_file, byte)
        self._splitter = LineSplitter(str(self._path))

    def _tell_lost(self, what: str) -> None:
        _log.warning(
            "%s: %s; what was not read of it is left out, and the file that is there is read from its "
            "beginning", self._path, what, extra=about("stream.lost"),
        )  # fmt: skip

    def _read_header(self) -> bool:
        """Read the first line of the open file, if it is there, and go on after it."""
        start = os.pread(self._open_file.fileno(), _MAX_HEADER, 0)
        line, end, _ = start.partition(b"\n")
        if not end:
            if len(start) == _MAX_HEADER:
                reason = f"no line end in {_MAX_HEADER >> 20} MiB; is this text of one example per line?"
                raise DataError(str(self._path), 1, reason)
            return False
        header = text_of(str(self._path), line.removesuffix(b"\r").removeprefix(b"\xef\xbb\xbf"))
        if self.header is not None and header != self.header:
            reason = f"the header was {self.header!r} and is {header!r}; start a job for each of them"
            raise DataError(str(self._path), 1, reason)
        self.header = header
        if self._at <= len(line):
            self._head = start[: min(KNOWN, len(line) + 1)]
            self._begin_at(len(line) + 1)
        return True

    def _next(self) -> tuple[list[Record], bool]:
        """Return what can be read now, and whether there was nothing to do."""
        if not self._at and self._wants_header and not self._read_header():
            found = self._successor()
            return [], not self._take(found, self._number + 1, 0)
        known = len(self._before)
        read = os.pread(self._open_file.fileno(), known + _BLOCK, self._at - known)
        if read[:known] != self._before:
            self._go_on_in_copy()
            return [], False
        if len(read) > known:
            return self._split(read), False
        found = self._successor()
        if found is None:
            return [], True
        if os.fstat(self._open_file.fileno()).st_size > self._at:  # written before it was renamed
            found.close()
            return [], False
        records = self._placed(self._splitter.rest(), self._before)
        self._take(found, self._number + 1, 0)
        return records, False

    def _split(self, read: bytes) -> list[Record]:
        """Take what was read, which begins with what is known, and return the lines."""
        block = read[len(self._before) :]
        self._head += block[: KNOWN - len(self._head)]
        self._at += len(block)
        records = self._placed(self._splitter.feed(block), read)
        self._before = read[-KNOWN:]
        return records

    def _placed(self, records: list[Record], read: bytes) -> list[Record]:
        """Return records with offsets of places; ``read``: what ends where we are."""
        first = self._at - len(read)
        placed = []
        for text, taken in records:
            byte = self._splits_from + taken
            before = read[max(0, byte - KNOWN - first) : byte - first]
            place = Place(self._number, byte, mark_of(self._head[:byte], before))
            try:
                placed.append(Record(text, place.offset))
            except OverflowError as error:
                reason = f"the stream has grown beyond what can be numbered ({error}); start a new job"
                raise DataError(str(self._path), None, reason) from error
        return placed

    def _go_on_in_copy(self) -> None:
        """Go on with the copy of a file that was cut, be it within a line; or at the file's beginning."""
        for one in reversed(self._rotated()):  # the newest first
            file = _opened(one.path)
            if file is None:
                continue
            head = os.pread(file.fileno(), len(self._head), 0)
            if head == self._head and _before(file, self._at) == self._before:
                self._open_file.close()
                self._file = file
                return
            file.close()
        self._tell_lost("the file was cut")
        if not self._take(_opened(self._path), self._number + 1, 0):
            self._number += 1
            self._head = b""
            self._begin_at(0)  # of the one that is open: it has no name now

    def _rotated(self) -> list[_Rotated]:
        """Return the files that had the name before, the oldest first."""
        found = []
        for entry in os.scandir(self._path.parent):
            if entry.name.startswith(self._path.name) and _ROTATED.fullmatch(
                entry.name, len(self._path.name)
            ):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # renamed once more, or deleted
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(_Rotated(status.st_mtime_ns, status.st_ino, Path(entry.path)))
        return sorted(found)

    def _successor(self) -> FileIO | None:
        """Return the file to read after the open one, opened; None while it has not been replaced."""
        mine = os.fstat(self._open_file.fileno())
        try:
            current = self._path.stat()
        except FileNotFoundError:
            return None  # between the rename and the new file
        if current.st_ino == mine.st_ino or not current.st_size:
            return None
        rotated = self._rotated()
        places = [place for place, one in enumerate(rotated) if one.inode == mine.st_ino]
        # A file that is not there any more was deleted or packed; what is newer comes after it.
        later = (
            rotated[places[0] + 1 :] if places else [one for one in rotated if one.changed > mine.st_mtime_ns]
        )
        next_one = later[0] if later else _Rotated(current.st_mtime_ns, current.st_ino, self._path)
        file = _opened(next_one.path)
        if file is not None and os.fstat(file.fileno()).st_ino != next_one.inode:
            file.close()  # another one has got the name meanwhile: look again
            return None
        return file


def _opened(path: Path) -> FileIO | None:
    """Return the file of this name; None: there is none.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return FileIO(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(str(path), None, f"{error.strerror}; correct [stream] source or the file") from error


def _before(file: FileIO, byte: int) -> bytes:
    """Return the last bytes before a place in a file, at most KNOWN; fewer, where it is not that long."""
    known = min(KNOWN, byte)
    return os.pread(file.fileno(), known, byte - known)


def _is_known(file: FileIO, byte: int, mark: int) -> bool:
    """Whether a file may be the one with this place: its mark is the same, and a line ends there."""
    size = os.fstat(file.fileno()).st_size
    if size < byte:
        return False
    before = _before(file, byte)
    ends = before.endswith(b"\n") or size == byte
    return ends and mark_of(os.pread(file.fileno(), min(KNOWN, byte), 0), before) == mark
