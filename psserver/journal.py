"""What a shard makes durable before it acknowledges it. Without an update log that is nothing, and free.

A log holds events, and the latest version of whatever array they changed. The events of a shard are lists:

    ["epoch", epoch]                                           as announced
    ["push", job, *taken, step, ends, done, updates]           applied at once
    ["share", job, *taken, step, ends, done, weight]           kept for a step
    ["include", job, step, workers]                            these shares are in the step
    ["commit", job, step, applied, updates, closed]            the step is over; closed is a list of
                                                               [*taken, ended, included, done, error]
    ["flush", job, step]                                       its merged shares were applied, no commit

``taken`` is worker, incarnation, seq, fingerprint; ``done`` is [lease, batches] or None. Arrays have the keys
("block", job, tensor) and ("share", job, step, worker, tensor).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from protocol.connection import Array
from protocol.documents import EPOCH
from protocol.errors import PSError
from protocol.messages import Decide, Done, Epoch, Push, PushPull, Step
from psserver.durability.log import UpdateLog
from psserver.store.dense import DenseBlock

if TYPE_CHECKING:
    from psserver.jobs import JobStore
    from psserver.steps import Share

__all__ = ["Journal", "Taken", "block_info", "plain_done", "plain_error"]

_NOTHING: Final[Mapping[tuple[str | int, ...], tuple[Any, Array]]] = {}


class Taken(NamedTuple):
    """A numbered request that was taken: whose it is, its number, and what tells its content."""

    worker: int
    incarnation: int
    seq: int
    fingerprint: int


class Journal:
    """The way of a shard's changes into its log.

    Attributes:
        log: the update log; None: nothing has to be durable.
        alone: no other shard takes part in this one's steps.
    """

    def __init__(self) -> None:
        self.log: UpdateLog | None = None
        self.alone = True

    @property
    def problem(self) -> PSError | None:
        """Why updates cannot be made durable now; None if they can."""
        return None if self.log is None else self.log.problem

    def when_durable(self, then: Callable[[], None]) -> None:
        """Call ``then`` when all that has happened so far is durable."""
        if self.log is None:
            then()
        else:
            self.log.when_durable(then)

    def epoch(self, epoch: Epoch) -> None:
        """A new epoch is followed."""
        if self.log is not None:
            self.log.append([["epoch", EPOCH.plain(epoch)]])

    def filled(self, job: JobStore, block: DenseBlock, then: Callable[[], None]) -> None:
        """A block was filled; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
        else:
            log.append(arrays=_blocks(job, [block]), then=then)

    def push(
        self,
        job: JobStore,
        taken: Taken,
        request: Step,
        changed: Sequence[DenseBlock],
        then: Callable[[], None],
    ) -> None:
        """A push was applied at once; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
        else:
            ends = type(request) is PushPull
            event = ["push", job.name, *taken, request.step, ends, plain_done(request.done), job.updates]
            log.append([event], arrays=_blocks(job, changed), then=then)

    def _log_for(self, job: JobStore) -> UpdateLog | None:
        """Return the log, unless the job has been replaced by another state meanwhile."""
        return None if job.gone else self.log

    def must_remember(self, request: Step) -> bool:
        """Return whether a gradient that is kept for a step has to be durable before this is said to anybody.

        A push is acknowledged. Where several shards take part in a step, its end is a vote: once the other
        shards rely on it, it must not be forgotten (Gray 1978, two-phase commit).
        """
        return self.log is not None and (type(request) is Push or not self.alone)

    async def share(self, job: JobStore, share: Share, taken: Taken, request: Step) -> None:
        """Return when a share, as it is now, is durable; it must not change meanwhile."""
        assert self.log is not None  # noqa: S101 (must_remember)
        arrays: dict[tuple[str | int, ...], tuple[Any, Array]] = {}
        for part in request.tensors:
            total, unit, relative = share.means[part.name].peek()
            key = ("share", job.name, request.step, taken.worker, part.name)
            arrays[key] = ([part.dtype, unit, relative], total)
        ends = type(request) is PushPull
        done = plain_done(request.done)
        durable = asyncio.Event()
        event = ["share", job.name, *taken, request.step, ends, done, request.weight]
        self.log.append([event], arrays=arrays, then=durable.set)
        await durable.wait()

    def included(self, job: JobStore, decision: Decide) -> None:
        """Shares are in a step for good."""
        if self.log is not None and not self.alone and decision.workers:
            self.log.append([["include", job.name, decision.step, list(decision.workers)]])

    def commit(
        self,
        job: JobStore,
        step: int,
        changed: Sequence[DenseBlock],
        shares: Iterable[Share],
        error: Exception | None,
        then: Callable[[], None],
    ) -> None:
        """A step is over; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
            return
        told = plain_error(error)
        closed = [
            [*taken, share.ended, share.included, plain_done(share.done), told]
            for share in shares
            for taken in share.taken
        ]
        event = ["commit", job.name, step, error is None, job.updates, closed]
        log.append([event], arrays=_blocks(job, changed), then=then)

    def flushed(
        self,
        job: JobStore,
        step: int,
        share: Share,
        changed: Sequence[DenseBlock],
        then: Callable[[], None],
    ) -> None:
        """A share, or all that were merged, was applied alone; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
            return
        done = plain_done(share.done)
        events = [
            ["push", job.name, *taken, step, share.ended, done, job.updates] for taken in share.taken
        ] or [["flush", job.name, step]]
        log.append(events, arrays=_blocks(job, changed), then=then)


def _blocks(job: JobStore, blocks: Iterable[DenseBlock]) -> dict[tuple[str | int, ...], tuple[Any, Array]]:
    return {("block", job.name, block.name): (block_info(block), block.values) for block in blocks}


def block_info(block: DenseBlock) -> list[Any]:
    """Return what has to be known of a block beside its values."""
    return [block.plain_spec, block.start, block.attempt, block.version]


def plain_done(done: Done | None) -> list[int] | None:
    """Return how far a chunk is, as plain data."""
    return None if done is None else [done.lease, done.batches]


def plain_error(error: Exception | None) -> list[str] | None:
    """Return what a request was refused with, as plain data."""
    if error is None:
        return None
    if isinstance(error, PSError):
        return [error.code, error.message, error.field, error.value]
    return ["INTERNAL", "the server failed on this request", "", type(error).__name__]
