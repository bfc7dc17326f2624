"""Packed files, unpacked once.

A compressed stream cannot be read from its middle, and chunks are. So a worker unpacks such a file when it
opens the source, piece by piece, into a temporary file that has no name: it takes disk, not memory, and is
gone with the process, however that ends. TMPDIR says where.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from psworker.errors import DataError, JobError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["PACKED", "Spooled", "spool", "unpack", "unpacking"]

_log = logging.getLogger(__name__)

_PIECE: Final = 1 << 20


def _zstd(packed: BinaryIO) -> BinaryIO:
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    return cast("BinaryIO", pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd"))


PACKED: Final[dict[str, Callable[[BinaryIO], Any]]] = {
    "gz": lambda packed: gzip.GzipFile(fileobj=packed),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zst": _zstd,
}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Spooled:
    """A `File` that is unpacked, open as long as this object is; `path` is that of the packed one."""

    path: str
    descriptor: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return os.fstat(self.descriptor).st_size

    def open(self) -> BinaryIO:
        """It, from its beginning; readers do not disturb each other."""
        return io.BufferedReader(_Reader(self), _PIECE)


class _Reader(io.RawIOBase):
    """An unpacked file with a position of one's own."""

    def __init__(self, spooled: Spooled) -> None:
        super().__init__()
        self._spooled = spooled
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = os.preadv(self._spooled.descriptor, [buffer], self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        if origin is None:
            origin = self._spooled.size
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position


def unpack(path: str, packed: BinaryIO, packing: str) -> Spooled:
    """Unpack `packed` ("gz", "bz2", "xz" or "zst"). Raises DataError if that is not possible."""
    try:
        with unpacking(path, packed, packing) as stream:
            spooled = spool(path, stream)
    except OSError as error:
        remedy = f"make room in {tempfile.gettempdir()}, or set TMPDIR"
        raise DataError(path, None, f"cannot be unpacked: {error.strerror}; {remedy}") from error
    _log.info("%s: unpacked %d bytes into %s", path, spooled.size, tempfile.gettempdir())
    return spooled


@contextmanager
def unpacking(path: str, packed: BinaryIO, packing: str) -> Iterator[BinaryIO]:
    """What is in `packed`, to be read once, from front to end.

    Raises DataError, then or where it is read, for bytes that are no such file; OSError as reading does.
    """
    try:
        yield PACKED[packing](packed)
    except ImportError as error:
        raise DataError(path, None, "zstd needs pyarrow; pip install 'asyncps[parquet]'") from error
    except JobError:  # of whoever reads, not of the bytes
        raise
    except (EOFError, ValueError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # What bz2 and pyarrow say of bytes that they do not understand has no number.
        reason = f"cannot be unpacked ({error}); is it a whole .{packing} file?"
        raise DataError(path, None, reason) from error


def spool(path: str, stream: Any) -> Spooled:
    """Copy a stream to its end into a file that has no name."""
    with tempfile.TemporaryFile(prefix="psworker-") as file:
        shutil.copyfileobj(stream, file, _PIECE)
        file.flush()
        spooled = Spooled(path, os.dup(file.fileno()))
    weakref.finalize(spooled, os.close, spooled.descriptor)
    return spooled
