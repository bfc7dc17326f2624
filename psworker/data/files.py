"""The files that `[data] source` names, and how they are opened: here, in an object store, or packed.

A source is a path, a pattern such as "part-*.csv", a URL of an object store ("s3://bucket/part-*.csv", of
whatever fsspec has a driver for), or a list of these. A file whose name ends in .gz, .bz2, .xz or .zst
cannot be read from its middle: see `spool`.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final, Protocol, cast

from psworker.data.spool import PACKED, unpack, unpacking
from psworker.errors import DataError

__all__ = ["File", "LocalFile", "expand", "found", "open_file", "streamed", "unpacked"]

_REMEDY: Final = "correct the name or the file"
_INSTALL: Final = {
    "s3": "'asyncps[s3]'",
    "s3a": "'asyncps[s3]'",
    "gs": "'asyncps[object-store]' gcsfs",
    "gcs": "'asyncps[object-store]' gcsfs",
    "az": "'asyncps[object-store]' adlfs",
    "abfs": "'asyncps[object-store]' adlfs",
    "abfss": "'asyncps[object-store]' adlfs",
}
_BUFFER: Final = 128 << 10  # bytes that are asked of an object store at the least
_WHOLE: Final = 4 << 20  # the same, of what is read from beginning to end

_DRIVERS: Final = {"botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs"}
_CREDENTIALS: Final = (
    "give credentials as the driver takes them (S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE)"
)
_REMEDIES: Final = {"NoCredentialsError": _CREDENTIALS, "PartialCredentialsError": _CREDENTIALS}
_REACH: Final = (
    "see that the store can be reached and lets us in (S3: AWS_ENDPOINT_URL), or correct [data] source"
)


class File(Protocol):
    """A file that can be opened any number of times, and read from its middle."""

    @property
    def path(self) -> str:
        """Its name, for messages."""

    @property
    def size(self) -> int:
        """Its bytes. Raises DataError if it is not there."""

    def open(self) -> BinaryIO:
        """It, from its beginning. Raises OSError."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A regular file of this machine."""

    path: str

    @property
    def size(self) -> int:
        """See `File`."""
        with open_file(self) as file:
            return os.fstat(file.fileno()).st_size

    def open(self) -> BinaryIO:
        """See `File`."""
        # Opening a pipe would wait for a writer; it could not be read in chunks anyway.
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            raise DataError(self.path, None, "not a regular file; give the path of a file")
        return open(self.path, "rb")


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFile:
    """An object that fsspec opens; ranges of it are asked for as they are read."""

    path: str
    files: Any
    key: str

    @property
    def size(self) -> int:
        """See `File`."""
        with _naming(self.path):
            return int(self.files.info(self.key)["size"])

    def open(self) -> BinaryIO:
        """See `File`."""
        # A driver's own buffers read megabytes ahead, of which a chunk, or a column of it, needs little.
        return io.BufferedReader(self.files.open(self.key, "rb", cache_type="none"), _BUFFER)


@contextmanager
def open_file(file: File) -> Iterator[BinaryIO]:
    """Open a file for reading; what the system or the object store refuses becomes a DataError."""
    with _naming(file.path), file.open() as opened:
        yield opened


def _from_front(file: File) -> Any:
    """The file, or what comes from a pipe: as much as there is, at each call of `read`."""
    if isinstance(file, LocalFile):
        return open(file.path, "rb", buffering=0)
    return io.BufferedReader(cast("io.RawIOBase", file.open()), _WHOLE)


def expand(source: str | Iterable[str]) -> tuple[File, ...]:
    """The files of a source in their order: as listed, and those of a pattern sorted by name.

    Packed files are unpacked. Raises DataError for a pattern of no file, and for what cannot be unpacked.
    """
    return tuple(unpacked(file) for file in found(source))


def found(source: str | Iterable[str]) -> tuple[File, ...]:
    """The same files, packed as they are. Raises DataError for a pattern of no file."""
    places = [source] if isinstance(source, str) else source
    return tuple(file for place in places for file in _found(place))


@contextmanager
def streamed(file: File) -> Iterator[BinaryIO]:
    """Open a file, or a pipe, to read it once from front to end, unpacked on the way.

    Raises DataError, then or where it is read.
    """
    packing = packing_of(file.path)
    with _naming(file.path), ExitStack() as stack:
        opened: Any = stack.enter_context(_from_front(file))
        yield opened if packing is None else stack.enter_context(unpacking(file.path, opened, packing))


def unpacked(file: File) -> File:
    """The file as it is without its packing."""
    packing = packing_of(file.path)
    if packing is None:
        return file
    with open_file(file) as opened, io.BufferedReader(cast("io.RawIOBase", opened), _WHOLE) as packed:
        return unpack(file.path, packed, packing)


def packing_of(path: str) -> str | None:
    """How a file is packed, by the end of its name: "gz", "bz2", "xz", "zst", or not at all."""
    extension = PurePosixPath(path).suffix.lower().removeprefix(".")
    return extension if extension in PACKED else None


def _found(place: str) -> list[File]:
    scheme, separator, rest = place.partition("://")
    if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return _found_remotely(place, scheme.lower(), rest)
    if os.path.exists(place) or not glob.has_magic(place):
        return [LocalFile(place)]
    return _some([LocalFile(path) for path in sorted(glob.glob(place, recursive=True))], place)


def _found_remotely(url: str, scheme: str, rest: str) -> list[File]:
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 (an extra)

        files, key = url_to_fs(f"{scheme}://{rest}", use_listings_cache=False)
    except ImportError as error:
        install = _INSTALL.get(scheme, "'asyncps[object-store]' and the driver")
        raise DataError(url, None, f"needs a driver ({error}); pip install {install}") from error
    except Exception as error:
        raise DataError(url, None, f"{error or type(error).__name__}; {_REMEDY}") from error
    if not glob.has_magic(key):
        return [RemoteFile(url, files, key)]
    with _naming(url):
        keys = sorted(files.glob(key))
    return _some([RemoteFile(f"{scheme}://{one.lstrip('/')}", files, one) for one in keys], url)


def _some(found: list[Any], place: str) -> list[File]:
    if not found:
        raise DataError(place, None, "no file has such a name; correct the pattern")
    return found


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn what goes wrong with a file into a DataError; drivers raise errors of their own."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        bucket = ", or no such bucket" if "://" in path else ""
        raise DataError(path, None, f"No such file or directory{bucket}; {_REMEDY}") from error
    except OSError as error:
        remedy = _REACH if "://" in path else _REMEDY
        raise DataError(path, None, f"{error.strerror or error}; {remedy}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _DRIVERS:
            raise
        name = type(error).__name__
        raise DataError(path, None, f"{name}: {error}; {_REMEDIES.get(name, _REACH)}") from error
