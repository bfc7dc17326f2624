"""Taking checkpoints: the coordinator has all shards cut at one moment, and publishes what they have written.

idle ─> hold ─> mark ─> cut ─> written by all ─> manifest ─> idle
          └───────┴──────┴── too late: given up, the training goes on; tried again next time
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import protocol
from protocol.documents import raw_document
from protocol.errors import CheckpointFailed, PSError
from protocol.events import about
from protocol.messages import Checkpointed, Completed, Cut, Hold, Release, Saved, SavedFile
from protocol.status import CheckpointStatus
from psserver.durability import checkpoint, directories, documents
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import Header, Manifest, SavedJob
from psserver.links import ShardLinks
from psserver.metrics import ServerMetrics
from psserver.persistence import Persistence
from psserver.shard import Shard
from psserver.shard_part import ShardPart
from psserver.shard_state import Snapshot

__all__ = ["Checkpoints", "Jobs"]

_log = logging.getLogger(__name__)

_HOLD_AT_MOST: Final = 2.0
"""Seconds that pushes are held for a cut; then it is given up."""

_WRITE_AT_MOST: Final = 1800.0
"""Seconds that a shard may take to write its part, as long as it is heard of."""


Disturbance = Literal["all", "members", "nothing"]
"""What the shards may be told: all epochs and decisions, epochs of who the workers are, or neither."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """What a checkpoint needs to know of the coordinator's jobs.

    ``mark`` asks the workers for their markers, ``disturb`` says what the shards may be told meanwhile,
    ``missing`` names whose markers are not in, ``saved`` and ``state`` return what they are at this moment,
    ``changes`` a number that changes with it, ``at_work`` whether any worker is, ``serving`` whether the
    cluster has the state that it should have.
    """

    mark: Callable[[int], None]
    disturb: Callable[[Disturbance], None]
    missing: Callable[[], tuple[str, ...]]
    saved: Callable[[], tuple[SavedJob, ...]]
    state: Callable[[], dict[str, Any]]
    changes: Callable[[], int]
    at_work: Callable[[], bool]
    serving: Callable[[], bool]


class Checkpoints:
    """The checkpoints of one cluster, taken one after the other.

    Args:
        persistence: the coordinator's storage.
        part: the coordinator's own part in them.
        shard: the coordinator's own shard.
        links: the other shards.
        jobs: the coordinator's jobs.
        metrics: where they are counted.

    Attributes:
        last: the last that was completed, perhaps by a former process.
        finished: time, in seconds since 1970, at which it was.
        seconds: how long it took; None if that is not known.
        problem: why the last that was tried was given up; "" if it was not.
        changes: how often the coordinator's state had changed at its cut.
        cluster: this cluster's name.
        timeline: the timeline of its state.
        unsaved: since how many seconds there is something that no checkpoint has, as last looked.
    """

    def __init__(
        self,
        persistence: Persistence,
        part: ShardPart,
        shard: Shard,
        links: ShardLinks,
        jobs: Jobs,
        metrics: ServerMetrics,
    ) -> None:
        self.last: Manifest | None = None
        self.finished = 0.0
        self.seconds: float | None = None
        self.problem = ""
        self.cluster = ""
        self.timeline = 0
        self.changes = 0
        self.unsaved = 0.0
        self._all_saved = time.monotonic()  # when, at least, there was nothing that no checkpoint has
        self._persistence = persistence
        self._part = part
        self._shard = shard
        self._links = links
        self._jobs = jobs
        self._metrics = metrics
        self._one = asyncio.Lock()
        self._next = 0
        self._saved: dict[int, asyncio.Future[tuple[SavedFile, ...]]] = {}  # by shard, of the current one
        self._current = self._changes_at_cut = 0

    def found(self, manifest: Manifest) -> None:
        """Take note of the newest checkpoint that was there before this process."""
        self.last, self.changes = manifest, -1
        self.finished = datetime.fromisoformat(manifest.created).timestamp()

    def status(self) -> CheckpointStatus | None:
        """Return what is known of the last checkpoint; None if there is none."""
        if self.last is None:
            return None
        age = max(0.0, time.time() - self.finished)
        return CheckpointStatus(self.last.header.checkpoint, age, self.seconds, self.last.nbytes)

    async def every(self, seconds: float) -> None:
        """Take a checkpoint every so many seconds, if there is anything new."""
        while True:
            await asyncio.sleep(seconds)
            has_news = not self._is_all_saved() or (self._shard.jobs and self._jobs.at_work())
            if not self._jobs.serving() or not has_news:
                continue
            try:
                await self.take()
            except (PSError, OSError) as error:
                _log.warning("no checkpoint was taken: %s", error, extra=about("checkpoint.failed"))

    def look(self) -> None:
        """See, now and then, whether there is anything that no checkpoint has."""
        now = time.monotonic()
        if self._is_all_saved():
            self._all_saved = now
        self.unsaved = now - self._all_saved

    def _is_all_saved(self) -> bool:
        if self.last is None:
            return not self._shard.jobs
        return self.changes == self._jobs.changes() or self._shard.is_untouched

    async def take(self, *, stays: bool = False) -> Checkpointed:
        """Take a checkpoint, and return when it is complete; with ``stays`` this shard stops at the cut.

        Raises:
            CheckpointFailed: a shard or a worker did not do its part in time, or cannot write.
        """
        async with self._one:
            began = time.monotonic()
            number = max(
                self._next, await self._persistence.run(directories.next_number, self._persistence.storage)
            )
            self._next = number + 1
            try:
                manifest = await self._take(number, stays=stays)
            except (PSError, OSError) as error:
                self._metrics.checkpoint_failures += 1
                reason = error.message if isinstance(error, CheckpointFailed) else str(error)
                self.problem = f"checkpoint {number}: {reason}"
                raise CheckpointFailed(reason, field="checkpoint", value=number) from error
            seconds = time.monotonic() - began
            self._metrics.checkpoint_seconds.observe(seconds)
            self.last, self.changes, self.problem = manifest, self._changes_at_cut, ""
            self._all_saved = max(self._all_saved, began)
            self.finished, self.seconds = time.time(), seconds
            _log.info(
                "checkpoint %d: %d bytes in %.2f s", number, manifest.nbytes, seconds,
                extra=about("checkpoint.taken", checkpoint=number),
            )  # fmt: skip
            return Checkpointed(number, self._persistence.storage.root, manifest.nbytes, seconds)

    async def _take(self, number: int, *, stays: bool) -> Manifest:
        if not self._links.all_open():
            away = ", ".join(map(str, self._links.away()))
            raise CheckpointFailed(
                f"shard {away} is away, and all are needed: start it again, then try again",
                field="shards",
                value=len(self._links),
            )
        self._current = number
        loop = asyncio.get_running_loop()
        self._saved = {shard: loop.create_future() for shard in range(1, len(self._links))}
        header = Header(number, len(self._links), self.cluster, self.timeline)
        try:
            snapshot, jobs, state = await self._cut(number, stays=stays)
            own = await self._part.save(header, snapshot)
            mine = await self._persistence.run(
                checkpoint.save_coordinator, self._persistence.storage, header, state
            )
            files = [*own, mine]
            async with asyncio.timeout(_WRITE_AT_MOST):
                for saved in self._saved.values():
                    files += await saved
        finally:
            self._current = 0
            for saved in self._saved.values():
                if not saved.cancel() and not saved.cancelled():
                    saved.exception()  # looked at: another one's was raised
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        manifest = Manifest(header, created, protocol.__version__, jobs, tuple(files))
        await self._part.completed(manifest)
        failpoint("cut.told")
        parts, payload = raw_document("manifest", documents.encode(manifest))
        await self._links.ask_all(Completed(number, parts), payload)
        return manifest

    async def _cut(
        self, number: int, *, stays: bool
    ) -> tuple[Snapshot, tuple[SavedJob, ...], dict[str, Any]]:
        """Return what the coordinator and its shard are at the cut, which all shards have taken."""
        taken: asyncio.Future[tuple[Snapshot, tuple[SavedJob, ...], dict[str, Any]]]
        taken = asyncio.get_running_loop().create_future()

        def take(snapshot: Snapshot) -> None:
            self._jobs.disturb("nothing")
            if not taken.done():
                taken.set_result((snapshot, self._jobs.saved(), self._jobs.state()))
                self._changes_at_cut = self._jobs.changes()

        self._jobs.disturb("nothing")
        try:
            async with asyncio.timeout(_HOLD_AT_MOST):
                self._shard.hold(number)
                await self._links.ask_all(Hold(number))
                self._jobs.disturb("members")
                self._jobs.mark(number)
                self._shard.cut(number, take, stays=stays)
                await self._links.ask_all(Cut(number))
                return await taken
        except BaseException as error:
            missing = self._jobs.missing()
            self._shard.release()
            self._links.notify_all(Release(number))
            if isinstance(error, TimeoutError):
                who = f"; no marker of {', '.join(missing)}" if missing else ""
                raise CheckpointFailed(
                    f"not all could be cut at one moment within {_HOLD_AT_MOST:g} s{who}",
                    field="checkpoint",
                    value=number,
                ) from error
            raise
        finally:
            if not stays:
                self._jobs.disturb("all")

    def saved(self, shard: int, request: Saved, files: tuple[SavedFile, ...]) -> None:
        """Take note that a shard has written its part, or why not."""
        future = self._saved.get(shard)
        if request.checkpoint != self._current or future is None or future.done():
            return
        if request.problem:
            future.set_exception(
                CheckpointFailed(
                    f"shard {shard}: {request.problem}", field="checkpoint", value=request.checkpoint
                )
            )
        else:
            future.set_result(files)

    def lost(self, shard: int) -> None:
        """Take note that a shard is away: its part will not come."""
        future = self._saved.get(shard)
        if future is not None and not future.done():
            future.set_exception(CheckpointFailed(f"shard {shard} is away", field="shard", value=shard))
