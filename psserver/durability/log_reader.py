"""What an update log says, read back after whatever ended its server.

Rules:
- A file says where it starts. Everything below that was durable when it was begun, so it has to be there, in
  the files before it; whatever they hold at or after that position is superseded.
- Where a record cannot be read, the log was either torn by the end of the server, and what follows was never
  acknowledged as durable: it is cut off there, with a warning. Or something durable is damaged: an error. It
  was durable if a later file starts after it, or if the header of a later record says so.
- A file whose header cannot be read may be one that was just being begun: it is passed over, unless what it
  must have held is missed.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from xxhash import xxh3_64

from protocol.errors import CheckpointUnusable
from protocol.tensors import ALIGN
from psserver.durability.log_writer import SegmentName, segment_names
from psserver.durability.records import (
    HEADER,
    RECORD_MAGIC,
    Batch,
    Damaged,
    Foreign,
    RecordHeader,
    SegmentHeader,
    data_buffers,
    decode_record_header,
    decode_segment_header,
    parse_meta,
)
from psserver.durability.storage import Reading, Storage, reading

__all__ = ["Cut", "Recovered", "recover"]

_PIECE: Final = 1 << 20
"""Bytes that are looked through at a time."""

_REMEDY: Final = (
    "put the file back from a copy, or move the log's directory away to go on from the last checkpoint, "
    "without what came after it"
)

_log = logging.getLogger(__name__)


class Cut(NamedTuple):
    """Where a torn log was cut: file under the storage's root, offset in it, bytes from there to its end."""

    file: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """A file of the log; ``header`` is None if it cannot be read."""

    name: SegmentName
    path: str
    size: int
    header: SegmentHeader | None

    @property
    def start(self) -> int:
        """The position of its first record, as far as that is known."""
        return 0 if self.header is None else self.header.start


class Recovered:
    """The batches of a log, in order; iterate once. The rest holds when all have been taken.

    Attributes:
        segment: the number of the next segment to write.
        position: where the stream stands.
        log_id: the log's.
        cut: where a torn log was cut; None: it was whole.
    """

    def __init__(self, storage: Storage, directory: str, segment: int) -> None:
        self.segment = segment
        self.position = 0
        self.log_id = secrets.randbits(64)
        self.cut: Cut | None = None
        self._storage = storage
        self._directory = directory

    def __iter__(self) -> Iterator[Batch]:
        names = self._names()
        if not names and self.segment > 1:
            _log.warning("%s has no segment %d: nothing is replayed", self._directory, self.segment)
        segments = [self._look_at(name) for name in names]
        readable = self._chain(segments)
        limits = [*(segment.start for segment in readable[1:]), None]
        for segment, limit in zip(readable, limits, strict=False):
            yield from self._batches(segment, limit, segments)
        for segment in segments:
            if segment.header is None:
                if not readable or segment.name > readable[-1].name:
                    self._check_holds_nothing(segment)
                self._cut(segment, 0, "it has no header")
        for segment in dict.fromkeys([*readable[-1:], *segments[-1:]]):
            self._make_durable(segment)
        if names:
            self.segment = names[-1].number + 1

    def _names(self) -> list[SegmentName]:
        """Return the files to read, none of which is missing."""
        try:
            names = [n for n in segment_names(self._storage, self._directory) if n.number >= self.segment]
        except OSError as error:
            raise self._unusable(self._directory, 0, f"the directory cannot be read: {error}") from error
        before = None
        for name in names:
            first = SegmentName(self.segment if before is None else before.number + 1, 0)
            repair = None if before is None else SegmentName(before.number, before.repair + 1)
            if name not in {first, repair}:
                missing = repair if repair is not None and repair.number == name.number else first
                raise self._unusable(f"{self._directory}/{missing}", 0, f"the file is missing, {name} is not")
            before = name
        return names

    def _look_at(self, name: SegmentName) -> _Segment:
        path = f"{self._directory}/{name}"
        try:
            size = self._storage.size(path)
            with reading(self._storage, path) as file:
                header = decode_segment_header(_read(file, 0, HEADER))
        except Damaged:
            return _Segment(name, path, size, None)
        except (Foreign, OSError) as error:
            raise self._unusable(path, 0, str(error)) from error
        if (header.segment, header.repair) != name:
            raise self._unusable(path, 0, "this is the file of another segment")
        return _Segment(name, path, size, header)

    def _chain(self, segments: Sequence[_Segment]) -> list[_Segment]:
        """Return the files that have headers, each of which goes on from the former; begin with the first."""
        readable = [segment for segment in segments if segment.header is not None]
        if readable and readable[0].header is not None:
            self.log_id, self.position = readable[0].header.log_id, readable[0].start
            if self.position > 0 and segments[0].header is None:
                raise self._unusable(segments[0].path, 0, "the file's header is damaged")
        for before, segment in pairwise(readable):
            if segment.header is not None and segment.header.log_id != self.log_id:
                raise self._unusable(segment.path, 0, "the file is of another log than those before it")
            if segment.start < before.start:
                raise self._unusable(segment.path, 0, "the file starts before the one before it")
        return readable

    def _batches(self, segment: _Segment, limit: int | None, segments: Sequence[_Segment]) -> Iterator[Batch]:
        """Read one file up to the position ``limit``, where the next one starts, or to its end."""
        offset = HEADER
        try:
            with reading(self._storage, segment.path) as file:
                while offset < segment.size if limit is None else self.position < limit:
                    try:
                        batch, length = self._record(file, offset, segment.size)
                    except Damaged as damage:
                        if limit is not None:
                            raise self._missed(segment, offset, damage, segments) from damage
                        self._check_was_not_durable(file, segment, offset, damage)
                        self._cut(segment, offset, str(damage))
                        return
                    self.position += length
                    if limit is not None and self.position > limit:
                        problem = "the record reaches beyond the start of the next file"
                        raise self._unusable(segment.path, offset, problem)
                    offset += length
                    if batch.events or batch.docs or batch.arrays:
                        yield batch
        except (Damaged, Foreign, OSError) as error:
            raise self._unusable(segment.path, offset, str(error)) from error

    def _record(self, file: Reading, offset: int, size: int) -> tuple[Batch, int]:
        header = decode_record_header(_read(file, offset, HEADER))
        if (header.log_id, header.position) != (self.log_id, self.position):
            raise Damaged("the record belongs to another place")
        if header.length > size - offset:
            raise Damaged(f"the record has {header.length} bytes, the file ends after {size - offset}")
        begin = offset + header.length - header.data
        batch = parse_meta(header, _read(file, offset + HEADER, begin - offset - HEADER))
        _fill(file, begin, batch, header.data_checksum)
        return batch, header.length

    def _missed(
        self, segment: _Segment, offset: int, damage: Damaged, segments: Sequence[_Segment]
    ) -> CheckpointUnusable:
        """Return the error for a record that cannot be read although a later file starts after it."""
        following = segments[segments.index(segment) + 1]
        if offset == segment.size and following.header is None:
            return self._unusable(following.path, 0, "the file's header is damaged")
        return self._unusable(segment.path, offset, f"{damage}, and a later file goes on after it")

    def _check_was_not_durable(self, file: Reading, segment: _Segment, offset: int, damage: Damaged) -> None:
        for later, header in _record_headers(file, offset + ALIGN, segment.size):
            position = self.position + later - offset
            if (header.log_id, header.position) != (self.log_id, position):
                continue  # bytes of an array that look like a record
            if header.synced > self.position:
                proof = f"{damage}, and the record at byte {later} says that it was durable"
                raise self._unusable(segment.path, offset, proof)

    def _cut(self, segment: _Segment, offset: int, reason: str) -> None:
        """Let the log end here."""
        cut = Cut(segment.path, offset, segment.size - offset)
        self.cut = self.cut or cut
        _log.warning(
            "%s/%s is torn at byte %d: %s; the %d bytes from there on were not durable, and are dropped",
            self._storage.root,
            cut.file,
            cut.offset,
            reason,
            cut.bytes,
        )

    def _check_holds_nothing(self, segment: _Segment) -> None:
        """Check that nothing in the last file was durable, whose header cannot be read."""
        try:
            with reading(self._storage, segment.path) as file:
                for offset, header in _record_headers(file, HEADER, segment.size):
                    start = header.position - (offset - HEADER)
                    # The headers of the file and its first record are in one sector: both are there, or none.
                    if offset == HEADER or header.synced > start:
                        raise self._unusable(segment.path, 0, "the file's header is damaged")
        except (Damaged, OSError) as error:
            raise self._unusable(segment.path, 0, str(error)) from error

    def _make_durable(self, segment: _Segment) -> None:
        """Sync a last file, whose server may have died before it did: the next one relies on it."""
        try:
            self._storage.sync(segment.path)
        except OSError as error:
            raise self._unusable(segment.path, 0, f"the file cannot be synced: {error}") from error

    def _unusable(self, path: str, offset: int, problem: str) -> CheckpointUnusable:
        message = f"{path}, byte {offset}: {problem}; {_REMEDY}"
        return CheckpointUnusable(message, field="update log", value=self._storage.root)


def recover(storage: Storage, directory: str, segment: int) -> Recovered:
    """Read a log from the first record of a segment on; iterating blocks.

    Iterating raises ``CheckpointUnusable``, which names file and offset, if something that was durable is
    damaged or missing, or cannot be read.
    """
    return Recovered(storage, directory, segment)


def _read(file: Reading, offset: int, length: int) -> bytes:
    data = bytearray(length)
    if file.read_into(memoryview(data), offset) < length:
        raise Damaged("the file ends")
    return bytes(data)


def _fill(file: Reading, offset: int, batch: Batch, expected: int) -> None:
    """Read what is in the arrays of a batch."""
    checksum = xxh3_64()
    for buffer in data_buffers(batch):
        if file.read_into(buffer, offset) < len(buffer):
            raise Damaged("the file ends")
        checksum.update(buffer)
        offset += len(buffer)
    if checksum.intdigest() != expected:
        raise Damaged("the checksum of the record's data is wrong")


def _record_headers(file: Reading, begin: int, size: int) -> Iterator[tuple[int, RecordHeader]]:
    """Yield all that look like headers of records, wherever one could be, with their offsets."""
    for piece_begin in range(begin, size, _PIECE):
        piece = _read(file, piece_begin, min(_PIECE, size - piece_begin))
        at = piece.find(RECORD_MAGIC)
        while at >= 0:
            if at % ALIGN == 0:
                with suppress(Damaged):
                    yield piece_begin + at, decode_record_header(piece[at : at + HEADER])
            at = piece.find(RECORD_MAGIC, at + 1)
