"""A shard's arrays in a safetensors file: written from where they are, each with its checksum, and read."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from protocol.errors import CheckpointUnusable
from protocol.messages import SavedFile
from protocol.tensors import DTYPES, as_bytes
from psserver.durability import safetensors
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import ArrayEntry, array_key
from psserver.durability.storage import Reading, Storage, Writing, reading

__all__ = [
    "Array",
    "Progress",
    "Report",
    "SavedArray",
    "Streamed",
    "check_size",
    "check_whole",
    "damage_named",
    "read_parts",
    "read_whole",
    "room",
    "unusable",
    "write",
    "writing",
]

Array = npt.NDArray[Any]
Progress = Callable[[int], None]
"""Is told of bytes as they have been read."""

Report = Callable[[CheckpointUnusable], None]
"""Is told of what is wrong; what it raises ends the reading."""

_PIECE: Final = 8 * 1024 * 1024
"""Bytes that are read or written at a time: in the cache between their checksum and the disk, and yet many.

For each piece this thread needs the interpreter. A nice thread that has it and loses its processor keeps
those waiting who answer pushes.
"""

_DAMAGE: Final = frozenset({errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENODATA, errno.EBADMSG})
"""Errors that are about a file and not about the storage: they do not go away by themselves."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """An array that is made while it is written: ``pieces`` yields 1-d arrays, ``size`` in all."""

    dtype: np.dtype[Any]
    size: int
    pieces: Callable[[], Iterator[Array]]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.size * self.itemsize


@dataclass(frozen=True, slots=True)
class SavedArray:
    """Elements ``start`` to ``stop`` of a tensor, or of its optimizer's ``slot``.

    ``shape`` is the whole tensor's; ``values`` are 1-d and contiguous, or made while they are written.
    """

    job: str
    name: str
    slot: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    values: Array | Streamed

    @property
    def key(self) -> str:
        """Its key in a file."""
        return array_key(self.job, self.name, self.slot)


def unusable(path: str, message: str) -> CheckpointUnusable:
    """Return the error that says what is wrong with the file at ``path``."""
    return CheckpointUnusable(message, field="file", value=path)


@contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Make what is wrong with a file, and only that, a ``CheckpointUnusable``.

    A storage that cannot be reached now says nothing about the file: who would go back to an older
    checkpoint then would lose what is not lost.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise unusable(path, "it is missing") from error
    except OSError as error:
        # With a cause it is not the kernel's: an object store's driver had trouble, with the network even.
        if error.errno not in _DAMAGE or error.__cause__ is not None:
            raise
        raise unusable(path, f"it cannot be read: {os.strerror(error.errno)}") from error
    except MemoryError as error:
        raise unusable(path, "there is not enough memory to read it") from error


@contextmanager
def writing(storage: Storage, path: str) -> Iterator[Writing]:
    """Write a file, and close it in the end."""
    opened = storage.create(path)
    try:
        yield opened
    finally:
        opened.close()


# --- writing


def write(
    storage: Storage, directory: str, name: str, arrays: Sequence[SavedArray], about: Mapping[str, str]
) -> tuple[SavedFile, tuple[ArrayEntry, ...]]:
    """Write and sync a file of ``arrays``; return what it is, and where they are in it.

    Args:
        storage: where to.
        directory: of the file.
        name: of the file.
        arrays: of different keys. They are not copied.
        about: goes into the file's metadata, for people; its keys have no slash.

    Raises:
        OSError: it cannot be written.
        ValueError: an array is not what it says, or there are too many.
    """
    for array in arrays:
        _check(array)
    # Sorted so that each array begins at a multiple of its item size.
    ordered = sorted(arrays, key=lambda array: (-array.values.itemsize, array.key))
    parts = {array.key: f"{array.start}:{array.stop} of {list(array.shape)}" for array in ordered}
    first = safetensors.header([_layout(array) for array in ordered], {**about, **parts})
    whole = xxhash.xxh3_64(first)
    at, entries = len(first), []
    with writing(storage, f"{directory}/{name}") as opened:
        opened.write([first])
        for array in ordered:
            entries.append(_entry(array, at, _write_array(opened, array, whole)))
            at += array.values.nbytes
        failpoint("checkpoint.tensors-written")
        opened.sync()
    failpoint("checkpoint.tensors-synced")
    return SavedFile(name, at, whole.hexdigest()), tuple(entries)


def _check(array: SavedArray) -> None:
    values = array.values
    shape = (values.size,) if isinstance(values, Streamed) else values.shape
    if DTYPES.get(array.dtype) != values.dtype or shape != (array.stop - array.start,):
        raise ValueError(f"{array.key}: {values.dtype} of shape {shape} is not what it says to be")
    if not isinstance(values, Streamed) and not values.flags.c_contiguous:
        raise ValueError(f"{array.key}: it is not contiguous")


def _layout(array: SavedArray | ArrayEntry) -> safetensors.Array:
    """Return how an array is shown to those who know nothing of parts."""
    elements = array.stop - array.start
    shape = array.shape if elements == math.prod(array.shape) else (elements,)
    return safetensors.Array(array.key, array.dtype, shape)


def _entry(array: SavedArray, offset: int, checksum: str) -> ArrayEntry:
    return ArrayEntry(
        job=array.job,
        name=array.name,
        slot=array.slot,
        dtype=array.dtype,
        shape=array.shape,
        start=array.start,
        stop=array.stop,
        offset=offset,
        bytes=array.values.nbytes,
        checksum=checksum,
    )


def _write_array(opened: Writing, array: SavedArray, whole: xxhash.xxh3_64) -> str:
    """Write an array and return its checksum; ``whole`` is the file's."""
    values, own, written = array.values, xxhash.xxh3_64(), 0
    for part in values.pieces() if isinstance(values, Streamed) else (values,):
        data = as_bytes(part)
        for begin in range(0, len(data), _PIECE):
            piece = data[begin : begin + _PIECE]
            own.update(piece)
            whole.update(piece)
            opened.write([piece])
        written += len(data)
    if written != values.nbytes:
        raise ValueError(f"{array.key}: {written} bytes were made, not {values.nbytes}")
    return own.hexdigest()


# --- reading


def read_whole(
    storage: Storage,
    directory: str,
    file: SavedFile,
    entries: Sequence[ArrayEntry],
    *,
    report: Report,
    keep: bool,
    progress: Progress,
) -> list[SavedArray]:
    """Read a file to its end and check all of it.

    Args:
        storage: where from.
        directory: of the file.
        file: what it must be.
        entries: what must be in it, in this order.
        report: is told of everything that is wrong.
        keep: return the arrays; else nothing.
        progress: is told of the bytes read.
    """
    path = f"{directory}/{file.name}"
    found: list[SavedArray] = []
    sound = True
    whole = xxhash.xxh3_64()
    with _opened(storage, directory, file) as opened:
        try:
            _read_header(path, opened, file, entries, whole)
        except CheckpointUnusable as problem:
            sound = False
            report(problem)
        for entry in entries:
            values = room(path, entry.dtype, entry.stop - entry.start) if keep else None
            own = xxhash.xxh3_64()
            for _, piece in _pieces(path, opened, entry.offset, entry.bytes, values):
                own.update(piece)
                whole.update(piece)
                progress(len(piece))
            if own.hexdigest() != entry.checksum:
                sound = False
                report(_damaged(path, entry, own))
            if values is not None:
                found.append(_saved(entry, values))
    if sound and whole.hexdigest() != file.checksum:
        report(_altered(path, file, whole))
    return found


def check_whole(
    storage: Storage, directory: str, file: SavedFile, *, report: Report, progress: Progress
) -> None:
    """Read a file of which nothing is known but its size and its checksum."""
    path = f"{directory}/{file.name}"
    whole = xxhash.xxh3_64()
    with _opened(storage, directory, file) as opened:
        for _, piece in _pieces(path, opened, 0, file.bytes):
            whole.update(piece)
            progress(len(piece))
    if whole.hexdigest() != file.checksum:
        report(_altered(path, file, whole))


def read_parts(
    storage: Storage,
    directory: str,
    file: SavedFile,
    wanted: Sequence[tuple[ArrayEntry, Sequence[tuple[int, Array]]]],
) -> None:
    """Read some arrays of a file into memory that is there; each is checked as a whole.

    Args:
        storage: where from.
        directory: of the file.
        file: what it must be.
        wanted: arrays, and for each the parts of its tensor that it goes to: the first element, memory.

    Raises:
        CheckpointUnusable: something is damaged.
    """
    path = f"{directory}/{file.name}"
    with _opened(storage, directory, file) as opened:
        for entry, parts in wanted:
            own = _scatter(path, opened, entry, parts)
            if own.hexdigest() != entry.checksum:
                raise _damaged(path, entry, own)


def room(path: str, dtype: str, elements: int) -> Array:
    """Return memory for elements of what is at ``path``.

    Raises:
        CheckpointUnusable: there is none.
    """
    with damage_named(path):
        return np.empty(elements, DTYPES[dtype])


def check_size(storage: Storage, directory: str, file: SavedFile) -> None:
    """Raise ``CheckpointUnusable`` if a file is missing or has not as many bytes as it must have."""
    path = f"{directory}/{file.name}"
    with damage_named(path):
        size = storage.size(path)
    if size != file.bytes:
        raise unusable(path, f"it has {size} bytes, not {file.bytes}")


@contextmanager
def _opened(storage: Storage, directory: str, file: SavedFile) -> Iterator[Reading]:
    check_size(storage, directory, file)
    path = f"{directory}/{file.name}"
    with damage_named(path), reading(storage, path) as opened:
        yield opened


def _read_header(
    path: str, opened: Reading, file: SavedFile, entries: Sequence[ArrayEntry], whole: xxhash.xxh3_64
) -> None:
    """Check that the header says the same as ``entries``."""
    start = entries[0].offset if entries else file.bytes
    if not safetensors.LENGTH <= start <= safetensors.LENGTH + safetensors.MOST_HEADER:
        raise unusable(path, f"its data begin at {start}, where they cannot")
    data = b"".join([bytes(piece) for _, piece in _pieces(path, opened, 0, start)])
    whole.update(data)
    first, text = data[: safetensors.LENGTH], data[safetensors.LENGTH :]
    try:
        length = safetensors.header_length(first, file.bytes)
        if length != len(text):
            raise ValueError(f"offset 0: a header of {length} bytes before data at {start}")  # noqa: TRY301
        contents = safetensors.parse_header(text, file.bytes)
    except ValueError as error:
        raise unusable(path, str(error)) from None
    if contents.arrays != tuple(_layout(entry) for entry in entries):
        raise unusable(path, "its header has other arrays than the shard's state")


def _scatter(
    path: str, opened: Reading, entry: ArrayEntry, parts: Sequence[tuple[int, Array]]
) -> xxhash.xxh3_64:
    """Read an array into those of its tensor's ``parts`` that it overlaps, and return its checksum."""
    dtype, own = DTYPES[entry.dtype], xxhash.xxh3_64()
    for at, piece in _pieces(path, opened, entry.offset, entry.bytes):
        own.update(piece)
        values = np.frombuffer(piece, dtype)
        begin = entry.start + at // dtype.itemsize
        for start, array in parts:
            low, high = max(begin, start), min(begin + values.size, start + array.size)
            if low < high:
                array[low - start : high - start] = values[low - begin : high - begin]
    return own


def _pieces(
    path: str, opened: Reading, offset: int, length: int, into: Array | None = None
) -> Iterator[tuple[int, memoryview]]:
    """Read ``length`` bytes, and yield where each piece is in them, and the piece.

    Without ``into``, all pieces are in the same memory.
    """
    memory = memoryview(bytearray(min(_PIECE, length))) if into is None else as_bytes(into)
    for at in range(0, length, _PIECE):
        begin = 0 if into is None else at
        piece = memory[begin : begin + min(_PIECE, length - at)]
        read = opened.read_into(piece, offset + at)
        if read != len(piece):
            raise unusable(path, f"offset {offset + at + read}: it ends there")
        yield at, piece


def _damaged(path: str, entry: ArrayEntry, own: xxhash.xxh3_64) -> CheckpointUnusable:
    what = f"{entry.key}, {entry.bytes} bytes at offset {entry.offset}, is damaged"
    return unusable(path, f"{what}: its checksum is {own.hexdigest()}, it was {entry.checksum}")


def _altered(path: str, file: SavedFile, whole: xxhash.xxh3_64) -> CheckpointUnusable:
    return unusable(path, f"it is damaged: its checksum is {whole.hexdigest()}, it was {file.checksum}")


def _saved(entry: ArrayEntry, values: Array) -> SavedArray:
    return SavedArray(
        entry.job, entry.name, entry.slot, entry.dtype, entry.shape, entry.start, entry.stop, values
    )
