"""One shard: the blocks of every job that live here, and what workers do to them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from protocol.buffers import BufferPool
from protocol.connection import Array
from protocol.errors import BadRequest, BadTensor, NotAMember, SpecMismatch, UnknownJob, UnknownTensor
from protocol.frames import MAX_HEADER
from protocol.messages import (
    Empty,
    Epoch,
    Init,
    Member,
    Pull,
    Pulled,
    Pushed,
    PushPull,
    Step,
)
from protocol.status import Wait
from protocol.tensors import DTYPES, Part
from psserver.call import Call
from psserver.consistency import StepBarrier
from psserver.metrics import ServerMetrics
from psserver.store.arithmetic import INLINE, THREADS
from psserver.store.dense import DenseBlock, check_spec

__all__ = ["JobStore", "Session", "Shard", "Spawn"]

_RETAIN: Final = 2 * 1024**3
"""Idle bytes kept for the gradients to come: one frame of the default limit, twice."""

_LABELLED_JOBS: Final = 100
"""Jobs with a metric label of their own: no label takes an unbounded number of values."""

_PART_OVERHEAD: Final = 32
"""Bytes of a tensor in a reply's header beside its name and dtype, and of all else there: at most so many."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]


@dataclass(slots=True)
class Session:
    """What a connection has said about itself, and what it saw last."""

    job: str | None = None
    worker: int | None = None
    incarnation: int | None = None
    seen: int = 0


@dataclass(slots=True)
class JobStore:
    """One job's namespace on this shard."""

    name: str
    label: str  # the name in metrics, or "other"
    barrier: StepBarrier | None  # None: asynchronous
    epoch: int = 0
    members: dict[int, Member] = field(default_factory=dict)
    blocks: dict[str, DenseBlock] = field(default_factory=dict)
    updates: int = 0
    waiting: list[tuple[Call, Sequence[str], float]] = field(default_factory=list)
    committing: bool = False

    def block(self, name: str) -> DenseBlock:
        """Return this shard's block of a tensor, or raise ``UnknownTensor``."""
        try:
            return self.blocks[name]
        except KeyError:
            raise UnknownTensor(
                "this shard has no block of a tensor of that name; create it first", field="name", value=name
            ) from None

    @property
    def nbytes(self) -> int:
        """Bytes of parameters."""
        return sum(block.values.nbytes for block in tuple(self.blocks.values()))


def _expect_overflow() -> None:
    """Have NumPy not warn of NaN and infinity in this thread: they are looked for, and refused."""
    np.seterr(over="ignore", invalid="ignore")


class Shard:
    """The jobs' blocks on this server.

    Args:
        metrics: where updates, waits and staleness are counted.
        spawn: runs a coroutine in a task that somebody awaits.
        clock: seconds, monotonic.
    """

    def __init__(
        self, metrics: ServerMetrics, spawn: Spawn, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.jobs: dict[str, JobStore] = {}
        self._metrics = metrics
        self._spawn = spawn
        self._clock = clock
        self._pool = BufferPool(_RETAIN)
        _expect_overflow()
        self._threads = ThreadPoolExecutor(THREADS, "update", _expect_overflow)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    # --- membership

    def follow(self, epoch: Epoch) -> None:
        """Take a job's new epoch; an older one than known is ignored."""
        job = self.jobs.get(epoch.job)
        if job is None:
            barrier = StepBarrier() if epoch.staleness == 0 else None
            label = epoch.job if len(self.jobs) < _LABELLED_JOBS else "other"
            job = self.jobs[epoch.job] = JobStore(epoch.job, label, barrier)
        if epoch.number <= job.epoch:
            return
        job.epoch = epoch.number
        job.members = {member.worker: member for member in epoch.members}
        if job.barrier is not None:
            job.barrier.set_members(epoch.members, epoch.lost)
            self._settle_step(job, job.barrier)

    # --- before the payload

    def arrays_for_init(self, session: Session, request: Init) -> Sequence[Array]:
        """Return where the initial values go."""
        job = self._job(session)
        self._check_worker(job, session)
        check_spec(request.spec, averaged=job.barrier is not None)
        if len(request.tensors) != 1:
            raise BadTensor("one block is filled at a time", field="tensors", value=len(request.tensors))
        (part,) = request.tensors
        if part.name != request.name or part.dtype != request.spec.dtype:
            raise BadTensor("the block's name and dtype are the spec's", field="tensors", value=part)
        if not 0 < part.elements <= math.prod(request.spec.shape):
            raise BadTensor(
                f"a block of shape {request.spec.shape} has at least one element and no more than it",
                field=request.name,
                value=part.elements,
            )
        return self._allocate(request.tensors)

    def arrays_for_push(self, session: Session, request: Step) -> Sequence[Array]:
        """Return where the gradients go; refuse what does not fit before anything is allocated."""
        job = self._job(session)
        self._check_worker(job, session)
        if job.barrier is not None:
            job.barrier.check(session.worker or 0, request.step)
        seen = set()
        for part in request.tensors:
            block = job.block(part.name)
            if DTYPES[part.dtype] != block.values.dtype or part.elements != block.values.size:
                raise BadTensor(
                    f"the block here has {block.values.size} elements of {block.values.dtype}",
                    field=part.name,
                    value=f"{part.elements} of {part.dtype}",
                )
            if part.name in seen:
                raise BadTensor("a tensor is pushed once in a request", field="tensors", value=part.name)
            seen.add(part.name)
        if type(request) is PushPull:
            _check_names(job, request.names)
        return self._allocate(request.tensors)

    # --- requests

    def init(self, call: Call, session: Session, request: Init, arrays: Sequence[Array]) -> None:
        """Fill a block, unless a later attempt at creating the tensor has done so."""
        job = self._job(session)
        block = job.blocks.get(request.name)
        if block is not None and block.spec != request.spec:
            raise SpecMismatch("the block exists with another spec", field="name", value=request.name)
        if block is not None and block.version and block.attempt < request.attempt:
            raise BadRequest("the tensor is in use already", field="attempt", value=request.attempt)
        if block is None or block.attempt < request.attempt:
            fresh = DenseBlock(request.name, request.spec, arrays[0], request.attempt)
            self._spawn(call.answer_with(self._fill(call, job, fresh)))
        else:
            call.reply(Empty())

    async def _fill(self, call: Call, job: JobStore, block: DenseBlock) -> None:
        await block.check(block.values, self._threads)
        current = job.blocks.get(block.name)
        if current is None or current.attempt < block.attempt:  # no later attempt was faster
            job.blocks[block.name] = block
        call.reply(Empty())

    def pull(self, call: Call, session: Session, request: Pull) -> None:
        """Send blocks."""
        job = self._job(session)
        _check_names(job, request.names)
        self._send(call, job, session, request.names)

    def push(self, call: Call, session: Session, request: Step, arrays: Sequence[Array]) -> None:
        """Apply gradients, or count them into the open step."""
        job = self._job(session)
        # The payload took its time: the worker may be out by now, or the step over.
        self._check_worker(job, session)
        if job.barrier is not None:
            job.barrier.check(session.worker or 0, request.step)
            self._spawn(call.answer_with(self._contribute(call, job, job.barrier, session, request, arrays)))
            return
        blocks = [job.block(part.name) for part in request.tensors]
        if sum(array.nbytes for array in arrays) > INLINE or any(b.lock.locked() for b in blocks):
            self._spawn(call.answer_with(self._apply_later(call, job, session, request, blocks, arrays)))
            return
        fresh = [block.next_version(array) for block, array in zip(blocks, arrays, strict=True)]
        self._applied(call, job, session, request, blocks, fresh)

    async def _apply_later(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        request: Step,
        blocks: Sequence[DenseBlock],
        arrays: Sequence[Array],
    ) -> None:
        async with AsyncExitStack() as locks:
            for block in sorted(blocks, key=lambda block: block.name):
                await locks.enter_async_context(block.lock)
            fresh = [
                await block.next_version_in_threads(array, self._threads)
                for block, array in zip(blocks, arrays, strict=True)
            ]
            self._applied(call, job, session, request, blocks, fresh)

    def _applied(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        request: Step,
        blocks: Sequence[DenseBlock],
        fresh: Sequence[Array],
    ) -> None:
        """Swap in what was computed, all of it or, had one failed, nothing."""
        for block, values in zip(blocks, fresh, strict=True):
            block.swap(values)
        self._metrics.staleness.observe(float(job.updates - session.seen))
        job.updates += 1
        session.seen += 1  # its own update is none that it has not seen
        self._metrics.updates[job.label] += 1
        if type(request) is PushPull:
            self._send(call, job, session, request.names)
        else:
            call.reply(Pushed(job.updates))

    # --- synchronous steps

    async def _contribute(
        self,
        call: Call,
        job: JobStore,
        barrier: StepBarrier,
        session: Session,
        request: Step,
        arrays: Sequence[Array],
    ) -> None:
        blocks = [job.block(part.name) for part in request.tensors]
        for block, array in zip(blocks, arrays, strict=True):
            await block.check(array, self._threads)
        ends = type(request) is PushPull
        now = self._clock()
        barrier.begin(session.worker or 0, request.step, ends=ends, now=now)
        try:
            for block, array in zip(blocks, arrays, strict=True):
                async with block.lock:
                    await block.contribute(array, request.weight, self._threads)
        finally:
            barrier.added()
        if type(request) is PushPull:
            job.waiting.append((call, request.names, now))
        else:
            call.reply(Pushed(job.updates))
        self._settle_step(job, barrier)

    def _settle_step(self, job: JobStore, barrier: StepBarrier) -> None:
        """Release the waiting workers if the open step is complete, or will never be."""
        if barrier.failed:
            waiting, job.waiting = job.waiting, []
            for call, _, _ in waiting:
                call.fail(barrier.failure())
        elif barrier.complete and not job.committing:
            job.committing = True
            self._spawn(self._commit(job, barrier))  # no gradient comes before the workers are answered

    async def _commit(self, job: JobStore, barrier: StepBarrier) -> None:
        """Apply the open step's means, all of them or none, and answer who waits for it."""
        waiting, job.waiting = job.waiting, []
        blocks = tuple(job.blocks.values())  # others may be made meanwhile
        try:
            fresh = [(block, await block.after_step(self._threads)) for block in blocks]
        except Exception as error:
            for block in blocks:
                block.drop_step()
            barrier.reopen()
            for call, _, _ in waiting:
                call.fail_with(error)
            return
        finally:
            job.committing = False
        for block, values in fresh:
            if values is not None:
                block.swap(values)
        barrier.advance()
        job.updates += 1
        self._metrics.updates[job.label] += 1
        now = self._clock()
        for call, names, since in waiting:
            self._metrics.barrier_wait.observe(now - since)
            try:
                self._send(call, job, None, names)
            except Exception as error:
                call.fail_with(error)  # the others are answered all the same

    def wait(self, name: str) -> Wait | None:
        """Return for whom a synchronous job waits, if for anybody."""
        barrier = self.jobs[name].barrier if name in self.jobs else None
        if barrier is None or barrier.since is None:
            return None
        return Wait(barrier.clock, barrier.waiting_for(), self._clock() - barrier.since)

    # --- pieces of the above

    def _job(self, session: Session) -> JobStore:
        job = self.jobs.get(session.job or "")
        if job is None:
            raise UnknownJob("join or attach to a job first", field="job", value=session.job)
        return job

    def _check_worker(self, job: JobStore, session: Session) -> None:
        member = job.members.get(-1 if session.worker is None else session.worker)
        if member is None or member.incarnation != session.incarnation:
            reason = (
                "this connection only observes; join the job to push"
                if session.worker is None
                else "the worker has left, or was replaced by a later one of its name"
            )
            raise NotAMember(reason, field="worker", value=session.worker)

    def _allocate(self, parts: Sequence[Part]) -> Sequence[Array]:
        return [self._pool.empty(part.elements, DTYPES[part.dtype]) for part in parts]

    def _send(self, call: Call, job: JobStore, session: Session | None, names: Sequence[str]) -> None:
        blocks = [job.block(name) for name in names]
        parts = tuple([Part(b.name, b.spec.dtype, b.values.size) for b in blocks])
        if session is not None:
            session.seen = job.updates
        call.reply(Pulled(job.updates, parts), [block.values for block in blocks])


def _check_names(job: JobStore, names: Sequence[str]) -> None:
    """Refuse names that cannot be sent back, before anything is done for them."""
    header = 0
    for name in names:
        block = job.block(name)
        header += len(name.encode()) + len(block.spec.dtype) + _PART_OVERHEAD
    if header > MAX_HEADER - _PART_OVERHEAD:
        raise BadRequest("name fewer tensors in one request", field="names", value=f"{len(names)} names")
    if len(names) > 1 and len(set(names)) != len(names):
        raise BadRequest("a tensor is named once in a request", field="names", value=names)
