"""The files of an update log, as they are written: one segment after the other, each at a durable position.

Rules:
- A file is begun only when all before its start is durable; so its header, where it can be read, proves that.
- A write or sync that failed says nothing about what is on the disk (after a failed fsync the kernel calls
  the lost pages clean, and a second one succeeds; Rebello et al. 2020). All since the last sync that worked
  is kept, and written to a new file that starts at the last durable position, and supersedes the rest of the
  former.
- A file in which anything is durable is never made anew; one in which nothing is has no use, and is.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from contextlib import suppress
from typing import Final, NamedTuple, Self

from psserver.durability.failpoints import failpoint
from psserver.durability.records import Gathered, SegmentHeader, encode_record, encode_segment_header
from psserver.durability.storage import Storage, Writing

__all__ = ["RESERVE", "LogWriter", "SegmentName", "drop_segments", "segment_names"]

RESERVE: Final = 16 << 20
"""Bytes that stay free on the disk, so that updates are refused while a checkpoint may still find room."""

_NAME: Final = re.compile(r"([0-9]{8,18})(?:-([0-9]{1,9}))?\.log")

_log = logging.getLogger(__name__)


class SegmentName(NamedTuple):
    """Which file of a log: a segment's first, or the one that goes on where ``repair`` others have failed."""

    number: int
    repair: int

    def __str__(self) -> str:
        return f"{self.number:08d}-{self.repair}.log" if self.repair else f"{self.number:08d}.log"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name; None if no segment's file is called so."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        name = cls(int(match[1]), int(match[2] or 0))
        return name if str(name) == text else None


def segment_names(storage: Storage, directory: str) -> list[SegmentName]:
    """Return the files of a log in the order in which they were begun."""
    found = map(SegmentName.parse, storage.names(directory))
    return sorted(name for name in found if name is not None)


def drop_segments(storage: Storage, directory: str, below: int) -> None:
    """Remove the segments with numbers below ``below``, the oldest first.

    Raises:
        OSError: one cannot be removed; those that are left do no harm.
    """
    for name in segment_names(storage, directory):
        if name.number < below:
            failpoint("log.drop-segment")
            storage.remove(f"{directory}/{name}")


class LogWriter:
    """The end of a log. Everything blocks, and belongs to one thread.

    Args:
        storage: where the log is.
        directory: the log's.
        position: where the stream stands; all before it is durable.
        log_id: the log's.
    """

    def __init__(self, storage: Storage, directory: str, position: int, log_id: int) -> None:
        self._storage = storage
        self._directory = directory
        self._log_id = log_id
        self._name = SegmentName(0, 0)
        self._file: Writing | None = None
        self._proven = True  # something of the file called so is durable
        self._durable = self._position = position
        self._kept = Gathered()  # since the last sync

    @property
    def position(self) -> int:
        """Bytes of records that were written."""
        return self._position

    @property
    def is_durable(self) -> bool:
        """Whether there is nothing to be synced."""
        return self._proven and self._durable == self._position

    def commit(self, segment: int, batch: Gathered, *, sync: bool) -> float | None:
        """Write a batch to a segment; what was left by a call that failed is written with it.

        Args:
            segment: the same as before; or the next one, where all before is durable.
            batch: what to write; it is the writer's from now on.
            sync: whether to make it durable, with all before.

        Returns:
            The seconds that the sync took, if there was one.

        Raises:
            OSError: it may or may not be on the disk. It is kept: call again, with what has come meanwhile.
        """
        if segment != self._name.number:
            self._begin(segment)
        self._kept = _merged(self._kept, batch)
        if self._file is None:
            batch, sync = self._kept, True
        elif not batch and (self.is_durable or not sync):
            return None
        try:
            self._write(batch)
            return self._sync() if sync else None
        except BaseException:
            self._abandon()
            raise

    def close(self) -> None:
        """End the last file with a record that says that all before it is durable, if it is."""
        if self._file is not None and self.is_durable:
            try:
                self._file.write(encode_record(Gathered(), self._log_id, self._position, self._durable)[0])
                self._file.sync()
            except OSError as error:
                _log.warning("the update log's end could not be marked: %s", error)
        self._abandon()

    def _begin(self, segment: int) -> None:
        self._abandon()
        self._name = SegmentName(segment, 0)
        self._proven = False

    def _write(self, batch: Gathered) -> None:
        begin = self._durable if self._file is None else self._position
        buffers, length = encode_record(batch, self._log_id, begin, self._durable) if batch else ([], 0)
        self._check_room(length)
        failpoint("log.before-write")
        if self._file is None:
            self._file = self._create()
            buffers.insert(0, self._header())
        self._file.write(buffers)
        self._position = begin + length
        failpoint("log.after-write")

    def _create(self) -> Writing:
        if self._proven:
            self._name = self._name._replace(repair=self._name.repair + 1)
            self._proven = False
        failpoint("log.new-segment")
        return self._storage.create(f"{self._directory}/{self._name}")

    def _header(self) -> bytes:
        return encode_segment_header(
            SegmentHeader(self._name.number, self._name.repair, self._durable, self._log_id)
        )

    def _sync(self) -> float:
        assert self._file is not None  # noqa: S101 (written before)
        began = time.perf_counter()
        self._file.sync()
        seconds = time.perf_counter() - began
        failpoint("log.after-sync")
        self._durable = self._position
        self._proven = True
        self._kept = Gathered()
        return seconds

    def _check_room(self, length: int) -> None:
        free = self._storage.free()
        if free is not None and free < length + RESERVE:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free} bytes, {length + RESERVE} are needed"
            )

    def _abandon(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what matters has been synced, or is written again elsewhere
                self._file.close()
        self._file = None


def _merged(kept: Gathered, batch: Gathered) -> Gathered:
    if not kept:
        return batch
    kept.add(batch)
    return kept
