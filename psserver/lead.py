"""The coordinator's care for the cluster's state: what it is at the start, and what replaces it.

    start ─> (all shards join) ─> exact: serve
                                  else:  load the newest sound checkpoint everywhere, on a new timeline; serve

It is exact if nobody has lost anything: each server has its log, or has stopped cleanly. A shard that comes
back without its state, or with that of another timeline, makes the whole cluster go back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from protocol.connection import Array
from protocol.documents import LOAD
from protocol.errors import (
    CheckpointFailed,
    CheckpointUnusable,
    ConnectionLost,
    HasDiverged,
    JobMismatch,
    NotReady,
    PSError,
)
from protocol.events import about
from protocol.messages import Checkpointed, Diverged, Empty, Install, KeptJob, Load, Request, Restore
from protocol.status import DurabilityStatus, Return
from psserver import restoring
from psserver.call import Call, Spawn
from psserver.checkpoints import Checkpoints
from psserver.coordinated_job import Job
from psserver.coordinator import Coordinator
from psserver.durability import checkpoint, directories
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import Manifest
from psserver.durability.storage import Storage
from psserver.incarnations import fenced, job_dropped
from psserver.jobs import Session
from psserver.membership import FailureSettings
from psserver.metrics import ServerMetrics
from psserver.persistence import Identity, Persistence, Stopped
from psserver.recovery import CLUSTER, Recovered, cluster_doc, recover
from psserver.restoring import Restored
from psserver.returning import checkpoints_of
from psserver.shard import Shard
from psserver.shard_part import ShardPart, open_foreign
from psserver.shard_state import Snapshot

__all__ = ["Lead"]

_log = logging.getLogger(__name__)

_AGAIN_AFTER: Final = 0.5
"""Seconds until a restore that a shard has interrupted is tried again."""


class Lead:
    """The state of a cluster, from the coordinator's point of view.

    Args:
        coordinator: the coordinator.
        shard: its own shard.
        persistence: its storage.
        failure: when silence is death.
        spawn: runs a coroutine in a task that somebody awaits.
        metrics: where checkpoints are counted.
        replaced: called when all clients have to begin anew.

    Attributes:
        checkpoints: takes them.
        part: the coordinator's own part in them.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        shard: Shard,
        persistence: Persistence,
        failure: FailureSettings,
        spawn: Spawn,
        metrics: ServerMetrics,
        replaced: Callable[[], None],
    ) -> None:
        self._coordinator = coordinator
        self._links = coordinator.links
        self._shard = shard
        self._persistence = persistence
        self._failure = failure
        self._spawn = spawn
        self._metrics = metrics
        self._one = asyncio.Lock()
        self._knows_jobs = False  # the coordinator has those that there are, or they are being replaced
        self._replacing: tuple[KeptJob, ...] = ()  # those that there were before that
        self.part = ShardPart(shard, persistence, replaced)
        self._jobs = coordinator.checkpoint_jobs()
        self.checkpoints = Checkpoints(persistence, self.part, shard, coordinator.links, self._jobs, metrics)
        coordinator.durability = self.status
        self._replaced = replaced

    @property
    def must_load(self) -> bool:
        """Whether some server has not the state that it should have."""
        return self._links.must_load

    # --- the start

    async def recover(self) -> None:
        """Take up what the disk says.

        Raises:
            CheckpointUnusable: there is something, and it cannot be read.
            BadRequest: another process serves this directory.
        """
        persistence, shards = self._persistence, len(self._links)
        if not await persistence.run(persistence.claim, 0):
            raise CheckpointUnusable(
                "another process is the coordinator there; stop it first",
                field="checkpoint-dir",
                value=persistence.storage.root,
            )
        known = await persistence.run(persistence.identity)
        found = await persistence.run(
            recover, persistence, self._shard, shards, self._failure, time.monotonic()
        )
        newest = await persistence.run(_newest, persistence.storage)
        if newest is not None:
            self.checkpoints.found(newest)
            self._links.known = newest.header.shards
        failpoint("restart.recovered")
        identity = _identity(known, found)
        exact = known is None and not found.timeline and not await self._numbers()
        exact = exact or found.timeline == identity.timeline
        if known is None or identity != known:
            await persistence.run(persistence.set_identity, identity)
        self._links.cluster, self._links.timeline = identity.cluster, identity.timeline
        self.part.goes_on_from_stop = found.unlogged
        self._knows_jobs = exact
        if exact:
            self._coordinator.take(found.jobs)
            self._shard.issued = found.issued
            if found.lost:
                self._coordinator.fence_all()
        else:
            self._shard.replace((), {}, {})
            self._links.must_load = True
        self._shard.journal.alone = shards == 1

    async def make_ready(self) -> None:
        """Return when all shards have joined, and have the state that they should have.

        Raises:
            CheckpointUnusable: there are checkpoints, and none is usable.
        """
        async with self._one:
            while True:
                await self._links.all_there()
                if self._links.must_load:
                    try:
                        await self._go_back()
                    except (ConnectionLost, CheckpointFailed, OSError) as error:
                        _log.warning("the cluster's state is not restored yet: %s", error)
                        await asyncio.sleep(_AGAIN_AFTER)
                        continue
                break
            # Not before: who stops once more until now is what it was.
            if not self.part.goes_on_from_stop:
                await self._persistence.run(self._persistence.set_stopped, 0, None)
            self._begin(self._links.timeline)

    def _begin(self, timeline: int) -> None:
        self._shard.timeline = timeline
        self.checkpoints.cluster, self.checkpoints.timeline = self._links.cluster, timeline
        log = self._shard.journal.log
        if log is not None:
            log.append(docs={CLUSTER: lambda: cluster_doc(self._links.cluster, timeline)})
        self._shard.take_up()
        self._coordinator.serve()

    # --- going back

    async def _numbers(self) -> list[int]:
        return await self._persistence.run(_complete, self._persistence.storage)

    async def _go_back(self) -> None:
        """Load the newest checkpoint that is sound on all shards, or nothing if there is none at all.

        A log tells which jobs were dropped since the checkpoint: they stay so.
        """
        numbers = await self._numbers()
        restored = await self._load_newest(self._persistence.storage, "", numbers)
        if restored is None:
            restored = restoring.nothing(len(self._links), self._links.timeline + 1)
            await self._load(restored)
            _log.warning("there is no checkpoint: the cluster begins anew", extra=about("state.replaced"))
        if self._knows_jobs and self._shard.journal.log is not None:
            restored = restored.only((*self._replacing, *self._coordinator.existing().jobs))
        await self._install(restored, is_foreign=False)

    async def _load_newest(self, storage: Storage, url: str, numbers: Sequence[int]) -> Restored | None:
        for number in reversed(numbers):
            try:
                restored = await self._read(storage, url, number)
                await self._load(restored)
            except CheckpointUnusable as error:
                _log.error(
                    "checkpoint %d is skipped: %s", number, error,
                    extra=about("checkpoint.unusable", checkpoint=number),
                )  # fmt: skip
                continue
            return restored
        if numbers:
            raise CheckpointUnusable(
                "no checkpoint is usable; `psctl inspect` tells what is wrong with each",
                field="checkpoint-dir",
                value=storage.root,
            )
        return None

    async def _read(self, storage: Storage, url: str, number: int) -> Restored:
        return await self._persistence.run(
            restoring.read,
            storage,
            url,
            number,
            len(self._links),
            self._failure,
            time.monotonic(),
            self._links.timeline + 1,
        )

    async def _load(self, restored: Restored) -> None:
        """Have every shard read what it is to become; all keep what they are."""
        requests: list[tuple[Request, Sequence[Array]]] = []
        for plan in restored.plans[1:]:
            payload = LOAD.encode(plan)
            requests.append((Load(LOAD.parts(payload)), (payload,)))
        others = asyncio.ensure_future(self._links.ask_each(requests))
        try:
            await self.part.load(restored.plans[0])
        finally:
            await asyncio.gather(others, return_exceptions=True)
        await others

    async def _install(self, restored: Restored, *, is_foreign: bool) -> None:
        """Have every shard become what it has loaded, on a new timeline.

        Unless the servers would find that by themselves the next time, a checkpoint of it is taken: it
        ``is_foreign`` if it is not the newest of their own that is sound.
        """
        timeline = restored.timeline
        self._coordinator.pause()
        self._links.must_load = True  # until all is done
        self._replacing += self._coordinator.existing().jobs
        self.part.install(timeline)
        self._coordinator.take(restored.jobs)
        self._links.timeline = timeline
        await self._links.ask_all(Install(timeline))
        await self._links.keep(self._coordinator.existing())  # what was loaded may be more
        self._begin_checkpoints(timeline)
        # A log goes on from a checkpoint of this timeline, too; what it held before is of no use.
        if is_foreign or self._shard.journal.log is not None:
            await self.checkpoints.take()
        elif restored.manifest is not None:
            self.checkpoints.found(restored.manifest)
        identity = Identity(self._links.cluster, timeline)
        await self._persistence.run(self._persistence.set_identity, identity)
        self._links.must_load = False
        self._knows_jobs, self._replacing = True, ()

    def _begin_checkpoints(self, timeline: int) -> None:
        self._shard.timeline = timeline
        self.checkpoints.cluster, self.checkpoints.timeline = self._links.cluster, timeline

    async def restore(self, call: Call, request: Restore) -> None:
        """Replace the state of the cluster, because an operator says so.

        Raises:
            JobMismatch: workers are at work, and it was not said to replace what they work on.
            BadRequest: the URL names no storage.
            CheckpointUnusable: it cannot be read; nothing has changed.
            NotReady: a server is away, which would have to take part.
        """
        began = time.monotonic()
        if not self._links.all_open():
            raise NotReady("a server is away, and all are needed; see `psctl status`, and ask again")
        at_work = self._coordinator.at_work()
        if at_work and not request.replace:
            raise JobMismatch(
                f"workers are at work ({', '.join(at_work[:3])}{', ...' if at_work[3:] else ''}); "
                "say --replace to have them go on from the checkpoint",
                field="replace",
                value=False,
            )
        async with self._one:
            manifest, restored = await self._load_for(request)
            await self._install(restored, is_foreign=True)
            self._begin(self._links.timeline)
        seconds = time.monotonic() - began
        call.reply(Checkpointed(manifest.header.checkpoint, request.url, manifest.nbytes, seconds))

    async def prepared(self, call: Call, session: Session) -> None:
        """Take a checkpoint, unless there is one of the job of the worker that asks.

        Raises:
            NotReady: the state is about to be replaced.
            NotAMember, Fenced: it is no worker.
            CheckpointFailed: none could be taken.
        """
        async with self._one:
            job, _ = self._coordinator.work_of(session, call.connection)
            last = self.checkpoints.last
            if last is None or all((saved.name, saved.born) != (job.name, job.born) for saved in last.jobs):
                await self.checkpoints.take()
        call.reply(Empty())

    async def diverged(self, call: Call, session: Session, request: Diverged) -> None:
        """Go back to a checkpoint, at a lower rate, because a worker says that its job has diverged.

        Of several workers that say so the first makes all go back; the others find themselves out.

        Raises:
            Fenced: it is done: the worker is to join again.
            JobDropped: the job was dropped while its checkpoint was read.
            HasDiverged: there is no checkpoint of the job, or it has gone back too often.
            CheckpointUnusable: none can be read; nothing has changed.
            NotReady: a server is away, which would have to take part.
        """
        async with self._one:
            job, worker = self._coordinator.work_of(session, call.connection)
            if not self._links.all_open():
                raise NotReady("a server is away, and all are needed; see `psctl status`, and ask again")
            _log.warning(
                "job %s has diverged: the loss of %s is %g in step %d",
                job.name, worker.name, request.loss, request.step,
                extra=about("job.diverged", job=job.name, worker=worker.name),
            )  # fmt: skip
            label = self._shard.jobs[job.name].label
            restored = await self._load_good(job, request)
            if job.is_dropped:
                raise job_dropped(job.name)  # and all others stay what they are
            # The checkpoint is of the cluster: it may hold jobs that were dropped since.
            await self._install(restored.only(self._coordinator.existing().jobs), is_foreign=True)
            self._metrics.divergences[label] += 1
            self._begin(self._links.timeline)
        raise fenced(worker.id)

    async def _load_good(self, job: Job, diverged: Diverged) -> Restored:
        """Have every shard read the checkpoint that a job goes back to, which keeps its rate, but lower."""
        if not job.may_return:
            raise HasDiverged(
                f"the job has gone back {len(job.returns)} times, and its rate is {job.rate:g}; take a "
                "lower learning rate",
                field="loss",
                value=diverged.loss,
            )
        storage, timeline = self._persistence.storage, self._links.timeline
        numbers = await self._persistence.run(
            checkpoints_of, storage, job.name, job.born, job.returns, timeline
        )
        restored = await self._load_newest(storage, "", numbers)
        if restored is None or restored.manifest is None:
            raise HasDiverged(
                "there is no checkpoint of the job yet; take them more often (--checkpoint-every), or a "
                "lower learning rate",
                field="loss",
                value=diverged.loss,
            )
        number = restored.manifest.header.checkpoint
        back = Return(diverged.step, diverged.loss, number, restored.timeline, job.lower_rate)
        self._coordinator.keep_rates(restored.jobs, job.name, back)
        return restored

    async def _load_for(self, request: Restore) -> tuple[Manifest, Restored]:
        try:
            storage = await self._persistence.run(open_foreign, request.url)
            restored: Restored | None
            if request.checkpoint:
                restored = await self._read(storage, request.url, request.checkpoint)
                await self._load(restored)
            else:
                numbers = await self._persistence.run(_complete, storage)
                restored = await self._load_newest(storage, request.url, numbers)
        except OSError as error:
            raise CheckpointUnusable(f"it cannot be read: {error}", field="url", value=request.url) from error
        except CheckpointUnusable as error:
            if error.field != "file":
                raise
            file = f"{request.url}/{error.value}"
            raise CheckpointUnusable(error.message, field="file", value=file) from error
        if restored is None or restored.manifest is None:
            raise CheckpointUnusable("there is no checkpoint", field="url", value=request.url)
        return restored.manifest, restored

    async def checkpoint(self) -> Checkpointed:
        """Take a checkpoint, because an operator or a server that stops says so.

        Raises:
            CheckpointFailed: the cluster is not complete, or a shard or a worker did not do its part in time.
        """
        if not self._coordinator.serving.is_set():
            raise CheckpointFailed("the cluster is not complete, or is taking up its state; ask again")
        return await self.checkpoints.take()

    def status(self) -> DurabilityStatus:
        """Return what outlives the servers."""
        settings, checkpoints = self._persistence.settings, self.checkpoints
        place, timeline = self._persistence.storage.root, self._links.timeline
        return DurabilityStatus(settings.mode, place, timeline, checkpoints.status(), checkpoints.problem)

    # --- the end

    async def stop(self) -> None:
        """Take a last checkpoint, if anything has changed since the one before.

        Raises:
            OSError: it cannot be written.
            PSError: no checkpoint could be taken; with an update log that matters to nobody.
        """
        if not self._coordinator.serving.is_set() or self._shard.is_untouched:
            return
        stopped = await self._last()
        await self._persistence.run(self._persistence.set_stopped, 0, stopped)
        _log.info("stopped with checkpoint %d%s", stopped.checkpoint, ", its own" if stopped.alone else "")

    async def _last(self) -> Stopped:
        logs = self._shard.journal.log is not None
        identity = Identity(self._links.cluster, self._links.timeline)
        if (
            not logs
            and self._has_saved(self._shard.snapshot())
            and self._has_saved((await self._freeze())[0])
        ):
            return Stopped(identity.cluster, identity.timeline, self.part.saved)
        try:
            done = await self.checkpoints.take(stays=True)
            return Stopped(identity.cluster, identity.timeline, done.checkpoint)
        except PSError as error:
            if logs:
                raise
            _log.info("no checkpoint of all shards can be taken (%s); this one's state is kept", error)
        snapshot, state = await self._freeze()
        return await self._persistence.run(
            self._persistence.save_alone, identity, len(self._links), 0, snapshot, state
        )

    def _has_saved(self, snapshot: Snapshot) -> bool:
        return self.part.has_saved(snapshot) and self.checkpoints.changes == self._coordinator.state_number()

    async def _freeze(self) -> tuple[Snapshot, dict[str, Any]]:
        """Return the coordinator's and its shard's last state; they do nothing any more."""
        self._jobs.disturb("nothing")
        return await self.part.freeze(), self._jobs.state()


def _identity(known: Identity | None, found: Recovered) -> Identity:
    """Return which cluster this is; a checkpoint may be newer than what was said last."""
    if known is None:
        return Identity(found.cluster or secrets.token_hex(8), max(1, found.timeline))
    return Identity(known.cluster, max(known.timeline, found.timeline))


def _complete(storage: Storage) -> list[int]:
    """Return the numbers of the complete checkpoints."""
    return [number for number in directories.numbers(storage) if directories.is_complete(storage, number)]


def _newest(storage: Storage) -> Manifest | None:
    """Return the manifest of the newest complete checkpoint in which that can be read."""
    for number in reversed(_complete(storage)):
        try:
            return checkpoint.read_manifest(storage, number)
        except CheckpointUnusable as error:
            _log.error(
                "checkpoint %d: %s", number, error, extra=about("checkpoint.unusable", checkpoint=number)
            )
    return None
