"""Checkpoints on a disk that keeps what was synced, no more: the new one is complete, or the last one is."""

import itertools
import random
from collections.abc import Sequence

import pytest

from psserver.durability.checkpoint import newest_usable, verify
from psserver.durability.directories import next_number, numbers, prune
from psserver.durability.storage import Buffer
from tests.psserver.durability.made_up import TENSORS, write


class Died(Exception):
    """The process ends here."""


class Disk:
    """A storage in memory that ends the process at some operation, and then may lose what was not synced.

    Args:
        files: what is on it, to stay.
        operations: that are carried out before the process dies; None: all.
    """

    root = "disk"

    def __init__(self, files: dict[str, bytes], operations: int | None = None) -> None:
        self.files = {path: bytearray(data) for path, data in files.items()}
        self.durable = dict(files)
        self._left = operations

    def names(self, directory: str) -> list[str]:
        prefix = f"{directory}/" if directory else ""
        inside = [path.removeprefix(prefix) for path in self.files if path.startswith(prefix)]
        return sorted({path.split("/")[0] for path in inside})

    def size(self, path: str) -> int:
        return len(self._file(path))

    def create(self, path: str) -> "Disk._Writing":
        self._operation()
        self.files[path] = bytearray()
        return Disk._Writing(self, path)

    def open(self, path: str) -> "Disk._Reading":
        return Disk._Reading(self._file(path))

    def publish(self, path: str, data: bytes) -> None:
        self._operation()
        self.files[path] = bytearray(data)
        self._operation()
        self.durable[path] = data

    def sync(self, path: str) -> None:
        self._operation()
        self.durable[path] = bytes(self._file(path))

    def remove(self, path: str) -> None:
        for other in [other for other in self.files if other == path or other.startswith(f"{path}/")]:
            self._operation()
            del self.files[other]
        self._operation()
        self.durable = {other: data for other, data in self.durable.items() if other in self.files}

    def free(self) -> int | None:
        return None

    def after_power_failure(self, rng: random.Random) -> "Disk":
        """Return what may be left: of each file what was synced, or more or less of what is new."""
        left = {}
        for path in {*self.files, *self.durable}:
            versions = [self.durable.get(path)]
            if path in self.files:
                new = bytes(self.files[path])
                start = rng.randrange(len(new) + 1)
                torn = new[:start] + bytes(min(4096, len(new) - start)) + new[start + 4096 :]
                # What is published is there as a whole: a rename is.
                parts = [] if path.endswith("manifest.json") else [new[:start], torn, bytes(len(new))]
                versions = [new] if new == self.durable.get(path) else [*versions, new, *parts]
            else:
                versions.append(None)  # it was removed
            if (version := rng.choice(versions)) is not None:
                left[path] = version
        return Disk(left)

    def _file(self, path: str) -> bytearray:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file", path) from None

    def _operation(self) -> None:
        if self._left is not None:
            if self._left == 0:
                raise Died
            self._left -= 1

    class _Writing:
        def __init__(self, disk: "Disk", path: str) -> None:
            self._disk, self._path = disk, path

        def write(self, buffers: Sequence[Buffer]) -> None:
            self._disk._operation()
            for buffer in buffers:
                self._disk.files[self._path] += buffer

        def sync(self) -> None:
            self._disk.sync(self._path)

        def close(self) -> None:
            """Nothing is made to last by it."""

    class _Reading:
        def __init__(self, data: bytearray) -> None:
            self._data = data

        def read_into(self, buffer: memoryview, offset: int) -> int:
            found = self._data[offset : offset + len(buffer)]
            buffer[: len(found)] = found
            return len(found)

        def close(self) -> None:
            """Nothing is held open."""


@pytest.fixture(scope="module")
def first() -> dict[str, bytes]:
    """A disk with checkpoint 1."""
    disk = Disk({})
    write(disk, 1, shards=2)
    assert disk.durable == disk.files
    return disk.durable


def died_at(first: dict[str, bytes], operations: int) -> tuple[Disk, int, bool]:
    """Take checkpoint 2 and remove 1; return the disk, the newest that is promised, whether all was done."""
    disk, promised = Disk(first, operations), 1
    try:
        write(disk, 2, shards=2)
        promised = 2
        prune(disk, 1)
    except Died:
        return disk, promised, False
    return disk, promised, True


def newest_on(disk: Disk) -> int:
    newest = newest_usable(disk, report=lambda _: None)
    assert newest is not None
    return newest.header.checkpoint


def test_wherever_the_power_fails_there_is_a_sound_checkpoint(first: dict[str, bytes]) -> None:
    seen: set[tuple[int, int]] = set()
    for operations in itertools.count():
        disk, promised, done = died_at(first, operations)
        for seed in range(8):
            left = disk.after_power_failure(random.Random(f"{operations}/{seed}"))
            newest = newest_on(left)
            assert newest >= promised
            seen.add((promised, newest))
            go_on(left)
        if done:
            break
    assert operations > 20
    assert seen == {(1, 1), (1, 2), (2, 2)}


def test_wherever_the_process_dies_there_is_a_sound_checkpoint(first: dict[str, bytes]) -> None:
    for operations in itertools.count():
        disk, promised, done = died_at(first, operations)
        left = Disk({path: bytes(data) for path, data in disk.files.items()})
        assert newest_on(left) >= promised
        go_on(left)
        if done:
            break


def go_on(disk: Disk) -> None:
    """Take the next checkpoint on what is left, and clean up."""
    number = next_number(disk)
    write(disk, number, TENSORS, shards=2)
    assert newest_on(disk) == number
    prune(disk, 1)
    assert numbers(disk) == [number]
    assert verify(disk, number) == []
