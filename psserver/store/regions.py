"""Stretches of one array, of lengths that are powers of two: a buddy system (Knowlton 1965).

What is given back is joined with its neighbour, so that two small stretches make a large one again.
"""

from __future__ import annotations

__all__ = ["Regions"]


class Regions:
    """Which parts of an array of ``length`` elements are in use.

    Every stretch begins at a multiple of its own length.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._free: dict[int, set[int]] = {}  # length of a stretch -> where such begin
        self.top = 0
        """Where what was never in use begins."""

    def take(self, length: int) -> int:
        """Return where a stretch of ``length``, a power of two, begins.

        Raises:
            MemoryError: the array is full.
        """
        size = length
        while not self._free.get(size):
            if size >= self.top:
                return self._extend(length)
            size *= 2
        begin = self._free[size].pop()
        while size > length:
            size //= 2
            self._free.setdefault(size, set()).add(begin + size)
        return begin

    def give_back(self, begin: int, length: int) -> None:
        """Let a stretch be used again."""
        while begin ^ length in (free := self._free.setdefault(length, set())):
            free.remove(begin ^ length)
            begin &= ~length
            length *= 2
        free.add(begin)

    def _extend(self, length: int) -> int:
        begin = -(-self.top // length) * length
        if begin + length > self._length:
            raise MemoryError(f"no room for another {length} entries in an index of {self._length}")
        while self.top < begin:  # what lies between, in stretches that begin at multiples of their lengths
            size = self.top & -self.top
            gap, self.top = self.top, self.top + size
            self.give_back(gap, size)
        self.top = begin + length
        return begin
