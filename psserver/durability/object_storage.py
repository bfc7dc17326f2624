"""Storage in an object store (S3, and whatever else fsspec has a driver for), and what a URL stands for."""

from __future__ import annotations

import errno
import logging
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol, cast

from psserver.durability.storage import Buffer, LocalStorage, Reading, Storage, Writing

__all__ = ["ObjectStorage", "open_storage"]

_log = logging.getLogger(__name__)

_PART: Final = 32 << 20
"""Bytes of one part of an upload; two are in memory. S3 takes 10,000 parts, so files of up to 312 GiB."""

_INSTALL: Final = {
    "s3": "'asyncps[s3]'",
    "s3a": "'asyncps[s3]'",
    "gs": "'asyncps[object-store]' gcsfs",
    "gcs": "'asyncps[object-store]' gcsfs",
    "az": "'asyncps[object-store]' adlfs",
    "abfs": "'asyncps[object-store]' adlfs",
    "abfss": "'asyncps[object-store]' adlfs",
}

_NUMBERS: Final = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (TimeoutError, errno.ETIMEDOUT),
)
"""What drivers mean that raise these without a number."""


class _Files(Protocol):
    """What is used of an ``fsspec.AbstractFileSystem``. Nothing of it takes ``*`` or ``[`` for a pattern."""

    def ls(self, path: str, detail: bool) -> list[str]: ...
    def find(self, path: str) -> list[str]: ...
    def info(self, path: str) -> Mapping[str, Any]: ...
    def open(self, path: str, mode: str, *, block_size: int) -> _Upload: ...
    def cat_file(self, path: str, start: int, end: int) -> bytes: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def rm_file(self, path: str) -> None: ...


class _Upload(Protocol):
    """What is used of an ``fsspec.spec.AbstractBufferedFile``."""

    closed: bool

    def write(self, data: memoryview, /) -> int: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


def open_storage(url: str) -> Storage:
    """Return the storage at a path, a ``file://`` URL, or the URL of an object store such as ``s3://bucket/run``.

    An object store's credentials and endpoint are found by its driver, in the environment for example.

    Raises:
        OSError: the driver cannot be set up.
        ValueError: the URL names no storage, or one whose driver is missing; the message has the remedy.
    """
    scheme, separator, rest = url.partition("://")
    if not url:
        raise ValueError("the storage's path is empty; write a directory or a URL such as s3://bucket/run")
    if not separator:
        return LocalStorage(url)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(f"{url!r} is no URL; write a directory, or for example s3://bucket/run")
    if found := re.search(r"[?#]|::", rest):  # versions of objects, and chains of drivers
        raise ValueError(f"{url!r} has a {found[0]!r}, which is no part of a storage's name; leave it out")
    if scheme.lower() in {"file", "local"}:
        return LocalStorage(_local_path(url, rest))
    return ObjectStorage(*_connect(url, scheme.lower(), rest), url)


def _local_path(url: str, rest: str) -> str:
    path = urllib.parse.unquote(rest.removeprefix("localhost"))
    if not path.startswith("/"):
        raise ValueError(f"{url!r} is not of this machine; write file:///directory, or the path alone")
    return path


def _connect(url: str, scheme: str, rest: str) -> tuple[_Files, str]:
    """Return the file system of a URL, and the URL's path in it."""
    if not rest.strip("/") and scheme != "memory":
        raise ValueError(f"{url!r} names no bucket; write for example {scheme}://bucket/run")
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 (an extra)

        # Other servers write there, too: what was listed a while ago is not what is there.
        files, path = url_to_fs(f"{scheme}://{rest}", use_listings_cache=False)
    except ImportError as error:
        install = _INSTALL.get(scheme, "'asyncps[object-store]' and the driver")
        raise ValueError(f"{url!r} needs a driver ({error}); pip install {install}") from error
    except ValueError as error:
        raise ValueError(f"{url!r} cannot be used: {error}") from error
    except Exception as error:
        raise _as_os_error(error, url) from error
    return cast(_Files, files), str(path).rstrip("/")


class ObjectStorage:
    """The objects of a bucket whose names begin alike, as a tree of files.

    A file is there, complete, when its ``sync`` returns; until then, what was there before stays. One that is
    closed without ``sync`` was given up and leaves nothing behind. After ``sync`` nothing can be appended.
    All calls block; they are for threads.

    Args:
        files: the file system.
        root: where in it, without a slash at the end.
        url: the same, for messages.
        part: bytes of one part of an upload; at least 5 MiB on S3.
    """

    def __init__(self, files: _Files, root: str, url: str, part: int = _PART) -> None:
        self.root = url.rstrip("/")
        self._files = files
        self._root = root
        self._part = part

    def names(self, directory: str) -> list[str]:
        """See ``Storage``."""
        path = self._path(directory)
        with _naming(self._url(directory)):
            try:
                found = self._files.ls(path, detail=False)
            except FileNotFoundError:
                return []
        # An object with the directory's own name is what some tools make instead of a directory.
        below = {name.rstrip("/") for name in found} - {path}
        return sorted(name.rpartition("/")[2] for name in below)

    def size(self, path: str) -> int:
        """See ``Storage``."""
        with _naming(self._url(path)):
            info = self._files.info(self._path(path))
        if info["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._url(path))
        return int(info["size"])

    def create(self, path: str) -> Writing:
        """See ``Storage``.

        Raises:
            OSError: also if files there are not uploaded but written through, with nothing to make them last.
        """
        with _naming(self._url(path)):
            upload = self._files.open(self._path(path), "wb", block_size=self._part)
        writing = _ObjectWriting(self._files, self._path(path), self._url(path), upload, self._part)
        if not _is_upload(upload) and not self.root.startswith("memory:"):
            writing.close()
            raise OSError(
                errno.EOPNOTSUPP,
                "this is no object store, and files cannot be made to last there; mount it and give the path",
                self._url(path),
            )
        return writing

    def open(self, path: str) -> Reading:
        """See ``Storage``."""
        return _ObjectReading(self._files, self._path(path), self._url(path), self.size(path), self._part)

    def sync(self, path: str) -> None:
        """See ``Storage``: an object that can be read is there to stay."""

    def publish(self, path: str, data: bytes) -> None:
        """See ``Storage``."""
        with _naming(self._url(path)):
            self._files.pipe_file(self._path(path), data)

    def remove(self, path: str) -> None:
        """See ``Storage``."""
        with _naming(self._url(path)), suppress(FileNotFoundError):
            for name in self._files.find(self._path(path)):
                with suppress(FileNotFoundError):  # somebody else was faster
                    self._files.rm_file(name)

    def free(self) -> int | None:
        """See ``Storage``."""
        return None

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _url(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


class _ObjectWriting:
    """See ``Writing``."""

    def __init__(self, files: _Files, path: str, url: str, upload: _Upload, part: int) -> None:
        self._files = files
        self._path = path
        self._url = url
        self._upload: _Upload | None = upload  # until it is complete or given up
        self._complete = False
        self._part = part

    def write(self, buffers: Sequence[Buffer]) -> None:
        upload = self._under_way()
        with self._whole_or_nothing():
            for buffer in buffers:
                data = memoryview(buffer).cast("B")
                for start in range(0, len(data), self._part):  # it copies what it is given
                    upload.write(data[start : start + self._part])

    def sync(self) -> None:
        if self._complete:
            return
        upload = self._under_way()
        with self._whole_or_nothing():
            upload.close()
        self._upload = None
        self._complete = True

    def close(self) -> None:
        if self._upload is None:
            return
        upload, self._upload = self._upload, None
        try:
            self._discard(upload)
        except Exception as error:  # not raised: why the writer gave up is what has to be told
            _log.warning("%s: the upload that was given up could not be discarded: %s", self._url, error)

    def __del__(self) -> None:
        self.close()  # or fsspec would complete what was forgotten

    def _under_way(self) -> _Upload:
        if self._upload is None:
            over = "nothing can be appended" if self._complete else "the upload was given up"
            raise OSError(errno.EBADF, over, self._url)
        return self._upload

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        try:
            with _naming(self._url):
                yield
        except OSError:
            self.close()
            raise

    def _discard(self, upload: _Upload) -> None:
        if _is_upload(upload):
            upload.closed = True  # or it would be completed when it is collected
            upload.discard()
        else:
            self._files.rm_file(self._path)


class _ObjectReading:
    """See ``Reading``."""

    def __init__(self, files: _Files, path: str, url: str, size: int, part: int) -> None:
        self._files = files
        self._path = path
        self._url = url
        self._size = size
        self._part = part

    def read_into(self, buffer: memoryview, offset: int) -> int:
        end = min(offset + len(buffer), self._size)  # a range beyond the end is an error to some stores
        for start in range(offset, end, self._part):
            stop = min(start + self._part, end)
            with _naming(self._url):
                data = self._files.cat_file(self._path, start=start, end=stop)
            if len(data) != stop - start:
                problem = f"{len(data)} bytes instead of {stop - start} from {start} on: it was replaced"
                raise OSError(errno.EIO, problem, self._url)
            buffer[start - offset : stop - offset] = data
        return max(0, end - offset)

    def close(self) -> None:
        """Nothing is held open."""


def _is_upload(file: _Upload) -> bool:
    """Say whether a file appears, complete, when it is closed, and can be discarded until then."""
    from fsspec.spec import AbstractBufferedFile  # noqa: PLC0415 (an extra)

    return isinstance(file, AbstractBufferedFile)


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """Raise whatever a driver raises as an ``OSError`` that names the URL."""
    try:
        yield
    except Exception as error:
        raise _as_os_error(error, url) from error


def _as_os_error(error: Exception, url: str) -> OSError:
    if not isinstance(error, OSError):
        return OSError(errno.EIO, f"{type(error).__name__}: {error}", url)
    number = error.errno or next((number for kind, number in _NUMBERS if isinstance(error, kind)), errno.EIO)
    return OSError(number, f"{os.strerror(number)} ({error.strerror or error})", url)
