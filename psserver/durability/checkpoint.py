"""One checkpoint: written whole or not at all, and read only if every byte is as it was written.

    checkpoint-00000012/
        shard-0.safetensors  shard-0.json  shard-1.safetensors  shard-1.json ...
        coordinator.json
        manifest.json            written last: a directory without it is no checkpoint

Everything here blocks: call it in a thread. What is wrong with a file is a ``CheckpointUnusable`` that names
it; an ``OSError`` says that the storage does not do what it is told now, and nothing about the checkpoint.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import xxhash

from protocol.errors import CheckpointUnusable
from protocol.messages import SavedFile
from psserver.durability import documents, tensors_file
from psserver.durability.directories import directory_of, is_complete, next_number, numbers, prune
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import (
    COORDINATOR_FILE,
    MANIFEST_FILE,
    ArrayEntry,
    CoordinatorState,
    Header,
    Manifest,
    SavedJob,
    ShardState,
    array_key,
    check_agreement,
    check_manifest,
    check_shard_state,
    files_of,
    state_name,
    tensors_name,
)
from psserver.durability.storage import Storage, read_all
from psserver.durability.tensors_file import (
    Array,
    Progress,
    Report,
    SavedArray,
    Streamed,
    damage_named,
    unusable,
)

__all__ = [
    "MANIFEST_FILE",
    "ArrayEntry",
    "CoordinatorState",
    "Header",
    "Manifest",
    "SavedArray",
    "SavedJob",
    "ShardState",
    "Streamed",
    "Wanted",
    "directory_of",
    "is_complete",
    "load_arrays",
    "load_shard",
    "manifest_from_bytes",
    "manifest_to_bytes",
    "newest_usable",
    "next_number",
    "numbers",
    "prune",
    "publish_manifest",
    "read_coordinator_state",
    "read_manifest",
    "read_shard_state",
    "save_coordinator",
    "save_shard",
    "verify",
]

T = TypeVar("T", CoordinatorState, Manifest, ShardState)

_NO_PROGRESS: Final[Progress] = lambda _: None  # noqa: E731


@dataclass(frozen=True, slots=True)
class Wanted:
    """Elements ``start`` to ``stop`` of a tensor, or of its optimizer's ``slot``, to be loaded."""

    job: str
    name: str
    start: int
    stop: int
    slot: str = ""

    @property
    def key(self) -> str:
        """Its key in a file."""
        return array_key(self.job, self.name, self.slot)


Keyed = TypeVar("Keyed", ArrayEntry, Wanted)


# --- writing


def save_shard(
    storage: Storage, header: Header, shard: int, arrays: Sequence[SavedArray], state: Mapping[str, Any]
) -> tuple[SavedFile, SavedFile]:
    """Write a shard's two files, and return what the manifest has to say of them.

    Args:
        storage: where to.
        header: which checkpoint it is.
        shard: whose arrays and state these are.
        arrays: at most one for each tensor and slot. They are written from where they are.
        state: plain data, as JSON carries them, without NaN.

    Raises:
        OSError: they cannot be written, or the checkpoint is there and complete.
        ValueError: an array or the state is not what can be read again.
    """
    _refuse_complete(storage, header)
    about = {
        "format": f"asyncps {documents.FORMAT}",
        "checkpoint": str(header.checkpoint),
        "shard": f"{shard} of {header.shards}",
    }
    directory = directory_of(header.checkpoint)
    file, entries = tensors_file.write(storage, directory, tensors_name(shard), arrays, about)
    found = ShardState(header, shard, entries, file, dict(state))
    check_shard_state(found)
    saved = _write_document(storage, header, state_name(shard), found)
    failpoint("checkpoint.state-written")
    return file, saved


def save_coordinator(storage: Storage, header: Header, state: Mapping[str, Any]) -> SavedFile:
    """Write the coordinator's file, and return what the manifest has to say of it.

    Raises:
        OSError: it cannot be written, or the checkpoint is there and complete.
        ValueError: the state is not what can be read again.
    """
    _refuse_complete(storage, header)
    return _write_document(storage, header, COORDINATOR_FILE, CoordinatorState(header, dict(state)))


def publish_manifest(storage: Storage, manifest: Manifest) -> None:
    """Make a checkpoint of the files that ``manifest`` lists, all of which have been written.

    Raises:
        OSError: it cannot be written; there may be a checkpoint nevertheless, and then it is sound.
        ValueError: no cluster has such a checkpoint.
    """
    data = manifest_to_bytes(manifest)
    failpoint("checkpoint.before-manifest")
    storage.publish(_path(manifest.header.checkpoint, MANIFEST_FILE), data)
    failpoint("checkpoint.after-manifest")


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as its file holds it.

    Raises:
        ValueError: no cluster has such a checkpoint.
    """
    data = documents.encode(manifest)
    manifest_from_bytes(data)  # what could not be read again would be lost
    return data


def manifest_from_bytes(data: bytes) -> Manifest:
    """Return the manifest that a file, or a message, holds.

    Raises:
        ValueError: it holds none; the message says what is wrong, and where.
    """
    manifest = documents.decode(Manifest, data)
    check_manifest(manifest)
    return manifest


def _path(number: int, name: str) -> str:
    return f"{directory_of(number)}/{name}"


def _refuse_complete(storage: Storage, header: Header) -> None:
    if is_complete(storage, header.checkpoint):
        path = f"{storage.root}/{directory_of(header.checkpoint)}"
        raise FileExistsError(errno.EEXIST, "a complete checkpoint is there; take the next number", path)


def _write_document(storage: Storage, header: Header, name: str, value: object) -> SavedFile:
    data = documents.encode(value)
    with tensors_file.writing(storage, _path(header.checkpoint, name)) as writing:
        writing.write([data])
        writing.sync()
    return SavedFile(name, len(data), xxhash.xxh3_64_hexdigest(data))


# --- reading


def read_manifest(storage: Storage, number: int) -> Manifest:
    """Return what a checkpoint holds.

    Raises:
        CheckpointUnusable: the manifest is missing or damaged.
        OSError: the storage cannot be read now.
    """
    return _read_document(storage, number, MANIFEST_FILE, Manifest, check_manifest)


def read_coordinator_state(
    storage: Storage, number: int, *, manifest: Manifest | None = None
) -> CoordinatorState:
    """Return the coordinator's state, which must be what ``manifest`` says, if that is given.

    Raises:
        CheckpointUnusable: the file is missing or damaged.
        OSError: the storage cannot be read now.
    """
    return _read_document(storage, number, COORDINATOR_FILE, CoordinatorState, manifest=manifest)


def read_shard_state(
    storage: Storage, number: int, shard: int, *, manifest: Manifest | None = None
) -> ShardState:
    """Return a shard's state and what is in its tensors' file, whose values are not read.

    Args:
        storage: where the checkpoint is.
        number: of the checkpoint.
        shard: whose state it is.
        manifest: if given, the state must be what it says.

    Raises:
        CheckpointUnusable: the file is missing or damaged.
        OSError: the storage cannot be read now.
    """

    def check(state: ShardState) -> None:
        if state.shard != shard:
            raise ValueError(f"field shard: it is of shard {state.shard}")
        check_shard_state(state)
        if manifest is not None:
            check_agreement(state, manifest)

    return _read_document(storage, number, state_name(shard), ShardState, check, manifest=manifest)


def load_shard(
    storage: Storage, number: int, shard: int, *, manifest: Manifest | None = None
) -> tuple[ShardState, list[SavedArray]]:
    """Return a shard's state and all its arrays, checked to the last byte.

    They must be what ``manifest`` says, if that is given.

    Raises:
        CheckpointUnusable: a file is missing or damaged.
        OSError: the storage cannot be read now.
    """
    state = read_shard_state(storage, number, shard, manifest=manifest)
    return state, _read_whole(storage, state, report=_raise, keep=True, progress=_NO_PROGRESS)


def load_arrays(
    storage: Storage,
    number: int,
    wanted: Collection[Wanted],
    shards: int,
    *,
    shard: int | None = None,
    manifest: Manifest | None = None,
) -> dict[Wanted, Array]:
    """Return parts of tensors, put together from the files of whichever shards had them.

    An array of which something is wanted is read and checked as a whole, a piece at a time.

    Args:
        storage: where the checkpoint is.
        number: of the checkpoint.
        wanted: parts of tensors.
        shards: how many the checkpoint has.
        shard: whose files come first. If all is there the others' need not be: its disk may be its own.
        manifest: if given, the files must be what it says.

    Raises:
        CheckpointUnusable: a file is missing or damaged, or nobody had what is wanted.
        OSError: the storage cannot be read now.
    """
    directory = directory_of(number)
    targets = _by_key(dict.fromkeys(wanted))
    first = [one for one in range(shards) if one == shard]
    states = [read_shard_state(storage, number, one, manifest=manifest) for one in first]
    if not first or not _covers(directory, wanted, states):
        others = [one for one in range(shards) if one != shard]
        states += [read_shard_state(storage, number, one, manifest=manifest) for one in others]
    sources = _sources(states)
    for one in wanted:
        _check_covered(directory, one, sources.get(one.key, []))
    needed = [(state, some) for state in states if (some := _needed(state.arrays, targets))]
    for state, _ in needed:
        tensors_file.check_size(storage, directory, state.file)  # before memory is taken for what it says
    found = {
        one: tensors_file.room(directory, sources[one.key][0].dtype, one.stop - one.start) for one in wanted
    }
    for state, some in needed:
        parts = [(entry, [(one.start, found[one]) for one in ones]) for entry, ones in some]
        tensors_file.read_parts(storage, directory, state.file, parts)
    return found


def _sources(states: Iterable[ShardState]) -> dict[str, list[ArrayEntry]]:
    return _by_key(entry for state in states for entry in state.arrays)


def _covers(directory: str, wanted: Iterable[Wanted], states: Sequence[ShardState]) -> bool:
    sources = _sources(states)
    try:
        for one in wanted:
            _check_covered(directory, one, sources.get(one.key, []))
    except CheckpointUnusable:
        return False
    return True


def _by_key(things: Iterable[Keyed]) -> dict[str, list[Keyed]]:
    found: dict[str, list[Keyed]] = {}
    for thing in things:
        found.setdefault(thing.key, []).append(thing)
    return found


def _needed(
    entries: Iterable[ArrayEntry], targets: Mapping[str, Sequence[Wanted]]
) -> list[tuple[ArrayEntry, list[Wanted]]]:
    """Return the arrays that have something wanted, and by whom it is."""
    found = [
        (entry, [one for one in targets.get(entry.key, ()) if _overlap(one, entry)]) for entry in entries
    ]
    return [(entry, ones) for entry, ones in found if ones]


def _overlap(one: Wanted, entry: ArrayEntry) -> bool:
    return one.start < entry.stop and entry.start < one.stop


def _check_covered(directory: str, wanted: Wanted, entries: Sequence[ArrayEntry]) -> None:
    """Raise ``CheckpointUnusable`` unless ``entries`` have each element of what is wanted once."""
    if not 0 <= wanted.start < wanted.stop:
        raise ValueError(f"{wanted.key} from {wanted.start} to {wanted.stop} is no part of a tensor")
    if len({(entry.dtype, entry.shape) for entry in entries}) > 1:
        raise unusable(directory, f"its shards have {wanted.key} in different dtypes or shapes")
    at = wanted.start
    for entry in sorted((entry for entry in entries if _overlap(wanted, entry)), key=_start):
        # The first one and the last one may have more than is wanted.
        if entry.start != at and not (entry.start < at == wanted.start):
            twice = min(entry.start, at)
            raise unusable(directory, f"its shards have {wanted.key} at {twice} twice or never")
        at = entry.stop
    if at < wanted.stop:
        raise unusable(directory, f"its shards do not have {wanted.key} from {at} on")


def _start(entry: ArrayEntry) -> int:
    return entry.start


def _read_document(
    storage: Storage,
    number: int,
    name: str,
    cls: type[T],
    check: Callable[[T], None] = lambda _: None,
    manifest: Manifest | None = None,
) -> T:
    path = _path(number, name)
    try:
        with damage_named(path):
            data = read_all(storage, path, documents.MOST)
            if manifest is not None:
                _check_file(data, name, manifest)
            found = documents.decode(cls, data)
        check(found)
        if found.header.checkpoint != number:
            raise ValueError(f"field checkpoint: it is of checkpoint {found.header.checkpoint}")  # noqa: TRY301
        if manifest is not None and found.header != manifest.header:
            raise ValueError("field header: it is not the manifest's")  # noqa: TRY301
    except ValueError as error:
        raise unusable(path, str(error)) from None
    return found


def _check_file(data: bytes, name: str, manifest: Manifest) -> None:
    (expected,) = (file for file in manifest.files if file.name == name)
    if len(data) != expected.bytes:
        raise ValueError(f"it has {len(data)} bytes, the manifest says {expected.bytes}")
    checksum = xxhash.xxh3_64_hexdigest(data)
    if checksum != expected.checksum:
        raise ValueError(f"its checksum is {checksum}, the manifest says {expected.checksum}")


def _read_whole(
    storage: Storage, state: ShardState, *, report: Report, keep: bool, progress: Progress
) -> list[SavedArray]:
    directory = directory_of(state.header.checkpoint)
    return tensors_file.read_whole(
        storage, directory, state.file, state.arrays, report=report, keep=keep, progress=progress
    )


def _raise(problem: CheckpointUnusable) -> None:
    raise problem


# --- verifying


def verify(
    storage: Storage,
    number: int,
    *,
    shards: Collection[int] | None = None,
    progress: Progress = _NO_PROGRESS,
) -> list[CheckpointUnusable]:
    """Read all of a checkpoint and return everything that is wrong with it; nothing: it is sound.

    Args:
        storage: where the checkpoint is.
        number: of the checkpoint.
        shards: whose files must be there, as on the disk of one server; None: all.
        progress: is told of bytes as they have been read.

    Raises:
        OSError: the storage cannot be read now.
    """
    problems: list[CheckpointUnusable] = []
    try:
        manifest = read_manifest(storage, number)
    except CheckpointUnusable as problem:
        return [problem]
    for shard in range(manifest.header.shards) if shards is None else sorted(shards):
        if not 0 <= shard < manifest.header.shards:
            what = f"field shards: it is of {manifest.header.shards}, there is no shard {shard}"
            problems.append(unusable(_path(number, MANIFEST_FILE), what))
            continue
        _verify_shard(storage, manifest, shard, problems.append, progress)
        if COORDINATOR_FILE in files_of(shard):
            try:
                read_coordinator_state(storage, number, manifest=manifest)
            except CheckpointUnusable as problem:
                problems.append(problem)
    return problems


def _verify_shard(
    storage: Storage, manifest: Manifest, shard: int, report: Report, progress: Progress
) -> None:
    number = manifest.header.checkpoint
    (file,) = (file for file in manifest.files if file.name == tensors_name(shard))
    state: ShardState | None
    try:
        state = read_shard_state(storage, number, shard, manifest=manifest)
    except CheckpointUnusable as problem:
        report(problem)
        state = None
    try:
        if state is None:
            tensors_file.check_whole(storage, directory_of(number), file, report=report, progress=progress)
        else:
            _read_whole(storage, state, report=report, keep=False, progress=progress)
    except CheckpointUnusable as problem:
        report(problem)


def newest_usable(
    storage: Storage, *, report: Callable[[str], None], shards: Collection[int] | None = None
) -> Manifest | None:
    """Return the newest checkpoint that is sound to the last byte; None: none was ever completed.

    Args:
        storage: where the checkpoints are.
        report: is told of what is skipped: of an incomplete one, and of each damaged file.
        shards: whose files must be there, as on the disk of one server; None: all.

    Raises:
        CheckpointUnusable: there are complete ones, all of them damaged.
        OSError: the storage cannot be read now.
    """
    damaged = 0
    for number in reversed(numbers(storage)):
        if not is_complete(storage, number):
            report(f"{directory_of(number)} is skipped: it was not completed, it has no {MANIFEST_FILE}")
            continue
        problems = verify(storage, number, shards=shards)
        if not problems:
            return read_manifest(storage, number)
        damaged += 1
        for problem in problems:
            report(f"{directory_of(number)} is skipped: {problem}")
    if damaged:
        raise CheckpointUnusable(
            f"the {damaged} complete checkpoints there are all damaged; bring back a sound copy of one, "
            "or begin with an empty directory",
            field="checkpoint-dir",
            value=storage.root,
        )
    return None
