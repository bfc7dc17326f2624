"""A server that is not the coordinator: its place in the cluster, what it takes up, and what it is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from protocol.connection import Array
from protocol.documents import LOAD, SAVED
from protocol.errors import BadRequest, PSError
from protocol.events import about
from protocol.messages import (
    Checkpoint,
    Checkpointed,
    Completed,
    Cut,
    Empty,
    Hold,
    Install,
    Kept,
    KeptJobs,
    Load,
    Saved,
    SavedFiles,
    ShardJoined,
)
from psserver.call import Call, Spawn
from psserver.durability import documents
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import Header, Manifest
from psserver.membership import FailureSettings
from psserver.persistence import Identity, Persistence, Stopped
from psserver.recovery import CLUSTER, Recovered, cluster_doc, recover
from psserver.shard import Shard
from psserver.shard_part import ShardPart
from psserver.shard_state import Snapshot
from psserver.uplink import Uplink

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

_LONGEST: Final = 200  # characters of a problem that travel
_MOST_SHARDS: Final = 1 << 16


class Follower:
    """What a shard does for the cluster beside serving.

    Args:
        shard: its shard.
        persistence: its storage; None: nothing outlives it.
        spawn: runs a coroutine in a task that somebody awaits.
        replaced: called when its clients have to begin anew: its state is, or will be, another one.

    Attributes:
        serving: whether it has the cluster's state.
        part: its part in checkpoints; None without a storage.
    """

    def __init__(
        self, shard: Shard, persistence: Persistence | None, spawn: Spawn, replaced: Callable[[], None]
    ) -> None:
        self.serving = False
        self.part: ShardPart | None = None
        self._shard = shard
        self._persistence = persistence
        self._spawn = spawn
        self._replaced = replaced
        self._recovered = Recovered()
        self._joined: ShardJoined | None = None
        self._stopping = self._has_recovered = False
        self._early: list[Callable[[], None]] | None = []  # what was said before this shard was recovered
        self._held: list[Callable[[], None]] | None = None  # what was said before a drop was durable
        self._timeline = 0
        if persistence is not None:
            self.part = ShardPart(shard, persistence, replaced)

    @property
    def timeline(self) -> int:
        """What its state is of; 0: it has none."""
        return self._timeline

    @property
    def found(self) -> Recovered:
        """What it has found of itself on its disk."""
        return self._recovered

    async def recover(self, number: int | None) -> int | None:
        """Take up what the disk says, as shard ``number`` or as whatever is known there; return the number.

        Raises:
            CheckpointUnusable: there is something, and it cannot be read.
            BadRequest: another process is this shard.
        """
        persistence = self._persistence
        if persistence is None:
            return number
        if number is None:
            number = await persistence.run(persistence.claim_known)
        elif not await persistence.run(persistence.claim, number):
            raise _taken(persistence, number)
        if number is not None:
            await self._recover(persistence, number)
        return number

    async def _recover(self, persistence: Persistence, number: int) -> None:
        self._shard.number = number
        found = await persistence.run(
            recover, persistence, self._shard, 0, FailureSettings(), time.monotonic()
        )
        self._recovered, self._timeline = found, found.timeline
        self._has_recovered = True
        failpoint("restart.recovered")

    async def joined(self, joined: ShardJoined) -> None:
        """Take note of the place that the coordinator gives, also when it does so again."""
        first, self._joined = self._joined is None, joined
        self._shard.number = joined.shard
        self._shard.journal.alone = joined.shards == 1
        persistence = self._persistence
        if persistence is not None and first:
            if not self._has_recovered:
                if not await persistence.run(persistence.claim, joined.shard):
                    raise _taken(persistence, joined.shard)
                await self._recover(persistence, joined.shard)
            await self._forget_stop(persistence, joined.shard)
        failpoint("restart.joined")
        if joined.loads:
            self.serving = False
            self._replaced()
        else:
            self._take_up(joined.timeline)
        early, self._early = self._early, None
        for follow in early or ():
            follow()

    async def _forget_stop(self, persistence: Persistence, number: int) -> None:
        if self.part is not None and self._recovered.unlogged:
            self.part.goes_on_from_stop = True
        else:
            await persistence.run(persistence.set_stopped, number, None)

    def is_early(self, follow: Callable[[], None]) -> bool:
        """Return whether what the coordinator says has to wait, and does, as ``follow``.

        It does until this shard is recovered, and until it is durable that a job was dropped, for what comes
        may be of another job of that name.
        """
        waiting = self._held if self._early is None else self._early
        if waiting is None:
            return False
        waiting.append(follow)
        return True

    def keep(self, call: Call, kept: KeptJobs) -> None:
        """Forget all jobs but these; what the coordinator says then waits until that is durable."""
        dropped, freed = self._shard.keep(kept)
        if dropped:
            failpoint("drop.followed")

        def go_on() -> None:
            call.reply(Kept(freed))
            held, self._held = self._held, None
            for follow in held or ():
                follow()

        self._held = []
        self._shard.journal.drop(dropped, go_on)

    def _take_up(self, timeline: int) -> None:
        assert self._joined is not None  # noqa: S101 (joined before)
        self._timeline = timeline
        self._shard.timeline = timeline
        log = self._shard.journal.log
        if log is not None:
            log.append(docs={CLUSTER: lambda: cluster_doc(self._cluster, timeline)})
        if not self.serving:
            self.serving = True
            self._shard.take_up()

    @property
    def _cluster(self) -> str:
        return self._joined.cluster if self._joined is not None else ""

    # --- what the coordinator says

    def follow(self, call: Call, uplink: Uplink, request: Any, arrays: Sequence[Array]) -> None:
        """Answer a request about checkpoints and restores."""
        part = self.part
        if part is None:
            raise BadRequest(
                "this shard has no --checkpoint-dir; give all servers one", field="op", value=request.op
            )
        match request:
            case Hold():
                self._shard.hold(request.checkpoint)
                call.reply(Empty())
            case Cut():
                self._cut(call, uplink, part, request.checkpoint)
            case Completed():
                manifest = documents.decode(Manifest, arrays[0].tobytes())
                self._spawn(call.answer_with(self._completed(call, part, manifest)))
            case Load():
                self._spawn(call.answer_with(self._load(call, part, arrays[0])))
            case Install():
                part.install(request.timeline)
                self._take_up(request.timeline)
                call.reply(Empty())
            case _:
                self._shard.release()
                call.reply(Empty())

    def _cut(self, call: Call, uplink: Uplink, part: ShardPart, number: int) -> None:
        def taken(snapshot: Snapshot) -> None:
            call.reply(Empty())
            self._spawn(self._save(uplink, part, number, snapshot))

        if not self._shard.cut(number, taken, stays=self._stopping):
            raise BadRequest("no cut is being prepared for it", field="checkpoint", value=number)

    async def _save(self, uplink: Uplink, part: ShardPart, number: int, snapshot: Snapshot) -> None:
        assert self._joined is not None  # noqa: S101 (only the coordinator asks)
        header = Header(number, self._joined.shards, self._cluster, self._shard.timeline)
        problem = ""
        files = SavedFiles(())
        try:
            files = SavedFiles(await part.save(header, snapshot))
        except (OSError, ValueError, PSError) as error:
            _log.error(
                "checkpoint %d cannot be written: %s", number, error,
                extra=about("checkpoint.failed", checkpoint=number),
            )  # fmt: skip
            problem = str(error)[:_LONGEST]
        payload = SAVED.encode(files)
        try:
            await uplink.request(Saved(number, SAVED.parts(payload), problem), (payload,))
        except PSError as error:
            _log.warning("the coordinator is not told of checkpoint %d: %s", number, error)
        failpoint("cut.told")

    async def _completed(self, call: Call, part: ShardPart, manifest: Manifest) -> None:
        await part.completed(manifest)
        call.reply(Empty())

    async def _load(self, call: Call, part: ShardPart, payload: Array) -> None:
        await part.load(LOAD.decode(payload))
        call.reply(Empty())

    # --- the end

    async def stop(self, uplink: Uplink) -> None:
        """Have a last checkpoint taken, of which this shard's part is its last state.

        Raises:
            OSError: it cannot be written.
            PSError: no checkpoint could be taken; with an update log that matters to nobody.
        """
        part, persistence = self.part, self._persistence
        if part is None or persistence is None or not self.serving or self._shard.is_untouched:
            return
        stopped = await self._last(uplink, part, persistence)
        await persistence.run(persistence.set_stopped, self._shard.number, stopped)
        _log.info("stopped with checkpoint %d%s", stopped.checkpoint, ", its own" if stopped.alone else "")

    async def _last(self, uplink: Uplink, part: ShardPart, persistence: Persistence) -> Stopped:
        logs = self._shard.journal.log is not None
        if not logs and part.has_saved(self._shard.snapshot()) and part.has_saved(await part.freeze()):
            return Stopped(self._cluster, self._shard.timeline, part.saved)
        self._stopping = True
        try:
            done: Checkpointed
            done, _ = await uplink.request(Checkpoint())
            return Stopped(self._cluster, self._shard.timeline, done.checkpoint)
        except PSError as error:
            if logs:
                raise
            _log.info("no checkpoint of all shards can be taken (%s); this one's state is kept", error)
        assert self._joined is not None  # noqa: S101 (it serves)
        identity = Identity(self._cluster, self._shard.timeline)
        shards, number = self._joined.shards, self._shard.number
        return await persistence.run(persistence.save_alone, identity, shards, number, await part.freeze())


def _taken(persistence: Persistence, number: int) -> BadRequest:
    return BadRequest(
        f"another process serves this shard from {persistence.storage.root}; stop it first",
        field="shard",
        value=number,
    )
