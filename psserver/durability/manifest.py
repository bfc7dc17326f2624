"""What the JSON files of a checkpoint say, and what makes sense in them. No I/O.

manifest.json       the whole checkpoint: jobs, tensors, and all files with their checksums
coordinator.json    the coordinator's state
shard-0.json        shard 0's state, and where in shard-0.safetensors each array is
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from protocol.errors import BadRequest, shorten
from protocol.fields import Name, Positive, check_name
from protocol.messages import Block, SavedFile, TensorInfo
from protocol.tensors import DTYPES, DTypeName, Shape

__all__ = [
    "COORDINATOR_FILE",
    "KEYS",
    "MANIFEST_FILE",
    "RECORDS",
    "ArrayEntry",
    "CoordinatorState",
    "Header",
    "Manifest",
    "SavedJob",
    "ShardState",
    "array_key",
    "check_agreement",
    "check_manifest",
    "check_shard_state",
    "files_of",
    "state_name",
    "table_slot",
    "tensors_name",
]

MANIFEST_FILE: Final = "manifest.json"
COORDINATOR_FILE: Final = "coordinator.json"

KEYS: Final = "keys"
RECORDS: Final = "records"
"""The slots of a table's block, with where it begins: the keys of its rows, and the rows."""

_MOST_SHARDS: Final = 1 << 16
_MOST_TEXT: Final = 200  # characters
_CHECKSUM: Final = re.compile(r"[0-9a-f]{16}")


def _check_text(value: object, field: str) -> None:
    text: str = value  # type: ignore[assignment]
    if len(text) > _MOST_TEXT or not text.isprintable():
        raise BadRequest(f"expected at most {_MOST_TEXT} printable characters", field=field, value=text)


def _check_time(value: object, field: str) -> None:
    try:
        zone = datetime.fromisoformat(str(value)).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise BadRequest("expected a time such as 2026-05-01T12:00:00Z", field=field, value=value)


def _check_slot(value: object, field: str) -> None:
    if value != "":
        check_name(value, field)


def _check_checksum(value: object, field: str) -> None:
    if not _CHECKSUM.fullmatch(str(value)):
        raise BadRequest("expected 16 hexadecimal digits", field=field, value=value)


def _check_shards(value: object, field: str) -> None:
    shards: int = value  # type: ignore[assignment]
    if not 1 <= shards <= _MOST_SHARDS:
        raise BadRequest(f"expected 1 to {_MOST_SHARDS} shards", field=field, value=shards)


Text = Annotated[str, _check_text]
Time = Annotated[str, _check_time]
Slot = Annotated[str, _check_slot]
Checksum = Annotated[str, _check_checksum]
Shards = Annotated[int, _check_shards]


@dataclass(frozen=True, slots=True)
class Header:
    """Which checkpoint a file is of."""

    checkpoint: Positive
    shards: Shards
    cluster: Text
    timeline: int


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """Where elements ``start`` to ``stop`` of a tensor, or of its optimizer's ``slot``, are in a file.

    ``shape`` is the whole tensor's; ``offset`` counts from the file's beginning, in bytes.
    """

    job: Name
    name: Name
    slot: Slot
    dtype: DTypeName
    shape: Shape
    start: int
    stop: int
    offset: int
    bytes: int
    checksum: Checksum

    @property
    def key(self) -> str:
        """Its key in the file."""
        return array_key(self.job, self.name, self.slot)


@dataclass(frozen=True, slots=True)
class ShardState:
    """A shard's state, and what is in its tensors' file."""

    header: Header
    shard: int
    arrays: tuple[ArrayEntry, ...]
    file: SavedFile
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CoordinatorState:
    """The coordinator's state."""

    header: Header
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SavedJob:
    """A job as it was.

    ``clock`` is the step it had reached, ``plan`` the job file of its workers, if any, and ``born`` is as in
    ``protocol.messages.KeptJob``.
    """

    name: Name
    staleness: float
    clock: int
    updates: int
    plan: str | None
    tensors: tuple[TensorInfo, ...]
    born: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole checkpoint: ``created`` is an ISO time with its zone, ``version`` that of asyncps."""

    header: Header
    created: Time
    version: Text
    jobs: tuple[SavedJob, ...]
    files: tuple[SavedFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files but the manifest itself."""
        return sum(file.bytes for file in self.files)


def tensors_name(shard: int) -> str:
    """Return the name of a shard's tensors' file."""
    return f"shard-{shard}.safetensors"


def state_name(shard: int) -> str:
    """Return the name of a shard's state's file."""
    return f"shard-{shard}.json"


def files_of(shard: int) -> tuple[str, ...]:
    """Return the names of what the server of a shard writes, but for the manifest."""
    own = (tensors_name(shard), state_name(shard))
    return own if shard else (*own, COORDINATOR_FILE)


def array_key(job: str, name: str, slot: str = "") -> str:
    """Return the key of an array in a tensors' file: ``job/tensor`` or ``job/tensor/slot``.

    No name has a slash or is empty, so that keys of four parts are free for what is to come.
    """
    return f"{job}/{name}/{slot}" if slot else f"{job}/{name}"


def table_slot(kind: str, start: int) -> str:
    """Return the slot of the ``KEYS`` or ``RECORDS`` of a table's block that begins at ``start``."""
    return f"{kind}.{start}"


def check_manifest(manifest: Manifest) -> None:
    """Raise ``ValueError`` if no cluster could have written ``manifest``."""
    shards = manifest.header.shards
    expected = sorted(name for shard in range(shards) for name in files_of(shard))
    names = sorted(file.name for file in manifest.files)
    if names != expected:
        wrong = sorted(set(names) ^ set(expected)) or names
        raise ValueError(f"field files: a checkpoint of {shards} shards has other files: {shorten(wrong)}")
    for file in manifest.files:
        _check_file(file)
    _check_once("job", (job.name for job in manifest.jobs))
    for job in manifest.jobs:
        _check_once(f"tensor of job {job.name}", (info.name for info in job.tensors))
        if not job.staleness >= 0:
            raise ValueError(f"field staleness of job {job.name}: it is {job.staleness}")
        for info in job.tensors:
            _check_blocks(job.name, info, shards)


def check_shard_state(state: ShardState) -> None:
    """Raise ``ValueError`` if no shard could have written ``state``."""
    if state.shard >= state.header.shards:
        raise ValueError(f"field shard: it is {state.shard} of {state.header.shards}")
    _check_file(state.file)
    if state.file.name != tensors_name(state.shard):
        raise ValueError(f"field file: it names {shorten(state.file.name)}")
    _check_once("array", (entry.key for entry in state.arrays))
    _check_places(state.arrays, state.file.bytes)


def check_agreement(state: ShardState, manifest: Manifest) -> None:
    """Raise ``ValueError`` if a shard has not what the manifest says.

    It may have more: tensors that were not filled yet are not listed.
    """
    if state.file not in manifest.files:
        raise ValueError("field file: the manifest says otherwise")
    there = {entry.key: entry for entry in state.arrays}
    for job in manifest.jobs:
        for info in job.tensors:
            for block in info.blocks:
                if block.shard != state.shard:
                    continue
                if info.spec.table is not None:
                    _check_table(there, job.name, info, block)
                else:
                    _check_block(there.get(array_key(job.name, info.name)), job.name, info, block)


def _check_table(there: Mapping[str, ArrayEntry], job: str, info: TensorInfo, block: Block) -> None:
    """Check that there are records for all keys; without rows there is neither."""
    keys, records = (
        there.get(array_key(job, info.name, table_slot(kind, block.start))) for kind in (KEYS, RECORDS)
    )
    if keys is None and records is None:
        return
    if keys is None or records is None or (keys.dtype, records.dtype) != ("uint64", info.spec.dtype):
        raise ValueError(f"field arrays: the rows of {array_key(job, info.name)} are not whole")
    if records.stop % keys.stop:
        raise ValueError(f"field arrays: {records.key} has not a record for each of {keys.stop} keys")


def _check_block(entry: ArrayEntry | None, job: str, info: TensorInfo, block: Block) -> None:
    expected = (info.spec.dtype, info.spec.shape, block.start, block.stop)
    if entry is None or (entry.dtype, entry.shape, entry.start, entry.stop) != expected:
        key = array_key(job, info.name)
        raise ValueError(f"field arrays: {key} from {block.start} to {block.stop} is not there")


def _check_once(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name} comes twice")
        seen.add(name)


def _check_file(file: SavedFile) -> None:
    try:
        _check_checksum(file.checksum, f"checksum of {shorten(file.name)}")
    except BadRequest as error:
        raise ValueError(str(error)) from None


def _check_blocks(job: str, info: TensorInfo, shards: int) -> None:
    """Blocks make up the whole tensor, and a shard has at most one of them."""
    at, seen = 0, set()
    for block in sorted(info.blocks, key=_start):
        if block.start != at or block.stop <= at or block.shard >= shards or block.shard in seen:
            raise ValueError(f"field blocks of {array_key(job, info.name)}: they do not make up the tensor")
        at = block.stop
        seen.add(block.shard)
    if at != math.prod(info.spec.shape):
        raise ValueError(f"field blocks of {array_key(job, info.name)}: they end at {at}")


def _start(block: Block) -> int:
    return block.start


def _check_places(entries: Sequence[ArrayEntry], size: int) -> None:
    """Entries are in the order of their data, which fill the file from the first one to its end."""
    at = entries[0].offset if entries else size
    for entry in entries:
        if not entry.start < entry.stop <= math.prod(entry.shape):
            raise ValueError(f"{entry.key}: {entry.start}:{entry.stop} is no part of shape {entry.shape}")
        if entry.bytes != (entry.stop - entry.start) * DTYPES[entry.dtype].itemsize:
            raise ValueError(f"{entry.key}: {entry.bytes} bytes for {entry.stop - entry.start} {entry.dtype}")
        if entry.offset != at:
            raise ValueError(f"{entry.key}: it begins at {entry.offset}, the one before ends at {at}")
        at += entry.bytes
    if at != size:
        raise ValueError(f"the arrays end at {at}, the file at {size}")
