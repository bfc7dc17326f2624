"""Where in a growing file that is rotated a reader is, as one number that only grows.

The number is the file's place in the order of those that were read, 16 bits; a byte in it, 37 bits; and a
mark, 10 bits, of what the file has before that byte, by which it is known again. That is enough for 65,536
files of up to 128 GiB.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import xxhash

__all__ = ["KNOWN", "MAX_FILE", "Place", "mark_of"]

_FILES: Final = 16
_BYTES: Final = 37
_MARK: Final = 10

MAX_FILE: Final = (1 << _BYTES) - 1
"""Bytes of the largest file."""

KNOWN: Final = 1024
"""Bytes at a file's beginning, and before a place in it, by which it is known again."""


class Place(NamedTuple):
    """A byte of the file that was the ``file``th to be read, from 0; ``mark`` is of what is before it."""

    file: int
    byte: int
    mark: int

    @classmethod
    def of(cls, offset: int) -> Self:
        """Return what an offset says."""
        return cls(offset >> (_BYTES + _MARK), offset >> _MARK & MAX_FILE, offset & (1 << _MARK) - 1)

    @property
    def offset(self) -> int:
        """The number.

        Raises:
            OverflowError: so many files, or such a long one, cannot be numbered.
        """
        if self.file >> _FILES or self.byte > MAX_FILE:
            raise OverflowError(f"file {self.file}, byte {self.byte}")
        return (self.file << _BYTES | self.byte) << _MARK | self.mark


def mark_of(head: bytes, before: bytes) -> int:
    """Return the mark of a place.

    Neither a name nor an inode's number is part of it: files are renamed, copied and cut, and numbers are
    used again. One in 1,024 other files has the same.

    Args:
        head: the first ``KNOWN`` bytes of the file, or as many as are before the place.
        before: the last ``KNOWN`` bytes before the place, or as many as there are.
    """
    return xxhash.xxh3_64_intdigest(head + before) & (1 << _MARK) - 1
