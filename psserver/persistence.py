"""What one server keeps on disk: checkpoints, its update log, and which cluster and timeline they are of.

cluster.json        which cluster this is, and its timeline; the coordinator's
stopped-N.json      shard N stopped cleanly: its part of that checkpoint is its last state
stopped-N/          that checkpoint, if it is of shard N alone: the others could not take part any more
lock-N              held by the process that is shard N
checkpoint-.../     see ``psserver.durability.checkpoint``
log/shard-N/        see ``psserver.durability.log``
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeVar

from protocol.errors import CheckpointUnusable
from protocol.events import about
from protocol.messages import SavedFile
from psserver.durability import checkpoint, directories, documents
from psserver.durability.checkpoint import SavedArray
from psserver.durability.log import Batch, UpdateLog, recover
from psserver.durability.log_writer import segment_names
from psserver.durability.manifest import Header, Manifest, ShardState
from psserver.durability.object_storage import open_storage
from psserver.durability.storage import LocalStorage, Storage, read_all
from psserver.shard_state import Snapshot

__all__ = ["DurabilitySettings", "Identity", "Persistence", "Space", "Stopped"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_IDENTITY: Final = "cluster.json"
_LONGEST: Final = 64 * 1024
_NICE: Final = 10  # of the thread that writes checkpoints: pushes come first


@dataclass(frozen=True, slots=True)
class DurabilitySettings:
    """What a server keeps, and where.

    Args:
        mode: ``snapshot`` or ``log``.
        url: directory or URL of the checkpoints; the log is there, too.
        every: seconds between two checkpoints; 0: only on demand and when a server stops.
        keep: complete checkpoints that are kept, at least 1.
        log_sync: seconds between two syncs of the log; 0: before each acknowledgement.
    """

    mode: Literal["snapshot", "log"]
    url: str
    every: float = 30.0
    keep: int = 3
    log_sync: float = 0.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Which cluster a directory is of, and the timeline of its newest state."""

    cluster: str
    timeline: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """A shard's files of a checkpoint are the state with which it stopped, on a timeline of a cluster.

    ``alone``: the checkpoint is its own, in ``stopped-N``.
    """

    cluster: str
    timeline: int
    checkpoint: int
    alone: bool = False


class Space(NamedTuple):
    """Bytes of a disk: those that may be used still, and all."""

    free: int
    total: int


class Persistence:
    """One server's storage.

    Args:
        settings: what is kept, and where.
        observe_sync: is told how long each sync of the log takes, in seconds.

    Attributes:
        storage: where it is kept.
        mode: ``snapshot`` or ``log``.
        keep: complete checkpoints that are kept.
    """

    def __init__(self, settings: DurabilitySettings, observe_sync: Callable[[float], None]) -> None:
        self.settings = settings
        self.storage: Storage = open_storage(settings.url)
        self._observe_sync = observe_sync
        self._thread = ThreadPoolExecutor(1, "checkpoint", _be_nice)
        self._lock: int | None = None

    async def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run ``work``, which blocks, in this storage's thread."""
        call = lambda: work(*arguments, **named)  # noqa: E731 (run_in_executor takes no keywords)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def space(self) -> Space | None:
        """Return how much room there is; None if that cannot be known, as of object stores. Blocks."""
        if not isinstance(self.storage, LocalStorage):
            return None
        try:
            disk = os.statvfs(self.storage.root)
        except OSError:  # it is not there yet, or not any more: who writes there says what is wrong
            return None
        return Space(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)

    def close(self) -> None:
        """End the thread, and let others be this shard."""
        self._thread.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- who this is

    def claim(self, shard: int) -> bool:
        """Return whether no other process on this machine is this shard, in this directory."""
        if not isinstance(self.storage, LocalStorage):
            return True
        path = Path(self.storage.root) / f"lock-{shard}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            return False
        return True

    def identity(self) -> Identity | None:
        """Return which cluster the directory is of; None if it is empty.

        Raises:
            CheckpointUnusable: the file that says so is damaged.
        """
        return self._read(_IDENTITY, Identity)

    def set_identity(self, identity: Identity) -> None:
        """Say which cluster the directory is of."""
        self.storage.publish(_IDENTITY, documents.encode(identity))

    def stopped(self, shard: int) -> Stopped | None:
        """Return with which checkpoint a shard has stopped cleanly; None if it has not."""
        return self._read(f"stopped-{shard}.json", Stopped)

    def set_stopped(self, shard: int, stopped: Stopped | None) -> None:
        """Say that a shard has stopped cleanly, or that it is at work again."""
        if stopped is None:
            self.storage.remove(f"stopped-{shard}.json")
            self.storage.remove(f"stopped-{shard}")
        else:
            self.storage.publish(f"stopped-{shard}.json", documents.encode(stopped))

    def stopped_in(self, shard: int, stopped: Stopped) -> Storage:
        """Return where the checkpoint is with which a shard stopped."""
        return self._alone(shard) if stopped.alone else self.storage

    def _alone(self, shard: int) -> Storage:
        return open_storage(f"{self.settings.url.rstrip('/')}/stopped-{shard}")

    def save_alone(
        self,
        identity: Identity,
        shards: int,
        shard: int,
        snapshot: Snapshot,
        coordinator: Mapping[str, Any] | None = None,
    ) -> Stopped:
        """Write the state with which a shard stops, when no checkpoint of all can be taken; blocks.

        Args:
            identity: of the cluster.
            shards: how many it has.
            shard: whose state it is.
            snapshot: its state.
            coordinator: that of the coordinator, if it is here.

        Raises:
            OSError: it cannot be written.
        """
        storage = self._alone(shard)
        number = directories.next_number(storage)
        header = Header(number, shards, identity.cluster, identity.timeline)
        checkpoint.save_shard(storage, header, shard, snapshot.arrays, snapshot.state)
        if coordinator is not None:
            checkpoint.save_coordinator(storage, header, coordinator)
        return Stopped(identity.cluster, identity.timeline, number, alone=True)

    def _read(self, path: str, cls: type[T]) -> T | None:
        try:
            data = read_all(self.storage, path, _LONGEST)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointUnusable(str(error), field="file", value=path) from error
        try:
            return documents.decode(cls, data)
        except ValueError as error:
            raise CheckpointUnusable(f"{path}: {error}", field="file", value=path) from error

    def claim_known(self) -> int | None:
        """Claim the first shard, other than the coordinator's, that the directory knows and nobody serves."""
        logs = [name.removeprefix("shard-") for name in self.storage.names("log")]
        stopped = [name.removeprefix("stopped-").removesuffix(".json") for name in self.storage.names("")]
        known = sorted({int(number) for number in (*logs, *stopped) if number.isdecimal()} - {0})
        return next((number for number in known if self.claim(number)), None)

    # --- checkpoints

    def save(self, header: Header, shard: int, snapshot: Snapshot) -> tuple[SavedFile, ...]:
        """Write a shard's part of a checkpoint; blocks.

        What there is of those that were given up before is removed, and of this one if it cannot be written:
        somebody may need the room.

        Raises:
            OSError: it cannot be written.
        """
        directories.remove_incomplete(self.storage, below=header.checkpoint)
        try:
            return checkpoint.save_shard(self.storage, header, shard, snapshot.arrays, snapshot.state)
        except OSError:
            directories.remove_incomplete(self.storage, below=header.checkpoint + 1)
            raise

    def complete(self, manifest: Manifest, shard: int, log: UpdateLog | None) -> None:
        """Keep a checkpoint that all shards have written, and drop what it makes superfluous; blocks.

        The log is kept from the checkpoint before on: if this one is damaged, that one will do.

        Raises:
            OSError: the manifest cannot be written.
        """
        number = manifest.header.checkpoint
        before = [other for other in self._complete() if other < number]
        if number not in self._complete():
            checkpoint.publish_manifest(self.storage, manifest)
        directories.prune(self.storage, self.settings.keep)
        if log is not None:
            kept = max([other for other in before if other in self._complete()], default=number)
            segment = checkpoint.read_shard_state(self.storage, kept, shard).state["segment"]
            if segment is not None:
                log.drop_before(segment)

    def _complete(self) -> list[int]:
        return [
            number
            for number in directories.numbers(self.storage)
            if directories.is_complete(self.storage, number)
        ]

    def newest_own(
        self, shard: int, shards: int | None
    ) -> tuple[Manifest, ShardState, list[SavedArray]] | None:
        """Return this shard's part of the newest complete checkpoint in which it is sound; blocks.

        Raises:
            CheckpointUnusable: there are checkpoints, and it is sound in none.
        """
        complete = self._complete()
        for number in reversed(complete):
            try:
                manifest = checkpoint.read_manifest(self.storage, number)
                state, arrays = checkpoint.load_shard(self.storage, number, shard, manifest=manifest)
            except CheckpointUnusable as error:
                _log.error(
                    "checkpoint %d is skipped: %s", number, error,
                    extra=about("checkpoint.unusable", checkpoint=number),
                )  # fmt: skip
                continue
            if shards is not None and manifest.header.shards != shards:
                raise CheckpointUnusable(
                    f"checkpoint {number} and the update log are of {manifest.header.shards} shards; start "
                    "with as many, or restore the checkpoint into an empty directory",
                    field="shards",
                    value=shards,
                )
            return manifest, state, arrays
        if complete:
            raise CheckpointUnusable(
                "no checkpoint is usable; `psctl inspect` tells what is wrong with each",
                field="checkpoint-dir",
                value=self.storage.root,
            )
        return None

    # --- the log

    def log_directory(self, shard: int) -> str:
        """Return where a shard's log is."""
        return f"log/shard-{shard}"

    def has_log(self, shard: int, segment: int = 0) -> bool:
        """Return whether a shard has a log here, with anything in it from a segment on."""
        names = segment_names(self.storage, self.log_directory(shard))
        return any(name.number >= segment for name in names)

    def open_log(self, shard: int, segment: int, replay: Callable[[Batch], None]) -> UpdateLog:
        """Replay a shard's log from a segment on, and return it ready to go on; blocks.

        Raises:
            CheckpointUnusable: what was durable is damaged.
        """
        directory = self.log_directory(shard)
        recovered = recover(self.storage, directory, segment)
        for batch in recovered:
            replay(batch)
        log = UpdateLog(self.storage, directory, sync=self.settings.log_sync, observe_sync=self._observe_sync)
        log.begin(recovered.segment, recovered.position, recovered.log_id)
        return log


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux: of this thread alone
