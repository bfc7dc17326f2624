"""The storage under checkpoints and logs: a tree of files, and what has to be done so that they last.

Paths are relative to the storage's root, with ``/`` between their parts. Everything raises ``OSError`` when
the storage does not do what it is told.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from psserver.durability import write_behind

__all__ = ["Buffer", "LocalStorage", "Reading", "Storage", "Writing", "read_all", "reading"]

Buffer = bytes | bytearray | memoryview
"""What can be written: bytes, or a contiguous ``memoryview`` of bytes."""

_MOST_BUFFERS: Final = 512
"""Buffers of one system call; the kernel takes 1024 at most."""

_CLOSED: Final = -1
"""Instead of a file descriptor: its number may be another file's by now."""


class Writing(Protocol):
    """A file that is being written, from its beginning."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append all of ``buffers``, in order."""
        ...

    def sync(self) -> None:
        """Return when all that was written, and the file's name, would survive a power failure.

        An object store takes nothing more afterwards.
        """
        ...

    def close(self) -> None:
        """End; what was not synced may be lost."""
        ...


class Reading(Protocol):
    """A file that is being read."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` with the bytes from ``offset`` on; return how many there were."""
        ...

    def close(self) -> None:
        """End."""
        ...


class Storage(Protocol):
    """A tree of files.

    Attributes:
        root: where it is, for messages.
    """

    root: str

    def names(self, directory: str) -> list[str]:
        """Return what is in a directory, sorted; nothing if there is no such directory."""
        ...

    def size(self, path: str) -> int:
        """Return a file's bytes."""
        ...

    def create(self, path: str) -> Writing:
        """Begin a file, in directories that are made if need be, in place of one that was there."""
        ...

    def open(self, path: str) -> Reading:
        """Begin to read a file."""
        ...

    def sync(self, path: str) -> None:
        """Return when a file as it can be read now, and its name, would survive a power failure."""
        ...

    def publish(self, path: str, data: bytes) -> None:
        """Make a file with these contents: at any moment, power failures too, the former or all of it."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it, if it is there."""
        ...

    def free(self) -> int | None:
        """Return the bytes that still fit; None if that is not known."""
        ...


class LocalStorage:
    """A directory of this machine, which is made when something is first written.

    Args:
        root: the directory.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._root = Path(root)

    def names(self, directory: str) -> list[str]:
        """See ``Storage``."""
        try:
            return sorted(os.listdir(self._root / directory))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        """See ``Storage``."""
        return (self._root / path).stat().st_size

    def create(self, path: str) -> Writing:
        """See ``Storage``."""
        full = self._root / path
        _make_directories(full.parent)
        return _LocalWriting(full)

    def open(self, path: str) -> Reading:
        """See ``Storage``."""
        return _LocalReading(self._root / path)

    def sync(self, path: str) -> None:
        """See ``Storage``. A process that died may have left a file in the page cache alone."""
        full = self._root / path
        fd = os.open(full, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
        _sync_directory(full.parent)

    def publish(self, path: str, data: bytes) -> None:
        """See ``Storage``."""
        full = self._root / path
        _make_directories(full.parent)
        unfinished = full.with_name(f"{full.name}.new")
        try:
            _write_synced(unfinished, data)
            unfinished.rename(full)
        except OSError:
            unfinished.unlink(missing_ok=True)  # on a full disk it would take up room
            raise
        _sync_directory(full.parent)

    def remove(self, path: str) -> None:
        """See ``Storage``."""
        full = self._root / path
        if not os.path.lexists(full):
            return
        while os.path.lexists(full):
            with suppress(FileNotFoundError):  # another server is removing it: look again
                if full.is_dir() and not full.is_symlink():
                    shutil.rmtree(full)
                else:
                    full.unlink()
        _sync_directory(full.parent)

    def free(self) -> int | None:
        """See ``Storage``."""
        try:
            found = os.statvfs(self.root)  # asked often: at every write of the update log
        except FileNotFoundError:
            found = os.statvfs(next(place for place in self._root.absolute().parents if place.exists()))
        return found.f_bavail * found.f_frsize


class _LocalWriting:
    """See ``Writing``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._named = False  # the directory entry is not durable yet
        self._written = self._begun = self._dropped = 0  # bytes: of the file, on their way, not in the cache
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write(self, buffers: Sequence[Buffer]) -> None:
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while left:
            written = os.writev(self._fd, _window(left))
            self._written += written
            if self._written - self._begun >= write_behind.WINDOW:
                self._write_behind()
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def _write_behind(self) -> None:
        """Keep the disk at work, and no more than two windows of what nobody reads in the page cache."""
        write_behind.begin(self._fd, self._begun, self._written)
        write_behind.drop(self._fd, self._dropped, self._begun)
        self._dropped, self._begun = self._begun, self._written

    def sync_contents(self) -> None:
        if self._fd == _CLOSED:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(self._path))
        os.fdatasync(self._fd)  # the size, too; only the times are left out

    def sync(self) -> None:
        self.sync_contents()
        if not self._named:
            _sync_directory(self._path.parent)
            self._named = True

    def close(self) -> None:
        self._fd = _close(self._fd)


class _LocalReading:
    """See ``Reading``."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < len(buffer):
            read = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not read:
                break
            done += read
        return done

    def close(self) -> None:
        self._fd = _close(self._fd)


def _window(buffers: Sequence[memoryview]) -> list[memoryview]:
    """Return what to write at once of ``buffers``: with little of it in the cache the disk works already."""
    found, room = [], write_behind.WINDOW
    for buffer in buffers[:_MOST_BUFFERS]:
        found.append(buffer[:room])
        room -= len(buffer)
        if room <= 0:
            break
    return found


def _close(fd: int) -> int:
    """Close ``fd`` unless it is closed; return what to use from now on: no file, also when the number is."""
    if fd != _CLOSED:
        os.close(fd)
    return _CLOSED


def _write_synced(path: Path, data: bytes) -> None:
    writing = _LocalWriting(path)
    try:
        writing.write([data])
        writing.sync_contents()
    finally:
        writing.close()


def _make_directories(path: Path) -> None:
    """Make a directory whose name, and those of its parents, would survive a power failure."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        _sync_directory(place.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def reading(storage: Storage, path: str) -> Iterator[Reading]:
    """Read a file, and close it in the end."""
    opened = storage.open(path)
    try:
        yield opened
    finally:
        opened.close()


def read_all(storage: Storage, path: str, most: int) -> bytes:
    """Return a file's contents.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than ``most`` bytes.
    """
    size = storage.size(path)
    if size > most:
        raise ValueError(f"{path} has {size} bytes, more than {most}")
    data = bytearray(size)
    with reading(storage, path) as opened:
        read = opened.read_into(memoryview(data), 0)
    return bytes(data[:read])
