"""What the disk does by itself, beside which checkpoints and logs are to be seen."""

import os
import shutil
from pathlib import Path
from time import perf_counter

import numpy as np

_BLOCK = 16 << 20
_SMALL = 4096
_MARGIN = 2 << 30


class NoRoom(Exception):
    """The disk has too few free bytes."""


def check_room(directory: Path, nbytes: int) -> None:
    """Raise NoRoom unless `nbytes` fit on the disk of `directory`, and 2 GiB stay free."""
    free = shutil.disk_usage(directory).free
    if free < nbytes + _MARGIN:
        raise NoRoom(
            f"directory {directory}: {free / 1e9:.1f} GB are free, about {(nbytes + _MARGIN) / 1e9:.1f} GB "
            "are needed; give another --directory, or a smaller --model"
        )


def write_rate(directory: Path, nbytes: int) -> float:
    """Return the bytes a second at which a new file is written and synced, as dd bs=16M conv=fdatasync does.

    The bytes are random ones: zeros may cost a virtual disk nothing.
    """
    block = memoryview(np.random.default_rng(0).bytes(min(_BLOCK, nbytes)))
    path = directory / "sequential"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        begin, left = perf_counter(), nbytes
        while left:
            left -= os.write(fd, block[:left])
        os.fdatasync(fd)
        return nbytes / (perf_counter() - begin)
    finally:
        os.close(fd)
        path.unlink()


def sync_seconds(directory: Path, count: int) -> list[float]:
    """Return how long each of `count` appends of 4 KiB takes until it is synced."""
    path, data = directory / "small", bytes(_SMALL)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        return [_timed_append(fd, data) for _ in range(count)]
    finally:
        os.close(fd)
        path.unlink()


def _timed_append(fd: int, data: bytes) -> float:
    begin = perf_counter()
    os.write(fd, data)
    os.fdatasync(fd)
    return perf_counter() - begin
