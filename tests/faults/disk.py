"""A disk in memory that loses what was not synced.

It is a ``Storage`` whose operations are made of the steps that a file system knows, numbered in the order in
which they are done. Any step can fail, or be where the process dies, and ``crash`` says what may be left
after a power failure: what was synced, and of all else anything, nothing, or some of its pages.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from psserver.durability.storage import Buffer

__all__ = ["PAGE", "Died", "Disk"]

PAGE: Final = 4096


class Died(BaseException):
    """The process ends here: nothing but ``crash`` works any more."""


class Disk:
    """A ``Storage``.

    Args:
        capacity: bytes that fit; more of a write than that is not done. None: all fit.
        tells_free: whether ``free`` says how much that is.

    Attributes:
        steps: what has been done to it ("create", "write", "sync", "sync names", "rename" or "unlink"), and
            to which path.
        die_at: the number of the step, counted from 1, that is not done, nor any after it.
        on_death: called then, by the thread that did it.
        fail_at: errno by number of the step that fails.
        fail_syncs: numbers of the syncs of files, counted from 1, that fail with EIO. What they were to write
            is lost although it can be read, and a later sync does not know of it: so does Linux.
    """

    def __init__(self, *, capacity: int | None = None, tells_free: bool = True) -> None:
        self.root = "disk"
        self.capacity = capacity
        self.tells_free = tells_free
        self.steps: list[tuple[str, str]] = []
        self.die_at: int | None = None
        self.on_death: Callable[[], object] = lambda: None
        self.fail_at: dict[int, int] = {}
        self.fail_syncs: frozenset[int] = frozenset()
        self._syncs = 0
        self._dead = False
        self._files: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._changes: list[_Change] = []  # of names, not synced
        self._lock = threading.RLock()  # the log writes in a thread

    # --- what a test does

    def crash(self, rng: random.Random) -> Disk:
        """Return what may be there after a power failure; this disk stays as it is."""
        names = dict(self._durable)
        for change in self._changes:
            if rng.random() < 0.5:
                change.apply(names)
        left = Disk(capacity=self.capacity, tells_free=self.tells_free)
        left._files = {path: file.survivor(rng) for path, file in names.items()}
        left._durable = dict(left._files)
        return left

    def killed(self) -> Disk:
        """Return what is there after the process alone has died: all that it did, synced or not."""
        left = Disk(capacity=self.capacity, tells_free=self.tells_free)
        left._files, left._durable, left._changes = (
            dict(self._files),
            dict(self._durable),
            list(self._changes),
        )
        return left

    def contents(self, path: str) -> bytes:
        """Return what can be read of a file."""
        return bytes(self._files[path].data)

    def overwrite(self, path: str, data: bytes | bytearray) -> None:
        """Damage a file: it has these contents, durably."""
        self._files[path] = self._durable[path] = _File(bytearray(data), bytearray(data))

    # --- what a storage does

    def names(self, directory: str) -> list[str]:
        with self._lock:
            self._check_alive()
            prefix = f"{directory}/" if directory else ""
            below = (path.removeprefix(prefix) for path in self._files if path.startswith(prefix))
            return sorted({path.split("/")[0] for path in below})

    def size(self, path: str) -> int:
        with self._lock:
            return len(self._file(path).data)

    def create(self, path: str) -> _Writing:
        with self._lock:
            self._step("create", path)
            if path in self._files:
                self._files[path].truncate()
            else:
                self._change(_Change(path, _File()))
            return _Writing(self, path, self._files[path])

    def open(self, path: str) -> _Reading:
        with self._lock:
            return _Reading(self, self._file(path))

    def sync(self, path: str) -> None:
        with self._lock:
            self._sync_file(path, self._file(path))
            self._sync_names(path)

    def publish(self, path: str, data: bytes) -> None:
        with self._lock:
            unfinished = f"{path}.new"
            try:
                writing = self.create(unfinished)
                writing.write([data])
                self._sync_file(unfinished, self._files[unfinished])
                self._step("rename", path)
            except OSError:
                if unfinished in self._files:
                    self._change(_Change(unfinished, None))
                raise
            self._change(_Change(path, self._files[unfinished], unfinished))
            self._sync_names(path)

    def remove(self, path: str) -> None:
        with self._lock:
            self._check_alive()
            gone = [name for name in self._files if name == path or name.startswith(f"{path}/")]
            for name in gone:
                self._step("unlink", name)
                self._change(_Change(name, None))
            if gone:
                self._sync_names(path)

    def free(self) -> int | None:
        with self._lock:
            self._check_alive()
            if self.capacity is None or not self.tells_free:
                return None
            return max(0, self.capacity - self._used())

    # --- steps

    def _step(self, what: str, path: str) -> None:
        self._check_alive()
        self.steps.append((what, path))
        number = len(self.steps)
        if number == self.die_at:
            self._dead = True
            self.on_death()
            raise Died(f"at step {number}: {what} {path}")
        if number in self.fail_at:
            raise _error(self.fail_at[number])

    def _check_alive(self) -> None:
        if self._dead:
            raise Died

    def _file(self, path: str) -> _File:
        self._check_alive()
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._files[path]

    def _used(self) -> int:
        return sum(len(file.data) for file in self._files.values())

    def _change(self, change: _Change) -> None:
        change.apply(self._files)
        self._changes.append(change)

    def _write(self, path: str, file: _File, data: bytes) -> None:
        self._step("write", path)
        fits = len(data) if self.capacity is None else max(0, self.capacity - self._used())
        file.append(data[:fits])
        if len(data) > fits:
            raise _error(errno.ENOSPC)

    def _sync_file(self, path: str, file: _File) -> None:
        self._syncs += 1
        try:
            self._step("sync", path)
            if self._syncs in self.fail_syncs:
                raise _error(errno.EIO)
        except OSError:
            file.lose()
            raise
        file.sync()

    def _sync_names(self, path: str) -> None:
        self._step("sync names", path)
        directory = os.path.dirname(path)
        for change in [change for change in self._changes if os.path.dirname(change.path) == directory]:
            change.apply(self._durable)
            self._changes.remove(change)


@dataclass(slots=True, eq=False)
class _Change:
    """A name is given to a file, which may have had the name ``former``; no file: the name is taken away."""

    path: str
    file: _File | None
    former: str = ""

    def apply(self, names: dict[str, _File]) -> None:
        if self.file is None:
            names.pop(self.path, None)
        else:
            names[self.path] = self.file
        names.pop(self.former, None)


@dataclass(slots=True, eq=False)
class _File:
    """``data`` can be read; ``disk`` is what is on the disk for sure."""

    data: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    dirty: list[tuple[int, int]] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)
    truncated: bool = False  # and the disk may or may not know

    def truncate(self) -> None:
        self.data = bytearray()
        self.dirty, self.lost, self.truncated = [], [], True

    def append(self, data: bytes) -> None:
        self.dirty.append((len(self.data), len(self.data) + len(data)))
        self.data += data

    def sync(self) -> None:
        self.disk = self._on_disk(len(self.data), self.dirty)
        self.dirty, self.truncated = [], False

    def lose(self) -> None:
        """The sync failed: the pages count as written, and are not."""
        self.lost += self.dirty
        self.dirty = []

    def survivor(self, rng: random.Random) -> _File:
        """Return what may be left of the file."""
        if self.truncated and rng.random() < 0.5:
            return _File(self.disk[:], self.disk[:])
        if not self.dirty and not self.lost and not self.truncated:
            return _File(self.disk[:], self.disk[:])
        least = 0 if self.truncated else len(self.disk)
        size = rng.choice([least, len(self.data), rng.randint(least, len(self.data))])
        share = rng.choice([0.0, 0.5, 1.0])
        written = [page for page in _pages(self.dirty) if rng.random() < share]
        written += [page for page in _pages(self.lost) if rng.random() < 0.5]
        left = self._on_disk(size, written)
        return _File(left, left[:])

    def _on_disk(self, size: int, written: Iterable[tuple[int, int]]) -> bytearray:
        disk = bytearray(b"" if self.truncated else self.disk[:size]).ljust(size, b"\0")
        for begin, end in written:
            stop = min(end, size)
            if begin < stop:
                disk[begin:stop] = self.data[begin:stop]
        return disk


def _pages(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges cut into what lies in one page each."""
    found: list[tuple[int, int]] = []
    for begin, end in ranges:
        cuts = [begin, *range((begin // PAGE + 1) * PAGE, end, PAGE), end]
        found += pairwise(cuts)
    return found


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _Writing:
    """See ``Writing``."""

    def __init__(self, disk: Disk, path: str, file: _File) -> None:
        self._disk = disk
        self._path = path
        self._file = file
        self._named = False

    def write(self, buffers: Sequence[Buffer]) -> None:
        with self._disk._lock:
            self._disk._write(self._path, self._file, b"".join(bytes(buffer) for buffer in buffers))

    def sync(self) -> None:
        with self._disk._lock:
            self._disk._sync_file(self._path, self._file)
            if not self._named:
                self._disk._sync_names(self._path)
                self._named = True

    def close(self) -> None:
        """Nothing: what was not synced is as before."""


class _Reading:
    """See ``Reading``."""

    def __init__(self, disk: Disk, file: _File) -> None:
        self._disk = disk
        self._file = file

    def read_into(self, buffer: memoryview, offset: int) -> int:
        with self._disk._lock:
            self._disk._check_alive()
            found = self._file.data[offset : offset + len(buffer)]
            buffer[: len(found)] = found
            return len(found)

    def close(self) -> None:
        """Nothing."""
