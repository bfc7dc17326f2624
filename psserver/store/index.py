"""From keys to row numbers: open addressing with linear probing, in segments that grow one at a time.

An entry is two 64-bit words: the key; and the row number plus 1 in the lower half of the second word, 0 where
the entry is empty, with a hint in its upper half. The hint is for finding repeated keys in a batch without a
second hash table: it is a place in the batch's list of distinct rows, and is believed only if that place has
this very row (Briggs and Torczon, "An efficient representation for sparse sets", 1993).

A key begins at a multiple of four entries, which are one cache line: they are looked at together.

Bits 40 to 49 of a key's hash choose its segment (the upper 14 are alike for all keys of a shard), the lower
ones its place in there. Each segment has a load of its own at which it doubles, spread evenly over one
doubling. So there is always a segment about to grow and never many at a time, and none takes long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys, hash_keys
from psserver.store.regions import Regions
from psserver.store.reserved import reserve

__all__ = ["LINE", "SEGMENTS", "SEGMENT_SHIFT", "Index", "Move", "segments_of"]

SEGMENTS: Final = 1024
SEGMENT_SHIFT: Final = 40
LINE: Final = 4
"""Entries in a cache line of 64 bytes."""

_FIRST_CAPACITY: Final = 64
_LOWEST_LOAD: Final = 0.44

Longs = npt.NDArray[np.int64]
Move = Callable[["Index", int, int, int, int], None]
"""``move(index, begin, length, new_begin, new_length)``: enter what is in one stretch into another."""


def segments_of(hashes: Keys) -> Keys:
    """Return the segments of keys that have these hashes."""
    return (hashes >> np.uint64(SEGMENT_SHIFT)) & np.uint64(SEGMENTS - 1)


class Index:
    """The entries and how they are cut into segments. Kernels read and write them.

    Attributes:
        words: two for each entry.
        begins: the first entry of each segment.
        masks: the entries of each segment, a power of two, minus 1.
        counts: keys in each segment.
        limits: how many keys each may have before it doubles.
    """

    __slots__ = ("_loads", "_regions", "begins", "counts", "limits", "masks", "words")

    def __init__(self) -> None:
        self.words: Keys = reserve(np.uint64)
        self._regions = Regions(self.words.size // 2)
        self._loads = _LOWEST_LOAD * 2.0 ** (np.arange(SEGMENTS) / SEGMENTS)
        first = self._regions.take(SEGMENTS * _FIRST_CAPACITY)
        self.begins: Keys = np.arange(SEGMENTS, dtype=np.uint64) * np.uint64(_FIRST_CAPACITY) + np.uint64(
            first
        )
        self.masks: Keys = np.full(SEGMENTS, _FIRST_CAPACITY - 1, np.uint64)
        self.counts: Longs = np.zeros(SEGMENTS, np.int64)
        self.limits: Longs = (self._loads * _FIRST_CAPACITY).astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that were ever in use."""
        return self._regions.top * 16

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return int(self.counts.sum())

    def make_room(self, segment: int, more: int, move: Move) -> None:
        """Let ``segment`` have ``more`` keys; ``move`` is the kernel that moves entries.

        Raises:
            MemoryError: there is no room; nothing has changed.
        """
        old = int(self.masks[segment]) + 1
        new = old
        while int(self._loads[segment] * new) < self.counts[segment] + more:
            new *= 2
        if new == old:
            return
        begin = int(self.begins[segment])
        place = self._regions.take(new)
        move(self, begin, old, place, new)
        self._regions.give_back(begin, old)
        self.begins[segment] = place
        self.masks[segment] = new - 1
        self.limits[segment] = int(self._loads[segment] * new)

    def segment_of(self, key: np.uint64) -> int:
        """Return the segment of ``key``."""
        return int(segments_of(hash_keys(np.array([key])))[0])

    def places(self, keys: Keys) -> tuple[Keys, Keys, Keys]:
        """Return where ``keys`` are looked for: first entries and masks of segments, offsets in there."""
        hashes = hash_keys(keys)
        segments = segments_of(hashes)
        masks = self.masks[segments]
        return self.begins[segments], masks, hashes & masks & ~np.uint64(LINE - 1)
