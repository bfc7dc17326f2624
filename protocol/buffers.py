"""Memory for large arrays that is used again instead of being given back to the system.

A fresh 100 MB array costs 25,000 page faults before its first byte is received, about as long as receiving
it. Here an array's memory returns to the pool when the last reference to it, or to any view of it, is
dropped: there is nothing to release by hand, hence nothing to release too early or never.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["POOLED", "BufferPool"]

POOLED: Final = 256 * 1024
"""Arrays below this many bytes come from ``np.empty``: the allocator reuses such memory by itself."""

_ALIGN: Final = 64
_STEPS: Final = 8
"""Lengths of blocks between one power of two and the next."""

_Raw = npt.NDArray[np.uint8]


class BufferPool:
    """Hand out uninitialised arrays and take their memory back by itself.

    Args:
        retain: at most this many idle bytes are kept; the least recently used are let go first.
    """

    def __init__(self, retain: int) -> None:
        self._retain = retain
        self._idle: OrderedDict[int, list[_Raw]] = OrderedDict()  # bytes -> idle blocks
        self._idle_bytes = 0
        self._leases: dict[int, weakref.ref[Any]] = {}
        # Arrays end in any thread, and, by the garbage collector, in the middle of these methods.
        self._lock = threading.RLock()

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait to be used again."""
        return self._idle_bytes

    def empty(self, elements: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an uninitialised, writeable 1-d array of ``elements`` items, 64-byte aligned if pooled."""
        size = elements * dtype.itemsize
        if size < POOLED:
            return np.empty(elements, dtype)
        block = self._take(_rounded(size))
        # Views made of a memoryview keep the array made here alive, not ``block``: NumPy shortens chains of
        # bases only as long as they are arrays. So its end is the end of every view.
        lease = np.frombuffer(block.data, np.uint8, size)
        key = id(block)
        self._leases[key] = weakref.ref(lease, lambda _: self._give_back(key, block))
        return lease.view(dtype)

    def _take(self, size: int) -> _Raw:
        with self._lock:
            blocks = self._idle.get(size)
            if blocks:
                self._idle_bytes -= size
                return blocks.pop()
        raw = np.empty(size + _ALIGN, np.uint8)
        begin = -raw.ctypes.data % _ALIGN
        return raw[begin : begin + size]

    def _give_back(self, key: int, block: _Raw) -> None:
        with self._lock:
            self._leases.pop(key, None)
            size = block.nbytes
            self._idle.setdefault(size, []).append(block)
            self._idle.move_to_end(size)
            self._idle_bytes += size
            while self._idle_bytes > self._retain:
                oldest, blocks = next(iter(self._idle.items()))
                if blocks:
                    self._idle_bytes -= oldest
                    blocks.pop()
                else:
                    del self._idle[oldest]


def _rounded(size: int) -> int:
    """Return the length of the block that ``size`` bytes come from: up to an eighth more.

    So the rows of batches, of which no two have just as many keys, share memory, too.
    """
    step = (1 << size.bit_length() - 1) // _STEPS
    return -(-size // step) * step
