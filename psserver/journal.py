"""What a shard makes durable before it acknowledges it. Without an update log that is nothing, and free.

A log holds events, and the latest version of whatever array they changed. The events of a shard are lists:

    ["epoch", epoch]                                           as announced
    ["push", job, *taken, step, ends, done, updates]           applied at once
    ["share", job, *taken, step, ends, done, weight, means]    kept for a step; means is a list of
                                                               [tensor, unit, relative weight]
    ["include", job, step, workers]                            these shares are in the step
    ["commit", job, step, applied, updates, closed]            the step is over; closed is a list of
                                                               [*taken, ended, included, done, error]
    ["flush", job, step]                                       its merged shares were applied, no commit

    ["table", job, table, info]                                an empty block of a table was made
    ["reset", job, *taken, updates]                            blocks have begun anew
    ["drop", job]                                              the job was dropped

``taken`` is worker, incarnation, seq, fingerprint; ``done`` is [lease, batches] or None. Arrays have the keys

    ("block", job, tensor)                                     the latest values
    ("slot", job, tensor, slot)                                what its optimizer keeps
    ("share", job, step, worker, tensor, part)                 a gradient; part is "", or "keys" and "values"
    ("rows", job, table, number, part)                         rows after an update: "keys", "records"
    ("gone", job, table, number)                               keys whose rows were dropped

Of rows that several updates changed each update has its arrays; their numbers say which came later.

A batch does not say whether an array in it came before or after an event. So a job with the name of one that
was dropped begins only when that is durable: all of that name in the batch of a "drop" is of the former.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from protocol.connection import Array
from protocol.documents import EPOCH
from protocol.errors import PSError
from protocol.messages import Decide, Done, Epoch, Push, PushPull, Step
from protocol.tables import Keys
from psserver.durability.log import UpdateLog
from psserver.store.dense import DenseBlock
from psserver.store.means import arrays_of
from psserver.store.sparse import SparseBlock

if TYPE_CHECKING:
    from psserver.arriving import Arrived
    from psserver.jobs import JobStore
    from psserver.steps import Share

__all__ = ["Changes", "Journal", "Taken", "block_info", "plain_done", "plain_error"]

Changes = list[tuple[DenseBlock | SparseBlock, Any]]
"""Blocks, and the version that was swapped in of each."""

_Arrays = dict[tuple[str | int, ...], tuple[Any, Array]]
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
        self._numbers = 0  # of changes of rows

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

    def filled(self, job: JobStore, block: DenseBlock | SparseBlock, then: Callable[[], None]) -> None:
        """A block was filled; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
        elif isinstance(block, SparseBlock):
            log.append([["table", job.name, block.name, block_info(block)]], then=then)
        else:
            log.append(arrays=_dense(job, block, block.values, block.slots), then=then)

    def dropped(self, job: JobStore, block: SparseBlock, keys: Keys) -> None:
        """Rows of a table were dropped."""
        log = self._log_for(job)
        if log is not None and keys.size:
            self._numbers += 1
            log.append(arrays={("gone", job.name, block.name, self._numbers): (None, keys)})

    def drop(self, jobs: Collection[str], then: Callable[[], None], *more: list[Any]) -> None:
        """Jobs were dropped, and ``more`` events tell so; call ``then`` when that is durable.

        It outlives a power failure, too: only then may anything follow of a job of the same name.
        """
        if self.log is None or not jobs:
            then()
        else:
            self.log.append([*(["drop", job] for job in jobs), *more], then=then, sync=True)

    def reset(
        self,
        job: JobStore,
        taken: Taken,
        begun: Iterable[DenseBlock],
        emptied: Iterable[tuple[SparseBlock, Keys]],
        then: Callable[[], None],
    ) -> None:
        """Blocks have begun anew, and tables lost these rows; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
            return
        arrays: _Arrays = {}
        for block in begun:
            arrays.update(_dense(job, block, block.values, block.slots))
        for table, keys in emptied:
            if keys.size:
                self._numbers += 1
                arrays["gone", job.name, table.name, self._numbers] = (None, keys)
        log.append([["reset", job.name, *taken, job.updates]], arrays=arrays, then=then)

    def push(
        self,
        job: JobStore,
        taken: Taken,
        request: Step,
        changed: Changes,
        then: Callable[[], None],
    ) -> None:
        """A push was applied at once; call ``then`` when that is durable."""
        log = self._log_for(job)
        if log is None:
            then()
        else:
            ends = type(request) is PushPull
            event = ["push", job.name, *taken, request.step, ends, plain_done(request.done), job.updates]
            log.append([event], arrays=self._changed(job, changed), then=then)

    def _changed(self, job: JobStore, changes: Changes) -> _Arrays:
        arrays: _Arrays = {}
        for block, version in changes:
            if not isinstance(block, SparseBlock):
                arrays.update(_dense(job, block, version.values, version.slots))
            elif version.keys.size:
                self._numbers += 1
                key = ("rows", job.name, block.name, self._numbers)
                arrays[(*key, "keys")] = (None, version.keys)
                arrays[(*key, "records")] = (None, version.records.reshape(-1))
        return arrays

    def _log_for(self, job: JobStore) -> UpdateLog | None:
        """Return the log, unless the job was dropped meanwhile, or replaced by another state."""
        return None if job.gone else self.log

    def must_remember(self, request: Step) -> bool:
        """Return whether a gradient that is kept for a step has to be durable before this is said to anybody.

        A push is acknowledged. Where several shards take part in a step, its end is a vote: once the other
        shards rely on it, it must not be forgotten (Gray 1978, two-phase commit).
        """
        return self.log is not None and (type(request) is Push or not self.alone)

    async def share(self, job: JobStore, share: Share, taken: Taken, arrived: Arrived) -> None:
        """Return when a share, as it is now, is durable; it must not change meanwhile."""
        log = self._log_for(job)
        if log is None:
            return
        arrays: _Arrays = {}
        means: list[list[Any]] = []
        request = arrived.request
        for block, _ in arrived.gradients:
            total, unit, relative = share.means[block.name].peek()
            key = ("share", job.name, request.step, taken.worker, block.name)
            parts = arrays_of(total)
            means.append([block.name, unit, relative])
            arrays.update({(*key, part): (None, array) for part, array in parts.items() if array.size})
        ends = type(request) is PushPull
        done = plain_done(request.done)
        durable = asyncio.Event()
        event = ["share", job.name, *taken, request.step, ends, done, request.weight, means]
        log.append([event], arrays=arrays, then=durable.set)
        await durable.wait()

    def included(self, job: JobStore, decision: Decide) -> None:
        """Shares are in a step for good."""
        if self.log is not None and not self.alone and decision.workers:
            self.log.append([["include", job.name, decision.step, list(decision.workers)]])

    def commit(
        self,
        job: JobStore,
        step: int,
        changed: Changes,
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
        log.append([event], arrays=self._changed(job, changed), then=then)

    def flushed(
        self,
        job: JobStore,
        step: int,
        share: Share,
        changed: Changes,
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
        log.append(events, arrays=self._changed(job, changed), then=then)


def _dense(job: JobStore, block: DenseBlock, values: Array, slots: Iterable[Array]) -> _Arrays:
    arrays: _Arrays = {("block", job.name, block.name): (block_info(block), values)}
    for slot, array in zip(block.rule.slots, slots, strict=True):
        arrays["slot", job.name, block.name, slot] = (None, array)
    return arrays


def block_info(block: DenseBlock | SparseBlock) -> list[Any]:
    """Return what has to be known of a block beside its numbers; a table's has an end as well."""
    info = [block.plain_spec, block.start, block.attempt, block.version]
    return [*info, block.stop] if isinstance(block, SparseBlock) else info


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
