import ctypes
import errno
import os
from pathlib import Path

import pytest

from psserver.durability import write_behind
from psserver.durability.storage import LocalStorage, read_all
from psserver.durability.write_behind import WINDOW

MEGABYTE = 1 << 20


def large() -> bytes:
    """Four windows and a bit, of which no two megabytes are the same."""
    return b"".join(number.to_bytes(4) * (MEGABYTE // 4) for number in range(4 * WINDOW // MEGABYTE + 3))


def is_cached(fd: int, offset: int) -> bool:
    """Whether a byte of a file can be read without the disk."""
    try:
        return bool(os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT))
    except BlockingIOError:
        return False


def is_in_memory(path: Path) -> bool:
    """Whether a directory is on no disk, so that nothing there can leave the page cache."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    under = [(mount[1], mount[2]) for mount in mounts if path.is_relative_to(mount[1])]
    return max(under, key=lambda one: len(one[0]))[1] in {"tmpfs", "ramfs"}


def failing(number: int, calls: list[tuple[int, int]]) -> object:
    def sync_file_range(fd: int, start: int, length: int, flags: int) -> int:
        calls.append((start, length))
        ctypes.set_errno(number)
        return -1

    return sync_file_range


def test_a_large_file_has_what_was_written(tmp_path: Path) -> None:
    data = large()
    writing = LocalStorage(tmp_path).create("a")
    for begin in range(0, len(data), 5 * MEGABYTE):
        writing.write([data[begin : begin + MEGABYTE], data[begin + MEGABYTE : begin + 5 * MEGABYTE]])
    writing.sync()
    writing.close()
    assert read_all(LocalStorage(tmp_path), "a", len(data)) == data


def test_what_was_written_long_ago_is_not_in_the_page_cache(tmp_path: Path) -> None:
    if is_in_memory(tmp_path):
        pytest.skip("this file system has no disk")
    writing = LocalStorage(tmp_path).create("a")
    data = large()
    for begin in range(0, len(data), MEGABYTE):
        writing.write([data[begin : begin + MEGABYTE]])
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        cached = [is_cached(fd, begin) for begin in range(0, WINDOW, MEGABYTE)]
    finally:
        os.close(fd)
        writing.close()
    assert sum(cached) < len(cached) / 2


def test_a_disk_that_fails_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(write_behind, "_sync_file_range", failing(errno.EIO, calls))
    writing = LocalStorage(tmp_path).create("a")
    writing.write([bytes(WINDOW - 1)])
    with pytest.raises(OSError, match="Input/output"):
        writing.write([b"1"])
    assert calls == [(0, WINDOW)]
    writing.close()


@pytest.mark.parametrize("without", [None, errno.ENOSYS])
def test_a_kernel_that_cannot_be_told_is_not_needed(
    without: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "_sync_file_range", without and failing(without, []))
    writing = LocalStorage(tmp_path).create("a")
    data = large()
    writing.write([data])
    writing.write([data])
    writing.sync()
    writing.close()
    assert read_all(LocalStorage(tmp_path), "a", 2 * len(data)) == 2 * data
