"""Where in a growing file that is rotated a reader is, as one number that only grows.

The number is the file's place in the order of those that were read, 16 bits; a mark by which it is known
again, 10 bits, of its inode's number; and a byte in it, 37 bits: 65,536 files of up to 128 GiB.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

__all__ = ["MAX_FILE", "Place", "mark_of"]

_BYTES: Final = 37
_MARK: Final = 10
_FILES: Final = 16

MAX_FILE: Final = (1 << _BYTES) - 1
"""Bytes of the largest file."""


class Place(NamedTuple):
    """Byte ``byte`` of the file that was the ``file``th to be read, from 0, and has this ``mark``."""

    file: int
    mark: int
    byte: int

    @classmethod
    def of(cls, offset: int) -> Self:
        """Return what an offset says."""
        return cls(offset >> (_BYTES + _MARK), offset >> _BYTES & (1 << _MARK) - 1, offset & MAX_FILE)

    @property
    def offset(self) -> int:
        """The number.

        Raises:
            OverflowError: so many files, or such a long one, cannot be numbered.
        """
        if self.file >> _FILES or self.byte > MAX_FILE:
            raise OverflowError(f"file {self.file}, byte {self.byte}")
        return (self.file << _MARK | self.mark) << _BYTES | self.byte


def mark_of(inode: int) -> int:
    """Return a file's mark. It stays when the file is renamed; one in 1,024 others has the same."""
    return inode & (1 << _MARK) - 1
