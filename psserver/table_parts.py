"""How a table is in a checkpoint: the keys and the records of each shard's rows, and back for other shards.

A record is a row's values, and then what its optimizer keeps of it. A shard that has the slots of hashes
from ``start`` on writes the arrays ``keys.start`` and ``records.start``, in the same order; none for no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.tables import HASH_SLOTS, hash_slots
from protocol.tensors import DTYPES
from psserver.durability import checkpoint
from psserver.durability.checkpoint import ArrayEntry, SavedArray, Streamed, Wanted
from psserver.durability.manifest import KEYS, RECORDS, Manifest, table_slot
from psserver.durability.storage import Storage
from psserver.store.snapshot import TableSnapshot

__all__ = ["WantedTable", "load_table", "saved_table"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class WantedTable:
    """The rows of a table in the slots of hashes from ``start`` to ``stop``; numbers are of ``dtype``."""

    job: str
    name: str
    dtype: str
    start: int
    stop: int


def saved_table(job: str, name: str, start: int, snapshot: TableSnapshot) -> list[SavedArray]:
    """Return the arrays of one shard's rows, which are made while they are written."""
    if not snapshot.rows:
        snapshot.close()
        return []
    reading, elements = _Reading(snapshot), snapshot.rows * snapshot.width
    keys = Streamed(np.dtype(np.uint64), snapshot.rows, reading.keys)
    records = Streamed(snapshot.dtype, elements, reading.records)
    return [
        _whole(job, name, table_slot(KEYS, start), keys),
        _whole(job, name, table_slot(RECORDS, start), records),
    ]


class _Reading:
    """A snapshot that is abandoned when nobody can read it any more, whether it was read or not."""

    def __init__(self, snapshot: TableSnapshot) -> None:
        self._snapshot = snapshot

    def keys(self) -> Iterator[Array]:
        return self._snapshot.keys()

    def records(self) -> Iterator[Array]:
        for _, records in self._snapshot.pieces():
            yield records.reshape(-1)

    def __del__(self) -> None:
        self._snapshot.is_abandoned = True


def _whole(job: str, name: str, slot: str, values: Streamed) -> SavedArray:
    return SavedArray(job, name, slot, values.dtype.name, (values.size,), 0, values.size, values)


def load_table(
    storage: Storage, number: int, shards: int, wanted: WantedTable, manifest: Manifest
) -> tuple[Array, Array]:
    """Return the keys and the records, 1-d, of rows that whichever shards had.

    Args:
        storage: where the checkpoint is; the files of shards that had none of the rows need not be there.
        number: of the checkpoint.
        shards: how many it has.
        wanted: which rows.
        manifest: of the checkpoint.

    Raises:
        CheckpointUnusable: a file is missing or damaged.
        OSError: the storage cannot be read now.
    """
    keys, records = [np.empty(0, np.uint64)], [np.empty(0, DTYPES[wanted.dtype])]
    for source, begin in _sources(manifest, wanted):
        state = checkpoint.read_shard_state(storage, number, source, manifest=manifest)
        parts = [_part(state.arrays, wanted, table_slot(kind, begin)) for kind in (KEYS, RECORDS)]
        if not all(parts):
            continue  # it had no rows
        found = checkpoint.load_arrays(
            storage, number, [one for one in parts if one], shards, shard=source, manifest=manifest
        )
        its_keys, its_records = found.values()
        inside = _inside(its_keys, wanted)
        keys.append(its_keys[inside])
        records.append(its_records.reshape(its_keys.size, -1)[inside].reshape(-1))
    return np.concatenate(keys), np.concatenate(records)


def _sources(manifest: Manifest, wanted: WantedTable) -> list[tuple[int, int]]:
    """Return which shards have wanted slots of hashes, and where each of them begins."""
    return [
        (block.shard, block.start)
        for job in manifest.jobs
        if job.name == wanted.job
        for info in job.tensors
        if info.name == wanted.name
        for block in info.blocks
        if block.start < wanted.stop and wanted.start < block.stop
    ]


def _part(entries: Iterable[ArrayEntry], wanted: WantedTable, slot: str) -> Wanted | None:
    for entry in entries:
        if (entry.job, entry.name, entry.slot) == (wanted.job, wanted.name, slot):
            return Wanted(entry.job, entry.name, entry.start, entry.stop, entry.slot)
    return None


def _inside(keys: Array, wanted: WantedTable) -> Array | slice:
    if (wanted.start, wanted.stop) == (0, HASH_SLOTS):
        return slice(None)
    slots = hash_slots(keys)
    return (slots >= wanted.start) & (slots < wanted.stop)
