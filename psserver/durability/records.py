"""The bytes of the update log, without files: batches to records and back.

A segment's file is a header of 64 bytes, and records one after the other. A record is a header of 64 bytes,
then meta, then data, each of them padded with zeros to a multiple of 64. All numbers are little-endian.

    segment header   magic "PSUPDLOG", version u32, repair u32, segment u64, start u64, log_id u64,
                     16 zeros, checksum u64 of the 56 bytes before it
    record header    magic "PSUR", length of the meta u32, log_id u64, position u64, synced u64,
                     length of the data u64, checksums u64 of the meta, of the data, of the 56 bytes before it
    meta             msgpack: [event...], [[key, document]...], [[[key, info], dtype, elements]...]
    data             the arrays, each padded

A *position* counts the bytes of all records since the log began, over all its segments. A segment's header
says at which one it starts, so a record's position is known from where it lies; it says the same itself.
``log_id`` is drawn when a log begins, and the same in all its segments and records. ``synced`` is the
position up to which the log was durable when the record was written: it is how damage can be told from a torn
tail. Checksums are xxh3_64, and cover the padding.

A batch may stand for several: later arrays and documents replace earlier ones of the same key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64, xxh3_64_intdigest

from protocol.errors import shorten
from protocol.tensors import ALIGN, DTYPES, as_bytes
from psserver.durability.storage import Buffer

__all__ = [
    "HEADER",
    "RECORD_MAGIC",
    "Array",
    "Batch",
    "Damaged",
    "Foreign",
    "Gathered",
    "Key",
    "RecordHeader",
    "SegmentHeader",
    "data_buffers",
    "decode_record_header",
    "decode_segment_header",
    "encode_record",
    "encode_segment_header",
    "parse_meta",
]

Array = npt.NDArray[Any]
Key = tuple[str | int, ...]

HEADER: Final = 64
"""Bytes of a segment's header, and of a record's."""

RECORD_MAGIC: Final = b"PSUR"
_SEGMENT_MAGIC: Final = b"PSUPDLOG"
_VERSION: Final = 1

_RECORD: Final = struct.Struct("<4sIQQQQQQ")
_SEGMENT: Final = struct.Struct("<8sIIQQQ16x")
_CHECKSUM: Final = struct.Struct("<Q")
_PADDING: Final = tuple(bytes(length) for length in range(ALIGN))
_DTYPES: Final = {dtype: msgpack.packb(name) for name, dtype in DTYPES.items()}

_MOST_META: Final = (1 << 32) - 1
_FURTHEST: Final = 1 << 62
"""Positions and lengths stay below this, so that no sum of them has more than 63 bits."""


class Damaged(ValueError):
    """The bytes are not what was written."""


class Foreign(ValueError):
    """The bytes are what was written, and not what this software reads."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first bytes of a segment's file.

    Attributes:
        segment: its number.
        repair: 0, or how many files of that number came before this one and failed.
        start: the position of its first record.
        log_id: the log's.
    """

    segment: int
    repair: int
    start: int
    log_id: int


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The first bytes of a record; lengths in bytes, ``data`` with its padding."""

    log_id: int
    position: int
    synced: int
    meta: int
    data: int
    meta_checksum: int
    data_checksum: int

    @property
    def length(self) -> int:
        """Bytes of the whole record."""
        return HEADER + _padded(self.meta) + self.data


@dataclass(frozen=True, slots=True)
class Batch:
    """What one record says: events in order, and the latest documents and arrays."""

    events: list[Any]
    docs: dict[Key, Any]
    arrays: dict[Key, tuple[Any, Array]]


@dataclass(slots=True)
class Gathered:
    """What is to be written, in pieces of msgpack.

    Attributes:
        events: each by itself.
        docs: for each key, ``[key, document]``.
        arrays: for each key, ``[key, info]``, and the 1-d contiguous array.
    """

    events: list[bytes] = field(default_factory=list)
    docs: dict[Key, bytes] = field(default_factory=dict)
    arrays: dict[Key, tuple[bytes, Array]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.events or self.docs or self.arrays)

    def add(self, later: Gathered) -> None:
        """Become one batch with ``later``."""
        self.events += later.events
        self.docs.update(later.docs)
        self.arrays.update(later.arrays)


def _padded(length: int) -> int:
    return length + -length % ALIGN


def _sealed(fields: bytes) -> bytes:
    return fields + _CHECKSUM.pack(xxh3_64_intdigest(fields))


def _is_sealed(header: bytes) -> bool:
    return len(header) == HEADER and header == _sealed(header[: -_CHECKSUM.size])


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the 64 bytes that a segment's file begins with."""
    return _sealed(
        _SEGMENT.pack(_SEGMENT_MAGIC, _VERSION, header.repair, header.segment, header.start, header.log_id)
    )


def decode_segment_header(data: bytes) -> SegmentHeader:
    """Return what a segment's file begins with.

    Raises:
        Damaged: these are not the bytes of a segment's header.
        Foreign: they are, of another version.
    """
    if not _is_sealed(data) or not data.startswith(_SEGMENT_MAGIC):
        raise Damaged("the segment's header is damaged")
    _, version, repair, segment, start, log_id = _SEGMENT.unpack_from(data)
    if version != _VERSION:
        raise Foreign(f"the segment has format version {version}, this software reads {_VERSION}")
    if start >= _FURTHEST or start % ALIGN:
        raise Damaged(f"the segment cannot start at position {start}")
    return SegmentHeader(segment, repair, start, log_id)


def encode_record(batch: Gathered, log_id: int, position: int, synced: int) -> tuple[list[Buffer], int]:
    """Return the buffers of a record, and their length in bytes. The arrays are not copied.

    Raises:
        KeyError: an array's dtype is not one that is written.
        OverflowError: the events and documents are 4 GiB or more.
    """
    meta = _encode_meta(batch)
    if len(meta) > _MOST_META:
        raise OverflowError(f"a record's events and documents have {len(meta)} bytes, 4 GiB at most")
    data: list[Buffer] = []
    length = 0
    for _, array in batch.arrays.values():
        if array.nbytes:
            data.append(as_bytes(array))
            length += _padded(array.nbytes)
            if array.nbytes % ALIGN:
                data.append(_PADDING[-array.nbytes % ALIGN])
    padded = meta + _PADDING[-len(meta) % ALIGN]
    fields = _RECORD.pack(
        RECORD_MAGIC,
        len(meta),
        log_id,
        position,
        synced,
        length,
        xxh3_64_intdigest(padded),
        _checksum(data),
    )
    return [_sealed(fields) + padded, *data], HEADER + len(padded) + length


def decode_record_header(data: bytes) -> RecordHeader:
    """Return what a record begins with.

    Raises:
        Damaged: these are not the bytes of a record's header.
    """
    if not _is_sealed(data) or not data.startswith(RECORD_MAGIC):
        raise Damaged("the record's header is damaged")
    _, meta, log_id, position, synced, length, meta_checksum, data_checksum = _RECORD.unpack_from(data)
    if max(position, length) >= _FURTHEST or synced > position or position % ALIGN or length % ALIGN:
        raise Damaged(f"a record cannot be at position {position}, synced to {synced}, with {length} bytes")
    return RecordHeader(log_id, position, synced, meta, length, meta_checksum, data_checksum)


def parse_meta(header: RecordHeader, meta: bytes) -> Batch:
    """Return the batch whose meta, with its padding, this is; what is in the arrays comes later.

    Allocates no more than the record has bytes, and what Python needs for the objects.

    Raises:
        Damaged: it is not what was written.
        Foreign: it is, and makes no sense.
    """
    if xxh3_64_intdigest(meta) != header.meta_checksum:
        raise Damaged("the checksum of the record's meta is wrong")
    try:
        events, docs, entries = _unpack(meta[: header.meta])
        arrays = {_key(key): (info, dtype, elements) for (key, info), dtype, elements in entries}
        batch = Batch(events, {_key(key): document for key, document in docs}, {})
        if type(events) is not list or len(batch.docs) < len(docs) or len(arrays) < len(entries):
            raise Foreign("the record's meta is not made of lists without a key that is there twice")
        if sum(_padded(_nbytes(dtype, elements)) for _, dtype, elements in arrays.values()) != header.data:
            raise Foreign("the record's arrays do not have the record's length")
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise Foreign(f"the record's meta makes no sense: {shorten(error)}") from error
    for key, (info, dtype, elements) in arrays.items():
        batch.arrays[key] = info, np.empty(elements, DTYPES[dtype])
    return batch


def data_buffers(batch: Batch) -> Iterator[memoryview]:
    """Yield the memory that a record's data goes to, in order: the arrays, and room for the padding."""
    for _, array in batch.arrays.values():
        if array.size:
            yield as_bytes(array)
            yield memoryview(bytearray(-array.nbytes % ALIGN))


def _checksum(buffers: Iterable[Buffer]) -> int:
    checksum = xxh3_64()
    for buffer in buffers:
        checksum.update(buffer)
    return checksum.intdigest()


def _encode_meta(batch: Gathered) -> bytes:
    parts = [b"\x93", _array_of(len(batch.events)), *batch.events]
    parts += [_array_of(len(batch.docs)), *batch.docs.values()]
    parts.append(_array_of(len(batch.arrays)))
    for keyed_info, array in batch.arrays.values():
        parts += [b"\x93", keyed_info, _DTYPES[array.dtype], b"\xcf", array.size.to_bytes(8, "big")]
    return b"".join(parts)


def _array_of(elements: int) -> bytes:
    """Return what a msgpack array begins with."""
    return b"\xdd" + elements.to_bytes(4, "big")


def _unpack(meta: bytes) -> Any:
    unpacker = msgpack.Unpacker(max_buffer_size=max(1, len(meta)), strict_map_key=False)
    unpacker.feed(meta)
    unpacker.skip()  # an array is allocated as long as it says: see first whether it is all there
    if unpacker.tell() != len(meta):
        raise Foreign("more follows")
    return msgpack.unpackb(meta, strict_map_key=False)


def _key(parts: Any) -> Key:
    if type(parts) is not list or not all(type(part) in {str, int} for part in parts):
        raise Foreign(f"{shorten(parts)} is no key")
    return tuple(parts)


def _nbytes(dtype: Any, elements: Any) -> int:
    if type(elements) is not int or elements < 0:
        raise Foreign(f"an array cannot have {shorten(elements)} elements")
    return DTYPES[dtype].itemsize * elements
