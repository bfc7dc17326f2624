"""A server's part in the cluster's checkpoints and restores, on the coordinator as on the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from protocol.connection import Array
from protocol.errors import BadRequest, CheckpointUnusable
from protocol.events import about
from protocol.messages import LoadPlan, SavedFile
from psserver.durability import checkpoint
from psserver.durability.checkpoint import Wanted
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import KEYS, RECORDS, Header, Manifest
from psserver.durability.object_storage import open_storage
from psserver.durability.storage import Storage
from psserver.persistence import Persistence
from psserver.shard import Shard
from psserver.shard_state import Snapshot
from psserver.table_parts import WantedTable, load_table

__all__ = ["ShardPart", "open_foreign"]

_log = logging.getLogger(__name__)

Loaded = dict[tuple[str, str, str], Array]
Versions = dict[tuple[str, str], int]


class ShardPart:
    """What one server does for checkpoints and restores.

    Args:
        shard: its shard.
        persistence: its storage.
        replaced: called when the shard's state has been replaced.

    Attributes:
        saved: the last checkpoint of which its part was written; 0: none.
        goes_on_from_stop: its update log goes on from the state with which it stopped, until there is a
            checkpoint to go on from.
    """

    def __init__(self, shard: Shard, persistence: Persistence, replaced: Callable[[], None]) -> None:
        shard.timeline = 0
        self.saved = 0
        self.goes_on_from_stop = False
        self._state: Mapping[str, Any] | None = None  # as saved then
        self._is_complete = False  # all shards have written their parts of it
        self._shard = shard
        self._persistence = persistence
        self._replaced = replaced
        self._loaded: tuple[LoadPlan, Loaded, Versions] | None = None

    async def save(self, header: Header, snapshot: Snapshot) -> tuple[SavedFile, ...]:
        """Write this shard's part of a checkpoint.

        Raises:
            OSError: it cannot be written.
            LogUnwritable: the update log that has to go on from it cannot be.
        """
        if self._shard.journal.problem is not None:
            raise self._shard.journal.problem
        files = await self._persistence.run(self._persistence.save, header, self._shard.number, snapshot)
        if self._shard.journal.log is not None:
            # The segment that goes on from it must be there, too.
            await self._shard.journal.log.flush(at_once=True)
        self.saved, self._state, self._is_complete = header.checkpoint, snapshot.state, False
        return files

    async def freeze(self) -> Snapshot:
        """Return the shard's last state; it does nothing any more."""
        frozen: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()

        def taken(snapshot: Snapshot) -> None:
            if not frozen.done():
                frozen.set_result(snapshot)

        self._shard.freeze(taken)
        return await frozen

    def has_saved(self, snapshot: Snapshot) -> bool:
        """Return whether the last checkpoint is complete, and has this very state."""
        return self._is_complete and snapshot.state == self._state

    async def completed(self, manifest: Manifest) -> None:
        """Take note that a checkpoint is complete on all shards."""
        log = self._shard.journal.log
        await self._persistence.run(self._persistence.complete, manifest, self._shard.number, log)
        self._is_complete = manifest.header.checkpoint == self.saved
        if self.goes_on_from_stop:
            await self._persistence.run(self._persistence.set_stopped, self._shard.number, None)
            self.goes_on_from_stop = False

    async def load(self, plan: LoadPlan) -> None:
        """Read and check what is to be installed; the state in use stays.

        Raises:
            BadRequest: the plan's URL names no storage.
            CheckpointUnusable: a file is missing or damaged, or the plan's URL cannot be read.
            OSError: this server's own storage cannot be read now.
        """
        failpoint("restore.begin")
        arrays: Loaded = {}
        versions: Versions = {}
        if plan.checkpoint is not None:
            storage = self._persistence.storage
            if plan.url:
                storage = await self._persistence.run(open_foreign, plan.url)
            try:
                arrays, versions = await self._persistence.run(_load, storage, plan, self._shard.number)
            except OSError as error:
                if not plan.url:
                    raise
                raise CheckpointUnusable(
                    f"shard {self._shard.number} cannot read it: {error}", field="url", value=plan.url
                ) from error
            except CheckpointUnusable as error:
                where = f"on shard {self._shard.number}: {error.message}"
                raise CheckpointUnusable(where, field=error.field, value=error.value) from error
        self._loaded = (plan, arrays, versions)
        failpoint("restore.loaded")

    def install(self, timeline: int) -> None:
        """Replace the state by what was loaded.

        Raises:
            CheckpointUnusable: nothing was.
        """
        if self._loaded is None:
            raise CheckpointUnusable("nothing was loaded", field="timeline", value=timeline)
        (plan, arrays, versions), self._loaded = self._loaded, None
        self._shard.replace(plan.jobs, arrays, versions)
        self._shard.timeline = timeline
        self._is_complete = False
        self._replaced()
        failpoint("restore.installed")
        what = "nothing"
        if plan.checkpoint is not None:
            what = f"checkpoint {plan.checkpoint} of timeline {plan.timeline}"
        _log.warning(
            "this shard's state was replaced by %s; timeline %d begins", what, timeline,
            extra=about("state.replaced", timeline=timeline),
        )  # fmt: skip


def _load(storage: Storage, plan: LoadPlan, shard: int) -> tuple[Loaded, Versions]:
    assert plan.checkpoint is not None  # noqa: S101 (there is something to load)
    manifest = checkpoint.read_manifest(storage, plan.checkpoint)
    if manifest.header != Header(plan.checkpoint, plan.shards, plan.cluster, plan.timeline):
        raise CheckpointUnusable(
            f"it is of timeline {manifest.header.timeline} of cluster {manifest.header.cluster}, not of "
            f"timeline {plan.timeline} of cluster {plan.cluster}, which the coordinator has",
            field="checkpoint",
            value=plan.checkpoint,
        )
    source = (storage, plan.checkpoint)
    tensors = [(job.name, tensor) for job in plan.jobs for tensor in job.tensors]
    wanted = [
        Wanted(job, tensor.name, tensor.start, tensor.stop, slot)
        for job, tensor in tensors
        if tensor.spec.table is None
        for slot in ("", *tensor.slots)
    ]
    found = checkpoint.load_arrays(*source, wanted, plan.shards, shard=shard, manifest=manifest)
    arrays: Loaded = {(one.job, one.name, one.slot): values for one, values in found.items()}
    for job, tensor in tensors:
        if tensor.spec.table is not None:
            table = WantedTable(job, tensor.name, tensor.spec.dtype, tensor.start, tensor.stop)
            keys, records = load_table(*source, plan.shards, table, manifest)
            arrays[job, tensor.name, KEYS], arrays[job, tensor.name, RECORDS] = keys, records
    return arrays, _versions(*source, manifest)


def _versions(storage: Storage, number: int, manifest: Manifest) -> Versions:
    """Return how many updates each tensor had seen on the shards whose files are here."""
    versions: Versions = {}
    for shard in range(manifest.header.shards):
        try:
            state = checkpoint.read_shard_state(storage, number, shard, manifest=manifest).state
        except CheckpointUnusable:
            continue  # what of it is needed was looked at already
        for job in state["jobs"]:
            for block in job["blocks"]:
                key = (job["name"], block["name"])
                versions[key] = max(versions.get(key, 0), block["version"])
    return versions


def open_foreign(url: str) -> Storage:
    """Return the storage at a URL that a client has given; blocks.

    Raises:
        BadRequest: it names no storage.
        CheckpointUnusable: the storage cannot be reached.
    """
    try:
        return open_storage(url)
    except ValueError as error:
        raise BadRequest(str(error), field="url", value=url) from error
    except OSError as error:
        raise CheckpointUnusable(f"it cannot be reached: {error}", field="url", value=url) from error
