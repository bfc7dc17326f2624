"""Large files on their way to the disk while they are still being written, and out of the page cache.

Left to the kernel, gigabytes gather in the page cache until a sync, which then takes long, as do those of
other files on the same disk; and they push out of it what somebody reads. Where the kernel cannot be told, as
outside Linux, nothing is done: it is the sync that makes a file last, not this.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any, Final

__all__ = ["WINDOW", "begin", "drop"]

WINDOW: Final = 32 * 1024 * 1024
"""Bytes that go on their way together: enough for any disk, and little in the cache."""

_WRITE: Final = 2
_WRITE_AND_WAIT: Final = 1 | 2 | 4


def begin(fd: int, start: int, stop: int) -> None:
    """Have the disk write bytes ``start`` to ``stop`` of a file from now on.

    Raises:
        OSError: what was written is lost; the next sync may not say so.
    """
    if _sync_file_range is not None:
        _check(_sync_file_range(fd, start, stop - start, _WRITE))


def drop(fd: int, start: int, stop: int) -> None:
    """Return when the disk has bytes ``start`` to ``stop`` of a file, and the page cache no longer.

    Raises:
        OSError: what was written is lost; the next sync may not say so.
    """
    if _sync_file_range is not None and start < stop:
        _check(_sync_file_range(fd, start, stop - start, _WRITE_AND_WAIT))
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


def _check(result: int) -> None:
    number = ctypes.get_errno()
    if result and number != errno.ENOSYS:
        raise OSError(number, os.strerror(number))


def _find() -> Callable[[int, int, int, int], int] | None:
    try:
        found: Any = ctypes.CDLL(None, use_errno=True).sync_file_range
    except AttributeError:
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


_sync_file_range: Final = _find()
