"""Arrays that grow without being copied: address space is taken at once, memory as it is written to.

Memory that nobody has written to reads as zeros.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["reserve"]

Array = npt.NDArray[Any]

_NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0
"""``MAP_NORESERVE``: not counted as memory in use. Python's mmap knows the name from 3.13 on."""

_LEAST: Final = 64 * 1024 * 1024
"""Bytes below which a system that refuses more is not asked again."""


def reserve(dtype: npt.DTypeLike) -> Array:
    """Return a 1-d array of zeros that is larger than memory, or as large as the system allows.

    Large pages are asked for: with them, rows in random order are found in half the time.

    Raises:
        MemoryError: the system refuses even a small part of it.
    """
    memory = _address_space(2 * _physical_memory())
    if hasattr(mmap, "MADV_HUGEPAGE"):
        _advise(memory)
    return np.frombuffer(memory, dtype)


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _address_space(nbytes: int) -> mmap.mmap:
    nbytes += -nbytes % _LEAST
    while True:
        try:
            return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except OSError as error:
            if nbytes <= _LEAST:
                raise MemoryError(
                    f"the system refuses {nbytes} bytes of address space for a table ({error.strerror}); "
                    "see ulimit -v and vm.overcommit_memory"
                ) from error
            nbytes = max(_LEAST, nbytes // 2 // _LEAST * _LEAST)


def _advise(memory: mmap.mmap) -> None:
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without them
        return
