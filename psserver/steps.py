"""Synchronous steps (staleness 0) on one shard: gradients wait until the coordinator says whose are in it.

A worker's gradients of a step are its share. Shares are kept apart until the coordinator has decided that
they are in the step (``psserver.decisions``); then they are merged into its mean. When the step is over
the mean is applied once, and those who wait for it are answered. Of deltas (``add``) it is the sum that is
applied, whatever the weights are: what is added up comes to the same at every staleness.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from protocol.errors import BadRequest, PSError
from protocol.messages import Decide, Done, Ended, Epoch, Pulled, Pushed, PushPull, Step
from psserver.arriving import Arrived, Asked, Block
from psserver.call import Call
from psserver.incarnations import fenced
from psserver.jobs import JobStore, Session
from psserver.journal import Changes, Journal, Taken
from psserver.metrics import ServerMetrics
from psserver.optimizers import Moment
from psserver.sequences import Outcome
from psserver.sequences import Sequence as Numbered
from psserver.store.means import Mean, mean_of
from psserver.store.swapping import swap_all

__all__ = ["Send", "Share", "Steps", "follow"]

Send = Callable[[Call, JobStore, Session | None, Asked, int | None], None]
"""Answers a call with the current values of what was asked for, and with a late worker's clock."""

_NOTHING: Final = Asked(())


def follow(job: JobStore, steps: Steps, epoch: Epoch) -> bool:
    """Have a job and its steps take a new epoch; return whether what is kept for steps has to be flushed."""
    kept_steps, since = job.clocks.staleness == 0, job.clocks.since
    for worker in job.follow(epoch):
        steps.drop(worker)
    if epoch.staleness == 0 or kept_steps:
        steps.begin_at(epoch.since)
    if epoch.staleness == 0 and not kept_steps:
        for worker in job.clocks.ahead_of(epoch.since):
            steps.ended_before(worker)
    to_be_flushed = kept_steps and (epoch.staleness > 0 or epoch.since > since)
    if to_be_flushed:
        steps.complete_open()
    return to_be_flushed


@dataclass(slots=True)
class Share:
    """What one worker has put into one step; ``call`` waits for the step's end.

    ``lock`` is held while gradients are added in threads, or what they came to is applied. ``taken`` are the
    requests whose gradients are in it; ``done`` is how far the last one says that the worker's chunk is.
    """

    means: dict[str, Mean] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    adding: int = 0
    call: Call | None = None
    asked: Asked = _NOTHING
    ended: bool = False
    idle: bool = False
    included: bool = False
    since: float = 0.0
    taken: list[Taken] = field(default_factory=list)
    done: Done | None = None

    def has(self, seq: int) -> bool:
        """Return whether a request's gradients are in it already: it was taken before a restart."""
        return any(taken.seq == seq for taken in self.taken)


class Steps:
    """The open step of one job on one shard.

    Args:
        job: the job's blocks, clocks and counts.
        journal: what has to be durable goes there.
        metrics: where updates, waits and dropped gradients are counted.
        threads: where large arrays are added.
        send: answers who waits.
        now: seconds, monotonic.

    Attributes:
        clock: the open step.
    """

    def __init__(
        self,
        job: JobStore,
        journal: Journal,
        metrics: ServerMetrics,
        threads: Executor,
        send: Send,
        now: Callable[[], float],
    ) -> None:
        self.clock = 0
        self._job = job
        self._journal = journal
        self._metrics = metrics
        self._threads = threads
        self._send = send
        self._now = now
        self._shares: dict[int, dict[int, Share]] = {}  # by step and worker
        self._merged: dict[int, dict[str, Mean]] = {}  # what is in a step, by step and tensor
        self._decisions: deque[tuple[Decide, float]] = deque()  # and the rate at which it was taken
        self._settling = asyncio.Lock()

    # --- gradients

    def check(self, worker: int, step: int, seq: int) -> None:
        """Refuse a gradient that no step can take.

        Raises:
            BadRequest: the step is not the open one or the next, or the worker has ended it.
        """
        share = self._shares.get(step, {}).get(worker)
        if step > self.clock + 1 or (share is not None and share.ended and not share.has(seq)):
            raise self._no_such_step(step)

    def _no_such_step(self, step: int) -> BadRequest:
        return BadRequest(
            f"the open step is {self.clock}; each worker ends each step once", field="step", value=step
        )

    async def contribute(self, call: Call, session: Session, taken: Taken, arrived: Arrived) -> None:
        """Take a worker's gradients; those of a step that is over are dropped."""
        request = arrived.request
        worker = self._job.worker(session)
        done, outcome = self._job.sequences[worker].effect(request.seq)
        if done:  # it was taken before a restart, and has just been applied
            self._answer_when_durable(call, arrived, outcome.clock if isinstance(outcome, Pulled) else None)
            return
        if self._is_kept(request.step) and request.step < self.clock:
            self._late(call, worker, arrived)
            return
        share = self._share(request, worker)
        if not share.has(request.seq):
            await self._take(share, taken, arrived)
        self._job.worker(session)  # it may be out by now
        if not self._is_kept(request.step) and not share.included:  # steps are no longer kept, or begin later
            changed = await self._apply_share(request.step, share)
            answer = partial(self._answer_now, call, arrived, None)
            self._journal.flushed(self._job, request.step, share, changed, answer)
        elif self._is_kept(request.step) and request.step < self.clock:
            self._late(call, worker, arrived)
        elif type(request) is PushPull:
            share.call, share.asked = call, arrived.asked
            share.since = self._now()
        else:
            call.reply(Pushed(self._job.updates))

    async def _take(self, share: Share, taken: Taken, arrived: Arrived) -> None:
        """Add a request's gradients to a share; where that is a promise, return when it is durable.

        The next is added only then: what is logged must hold those gradients alone that the log tells of.
        """
        request = arrived.request
        if share.ended:  # by a request that came right before
            raise self._no_such_step(request.step)
        ends = type(request) is PushPull
        share.ended = ends
        share.adding += 1
        try:
            for block, gradient in arrived.gradients:
                await block.check(gradient, self._threads)
            async with share.lock:
                for block, gradient in arrived.gradients:
                    await self._add(share, block, gradient, request.weight)
                share.taken.append(taken)
                share.done = request.done or share.done
                share.idle = ends and request.weight == 0
                if self._is_kept(request.step) and self._journal.must_remember(request):
                    await self._journal.share(self._job, share, taken, arrived)
        except Exception:
            share.ended = share.ended and not ends
            raise
        finally:
            share.adding -= 1

    def _is_kept(self, step: int) -> bool:
        return self._job.clocks.in_lockstep(step)

    def _share(self, request: Step, worker: int) -> Share:
        if self._is_kept(request.step):
            return self.share(request.step, worker)
        kept = self._shares.get(request.step, {}).get(worker)
        return kept if kept is not None and kept.has(request.seq) else Share()  # of no step: applied at once

    async def _add(self, share: Share, block: Block, gradient: Any, weight: float) -> None:
        if block.rule.sums:
            weight = 1.0
        mean = share.means.get(block.name)
        if mean is None:
            share.means[block.name] = mean_of(gradient, weight)
        else:
            await mean.add(gradient, weight, self._threads)

    def _late(self, call: Call, worker: int, arrived: Arrived) -> None:
        # Not logged: who asks again after a restart is late once more.
        if arrived.request.weight:
            self._drop(1)
        self._job.clocks.ended(worker, self.clock - 1)
        self._answer_when_durable(call, arrived, self.clock)

    def _answer_when_durable(self, call: Call, arrived: Arrived, clock: int | None) -> None:
        """Answer when the end of the step, which makes the answer what it is, cannot be forgotten."""
        self._journal.when_durable(partial(self._answer_now, call, arrived, clock))

    def _answer_now(self, call: Call, arrived: Arrived, clock: int | None) -> None:
        try:
            if type(arrived.request) is PushPull:
                self._send(call, self._job, None, arrived.asked, clock)
            else:
                call.reply(Pushed(self._job.updates))
        except Exception as error:
            call.fail_with(error)

    def _drop(self, count: int) -> None:
        self._job.dropped += count
        self._metrics.dropped[self._job.label] += count

    def ended(self) -> Ended:
        """Return who has ended the open step here."""
        shares = self._shares.get(self.clock, {})
        ended = [worker for worker, share in shares.items() if share.ended and not share.adding]
        idle = [worker for worker in ended if shares[worker].idle]
        return Ended(self._job.name, self.clock, tuple(ended), tuple(idle))

    # --- decisions

    @property
    def is_settled(self) -> bool:
        """Whether all that was decided is done."""
        return not self._decisions and not self._settling.locked()

    def decide(self, decision: Decide) -> bool:
        """Take a decision; return whether ``settle`` has to be run for it."""
        open_then = [waiting.step + 1 for waiting, _ in self._decisions if waiting.commit]
        if decision.step != max([self.clock, *open_then]):
            return False  # it was about a step under another staleness
        for share in self._of(decision):
            share.included = True  # from now on also if the worker dies
        self._journal.included(self._job, decision)
        self._decisions.append((decision, self._job.clocks.rate))  # the same on all shards
        return not self._settling.locked()

    async def settle(self) -> None:
        """Do what was decided, one decision after the other."""
        async with self._settling:
            while self._decisions:
                decision, rate = self._decisions[0]
                await self._merge_included(decision.step)
                if decision.commit:
                    await self._commit(decision.step, rate)
                self._decisions.popleft()

    def _of(self, decision: Decide) -> list[Share]:
        shares = self._shares.get(decision.step, {})
        return [shares[worker] for worker in decision.workers if worker in shares]

    async def _merge_included(self, step: int) -> None:
        """Merge what is in a step: what has just been decided, and what was before a restart."""
        merged = self._merged.setdefault(step, {})
        for share in tuple(self._shares.get(step, {}).values()):
            if not share.included:
                continue
            means, share.means = share.means, {}  # a decision that comes again finds nothing more
            for name, mean in means.items():
                if name in merged:
                    before: Any = merged[name]  # of the same kind
                    await before.merge(mean, self._threads)
                else:
                    merged[name] = mean

    async def _commit(self, step: int, rate: float) -> None:
        """Apply a step's means, all of them or none; open the next step, and answer who waits."""
        error: Exception | None = None
        try:
            changed = await self._apply(step, self._merged.pop(step, {}), rate)
        except Exception as failure:
            error, changed = failure, []
        shares = self._close(step, applied=error is None)
        answer = partial(self._answer_all, shares, error, self._now())
        self._journal.commit(self._job, step, changed, shares, error, answer)

    def _answer_all(self, shares: Sequence[Share], error: Exception | None, now: float) -> None:
        """Answer those who have waited for the end of a step, which is durable."""
        for share in shares:
            if share.call is None:
                continue
            if error is None:
                self._answer(share, now)
            else:
                share.call.fail_with(error)
        waits = [now - share.since for share in shares if share.call is not None]
        self._job.longest_wait = max([self._job.longest_wait, *waits])

    async def _apply(self, step: int, means: dict[str, Mean], rate: float) -> Changes:
        moment = Moment(step, now=self._now(), rate=rate)
        async with AsyncExitStack() as locks:
            blocks = [self._job.block(name) for name in sorted(means)]
            for block in blocks:
                await locks.enter_async_context(block.lock)
            changed = [
                (block, await self._next_version(block, means[block.name], moment)) for block in blocks
            ]
            await swap_all(changed, self._threads)
        return changed

    async def _next_version(self, block: Block, mean: Mean, moment: Moment) -> Any:
        gradient: Any = await mean.result(self._threads, summed=block.rule.sums)
        return await block.next_version_in_threads(gradient, moment, self._threads)

    def _close(self, step: int, *, applied: bool) -> list[Share]:
        """End a step and return the shares that were put into it; who is still adding to one is late."""
        job = self._job
        shares = self._shares.pop(step, {})
        for worker, share in shares.items():
            if share.ended and worker in job.clocks.members:
                job.clocks.ended(worker, step)
            if applied and share.included:
                self._note_done(share)
        self.clock = max(self.clock, step + 1)  # by now steps may begin later, under another staleness
        closed = [share for share in shares.values() if (share.ended or share.means) and not share.adding]
        if applied:
            for share in closed:
                self._applied(share, None if share.included else Pulled(job.updates, (), step + 1))
            job.updates += 1
            self._metrics.updates[job.label] += 1
            self._drop(sum(not share.included and not share.idle for share in closed))
        return closed

    def _applied(self, share: Share, outcome: Outcome = None) -> None:
        """Note that the requests of a share are part of the state, answered or not."""
        for taken in share.taken:
            numbered = self._live(taken)
            if numbered is not None:
                numbered.complete_open(taken.seq, taken.fingerprint, outcome)
                numbered.applied(taken.seq, outcome)

    def _live(self, taken: Taken) -> Numbered | None:
        """Return the numbers of the worker whose request this is, unless that incarnation is out."""
        member = self._job.clocks.members.get(taken.worker)
        live = member is not None and member.incarnation == taken.incarnation
        return self._job.sequences[taken.worker] if live else None

    def _note_done(self, share: Share) -> None:
        if share.done is not None:
            last = share.taken[-1]
            self._job.note_done(last.worker, last.incarnation, share.done)

    def _answer(self, share: Share, now: float) -> None:
        assert share.call is not None  # noqa: S101 (checked by the caller)
        self._metrics.barrier_wait.observe(now - share.since)
        self._metrics.staleness.observe(0.0)
        try:
            self._send(share.call, self._job, None, share.asked, None if share.included else self.clock)
        except Exception as error:
            share.call.fail_with(error)  # the others are answered all the same

    # --- membership

    def begin_at(self, step: int) -> None:
        """Open ``step``, if it is later than the open one."""
        self.clock = max(self.clock, step)

    def ended_before(self, worker: int) -> None:
        """Take note that a worker had ended the open step here when steps were not kept yet."""
        self.share(self.clock, worker).ended = True

    def drop(self, worker: int) -> None:
        """Forget what a worker that is out has put into steps that do not contain it."""
        for shares in self._shares.values():
            share = shares.get(worker)
            if share is None:
                continue
            call, share.call = share.call, None
            if not share.included:
                del shares[worker]
            if call is not None:
                call.fail(fenced(worker))

    def drop_all(self, error: PSError) -> None:
        """Forget all that was put into steps: the job was dropped."""
        shares = [share for _, _, share in self.shares()]
        self._shares.clear()
        self._merged.clear()
        for share in shares:
            call, share.call = share.call, None
            share.means = {}
            if call is not None:
                call.fail(error)

    async def flush(self) -> None:
        """Apply all that waits for a step that is not kept any more, each share at once."""
        await self.settle()
        for step in self._over():
            await self._flush_step(step)

    def _over(self) -> list[int]:
        """Return the steps for which something is kept, although they are not kept any more."""
        return sorted(step for step in {*self._shares, *self._merged} if not self._is_kept(step))

    async def _flush_step(self, step: int) -> None:
        await self._merge_included(step)
        merged, shares = Share(self._merged.pop(step, {})), self._shares.pop(step, {})
        error = await self._flush_share(step, merged) if merged.means else None
        for share in shares.values():
            if error is None or not share.included:
                await self._flush_share(step, share)
            elif share.call is not None:
                share.call.fail_with(error)

    async def _flush_share(self, step: int, share: Share) -> Exception | None:
        """Apply a share on its own, and return why it cannot be, if so."""
        try:
            changed = await self._apply_share(step, share)
        except Exception as error:
            if share.call is not None:
                share.call.fail_with(error)
            return error
        self._journal.flushed(self._job, step, share, changed, partial(self._answer_flushed, share))
        return None

    def _answer_flushed(self, share: Share) -> None:
        if share.call is None:
            return
        try:
            self._send(share.call, self._job, None, share.asked, None)
        except Exception as error:
            share.call.fail_with(error)

    async def _apply_share(self, step: int, share: Share) -> Changes:
        """Apply a share on its own; return what it has changed."""
        async with share.lock:
            means, share.means = share.means, {}
            changed = await self._apply(step, means, self._job.clocks.rate)
            self._applied(share)
            self._note_done(share)
            if means:
                self._job.updates += 1
                self._metrics.updates[self._job.label] += 1
            return changed

    # --- what a restart takes up

    @property
    def merged(self) -> dict[int, dict[str, Mean]]:
        """The means of steps as far as they were merged, by step and tensor."""
        return self._merged

    def shares(self) -> list[tuple[int, int, Share]]:
        """Return step, worker and share of all that is kept."""
        return [(step, worker, one) for step, kept in self._shares.items() for worker, one in kept.items()]

    def share(self, step: int, worker: int) -> Share:
        """Return a worker's share in a step, which is made if need be."""
        return self._shares.setdefault(step, {}).setdefault(worker, Share())

    def included(self) -> set[int]:
        """Return the workers that are in the open step for good."""
        return {worker for worker, share in self._shares.get(self.clock, {}).items() if share.included}

    def complete_open(self) -> None:
        """Take the requests whose gradients are kept for steps that are not kept any more as done.

        They are going to be applied, so after a restart none of them may be when it is asked for again.
        """
        for step, _, share in self.shares():
            if share.ended and share.call is None and not share.adding and not self._is_kept(step):
                for taken in share.taken:
                    numbered = self._live(taken)
                    if numbered is not None:
                        numbered.complete_open(taken.seq, taken.fingerprint)

    def restore(self, step: int, worker: int, share: Share) -> None:
        """Keep a share that was saved."""
        self._shares.setdefault(step, {})[worker] = share

    def include(self, step: int, worker: int) -> None:
        """Take note that a share was decided to be in a step."""
        share = self._shares.get(step, {}).get(worker)
        if share is not None:
            share.included = True

    def forget(self, step: int, worker: int, seq: int) -> None:
        """Forget a share that was applied alone, with this request in it."""
        kept = self._shares.get(step, {})
        if worker in kept and kept[worker].has(seq):
            del kept[worker]

    def replay_commit(self, step: int) -> None:
        """End a step whose result is known."""
        self._merged.pop(step, None)
        for worker, share in self._shares.pop(step, {}).items():
            if share.ended and worker in self._job.clocks.members:
                self._job.clocks.ended(worker, step)
        self.clock = max(self.clock, step + 1)

    def replay_flush(self, step: int) -> None:
        """Forget what was merged, and applied alone."""
        self._merged.pop(step, None)
        for share in self._shares.get(step, {}).values():
            if share.included:
                share.means.clear()

    @property
    def has_to_flush(self) -> bool:
        """Whether something is kept for a step that is not kept any more."""
        return bool(self._over())
