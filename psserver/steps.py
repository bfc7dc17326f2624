"""Synchronous steps (staleness 0) on one shard: gradients wait until the coordinator says whose are in it.

A worker's gradients of a step are its share. Shares are kept apart until the coordinator has decided that
they are in the step (``psserver.decisions``); then they are merged into its mean. When the step is over
the mean is applied once, and those who wait for it are answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from protocol.connection import Array
from protocol.errors import BadRequest
from protocol.messages import Decide, Ended, Pushed, PushPull, Step
from psserver.call import Call
from psserver.jobs import JobStore, Session, fenced
from psserver.metrics import ServerMetrics
from psserver.store.dense import DenseBlock, StepMean

__all__ = ["Send", "Share", "Steps"]

Send = Callable[[Call, JobStore, Session | None, Sequence[str], int | None], None]
"""Answers a call with the current values of these tensors, and with a late worker's clock."""


@dataclass(slots=True)
class Share:
    """What one worker has put into one step; ``call`` waits for the step's end.

    ``lock`` is held while gradients are added in threads, or what they came to is applied.
    """

    means: dict[str, StepMean] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    adding: int = 0
    call: Call | None = None
    names: Sequence[str] = ()
    ended: bool = False
    idle: bool = False
    included: bool = False
    since: float = 0.0


class Steps:
    """The open step of one job on one shard.

    Args:
        job: the job's blocks, clocks and counts.
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
        metrics: ServerMetrics,
        threads: Executor,
        send: Send,
        now: Callable[[], float],
    ) -> None:
        self.clock = 0
        self._job = job
        self._metrics = metrics
        self._threads = threads
        self._send = send
        self._now = now
        self._shares: dict[int, dict[int, Share]] = {}  # by step and worker
        self._means: dict[str, StepMean] = {}  # of the open step, by tensor
        self._decisions: deque[Decide] = deque()
        self._settling = asyncio.Lock()

    # --- gradients

    def check(self, worker: int, step: int) -> None:
        """Refuse a gradient that no step can take.

        Raises:
            BadRequest: the step is not the open one or the next, or the worker has ended it.
        """
        share = self._shares.get(step, {}).get(worker)
        if step > self.clock + 1 or (share is not None and share.ended):
            raise self._no_such_step(step)

    def _no_such_step(self, step: int) -> BadRequest:
        return BadRequest(
            f"the open step is {self.clock}; each worker ends each step once", field="step", value=step
        )

    async def contribute(
        self, call: Call, session: Session, worker: int, request: Step, arrays: Sequence[Array]
    ) -> None:
        """Take a worker's gradients; those of a step that is over are dropped."""
        self._job.worker(session)
        if self._is_kept(request.step) and request.step < self.clock:
            self._late(call, worker, request)
            return
        share = self._share(request.step, worker)
        if share.ended:  # by a request that came right before
            raise self._no_such_step(request.step)
        share.ended = type(request) is PushPull
        share.adding += 1
        try:
            await self._add_all(share, request, arrays)
        except Exception:
            share.ended = share.ended and type(request) is not PushPull
            raise
        finally:
            share.adding -= 1
        self._job.worker(session)  # it may be out by now
        if not self._is_kept(request.step):
            await self._apply_share(share)  # steps are no longer kept, or begin later
            self._answer_now(call, request, None)
        elif request.step < self.clock:
            self._late(call, worker, request)
        elif type(request) is PushPull:
            share.call, share.names = call, request.names
            share.idle = request.weight == 0
            share.since = self._now()
        else:
            call.reply(Pushed(self._job.updates))

    def _is_kept(self, step: int) -> bool:
        return self._job.clocks.in_lockstep(step)

    def _share(self, step: int, worker: int) -> Share:
        if not self._is_kept(step):
            return Share()  # of no step: it is applied at once
        return self._shares.setdefault(step, {}).setdefault(worker, Share())

    async def _add_all(self, share: Share, request: Step, arrays: Sequence[Array]) -> None:
        blocks = [self._job.block(part.name) for part in request.tensors]
        for block, array in zip(blocks, arrays, strict=True):
            await block.check(array, self._threads)
        async with share.lock:
            for block, array in zip(blocks, arrays, strict=True):
                await self._add(share, block.name, array, request.weight)

    async def _add(self, share: Share, name: str, array: Array, weight: float) -> None:
        mean = share.means.get(name)
        if mean is None:
            share.means[name] = StepMean(array, weight)
        else:
            await mean.add(array, weight, self._threads)

    def _late(self, call: Call, worker: int, request: Step) -> None:
        if request.weight:
            self._drop(1)
        self._job.clocks.ended(worker, self.clock - 1)
        self._answer_now(call, request, self.clock)

    def _answer_now(self, call: Call, request: Step, clock: int | None) -> None:
        if type(request) is PushPull:
            self._send(call, self._job, None, request.names, clock)
        else:
            call.reply(Pushed(self._job.updates))

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

    def decide(self, decision: Decide) -> bool:
        """Take a decision; return whether ``settle`` has to be run for it."""
        open_then = [waiting.step + 1 for waiting in self._decisions if waiting.commit]
        if decision.step != max([self.clock, *open_then]):
            return False  # it was about a step under another staleness
        for share in self._of(decision):
            share.included = True  # from now on also if the worker dies
        self._decisions.append(decision)
        return not self._settling.locked()

    async def settle(self) -> None:
        """Do what was decided, one decision after the other."""
        async with self._settling:
            while self._decisions:
                decision = self._decisions[0]
                await self._include(decision)
                if decision.commit:
                    await self._commit(decision.step)
                self._decisions.popleft()

    def _of(self, decision: Decide) -> list[Share]:
        shares = self._shares.get(decision.step, {})
        return [shares[worker] for worker in decision.workers if worker in shares]

    async def _include(self, decision: Decide) -> None:
        for share in self._of(decision):
            means, share.means = share.means, {}  # a decision that comes again finds nothing more
            for name, mean in means.items():
                if name in self._means:
                    await self._means[name].merge(mean, self._threads)
                else:
                    self._means[name] = mean

    async def _commit(self, step: int) -> None:
        """Apply a step's means, all of them or none; open the next step, and answer who waits."""
        means, self._means = self._means, {}
        try:
            await self._apply(means)
        except Exception as error:
            for share in self._close(step):
                if share.call is not None:
                    share.call.fail_with(error)
            return
        job, now = self._job, self._now()
        job.updates += 1
        self._metrics.updates[job.label] += 1
        shares = self._close(step)
        for share in shares:
            if not share.included and not share.idle:
                self._drop(1)
            if share.call is not None:
                self._answer(share, now)
        waits = [now - share.since for share in shares if share.call is not None]
        job.longest_wait = max([job.longest_wait, *waits])

    async def _apply(self, means: dict[str, StepMean]) -> None:
        async with AsyncExitStack() as locks:
            blocks = [self._job.block(name) for name in sorted(means)]
            for block in blocks:
                await locks.enter_async_context(block.lock)
            fresh = [await self._next_version(block, means[block.name]) for block in blocks]
            for block, values in zip(blocks, fresh, strict=True):
                block.swap(values)

    async def _next_version(self, block: DenseBlock, mean: StepMean) -> Array:
        return await block.next_version_in_threads(await mean.result(self._threads), self._threads)

    def _close(self, step: int) -> Iterable[Share]:
        """End a step and return the shares that were put into it; who is still adding to one is late."""
        shares = self._shares.pop(step, {})
        for worker, share in shares.items():
            if share.ended and worker in self._job.clocks.members:
                self._job.clocks.ended(worker, step)
        self.clock = max(self.clock, step + 1)  # by now steps may begin later, under another staleness
        return [share for share in shares.values() if (share.ended or share.means) and not share.adding]

    def _answer(self, share: Share, now: float) -> None:
        assert share.call is not None  # noqa: S101 (checked by the caller)
        self._metrics.barrier_wait.observe(now - share.since)
        self._metrics.staleness.observe(0.0)
        try:
            self._send(share.call, self._job, None, share.names, None if share.included else self.clock)
        except Exception as error:
            share.call.fail_with(error)  # the others are answered all the same

    # --- membership

    def begin_at(self, step: int) -> None:
        """Open ``step``, if it is later than the open one."""
        self.clock = max(self.clock, step)

    def ended_before(self, worker: int) -> None:
        """Take note that a worker had ended the open step here when steps were not kept yet."""
        self._share(self.clock, worker).ended = True

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

    async def flush(self) -> None:
        """Apply all that waits for a step that is not kept any more, each share at once."""
        await self.settle()
        over = [step for step in self._shares if not self._is_kept(step)]
        shares = [share for step in over for share in self._shares.pop(step).values()]
        rest = Share(self._means)
        self._means = {}
        for share in (rest, *shares):
            try:
                await self._apply_share(share)
            except Exception as error:
                if share.call is not None:
                    share.call.fail_with(error)
                continue
            if share.call is not None:
                self._send(share.call, self._job, None, share.names, None)

    async def _apply_share(self, share: Share) -> None:
        async with share.lock:
            means, share.means = share.means, {}
            if means:
                await self._apply(means)
                self._job.updates += 1
                self._metrics.updates[self._job.label] += 1
