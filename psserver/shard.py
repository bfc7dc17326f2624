"""One shard: the blocks of every job that live here, and what workers do to them."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from protocol.buffers import BufferPool
from protocol.connection import Array
from protocol.errors import BadRequest, BadTensor, PSError, ShuttingDown, SpecMismatch, UnknownJob
from protocol.frames import MAX_HEADER
from protocol.messages import (
    Decide,
    Empty,
    Ended,
    Epoch,
    Init,
    LoadedJob,
    Marker,
    Pull,
    Pulled,
    Pushed,
    PushPull,
    Step,
)
from protocol.sequences import fingerprint_of_push
from protocol.status import Wait
from protocol.tensors import DTYPES, Part
from psserver.call import Call
from psserver.cut import ShardCut
from psserver.durability.checkpoint import SavedArray
from psserver.durability.log import Batch
from psserver.jobs import JobStore, Reader, Session, fenced
from psserver.journal import Journal, Taken
from psserver.metrics import ServerMetrics
from psserver.sequences import Outcome
from psserver.shard_state import Snapshot, install, load, replay, snapshot
from psserver.steps import Steps, follow
from psserver.store.arithmetic import INLINE, THREADS
from psserver.store.dense import DenseBlock, check_spec

__all__ = ["NAMED", "Report", "Shard", "Spawn"]

_RETAIN: Final = 2 * 1024**3
"""Idle bytes kept for the gradients to come: one frame of the default limit, twice."""

_LABELLED_JOBS: Final = 100
"""Jobs with a metric label of their own: no label takes an unbounded number of values."""

_PART_OVERHEAD: Final = 32
"""Bytes of a tensor in a reply's header beside its name and dtype, and of all else there: at most so many."""

NAMED: Final = 16
"""Workers that a wait names at most."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]
Report = Callable[[Ended], None]
"""Tells the coordinator who has ended a synchronous step here."""


def _expect_overflow() -> None:
    """Have NumPy not warn of NaN and infinity in this thread: they are looked for, and refused."""
    np.seterr(over="ignore", invalid="ignore")


class Shard:
    """The jobs' blocks on this server.

    Args:
        metrics: where updates, waits and staleness are counted.
        spawn: runs a coroutine in a task that somebody awaits.
        report: tells the coordinator who has ended a step.
        clock: seconds, monotonic.

    Attributes:
        jobs: by name.
        number: this shard's, for the status.
        journal: what has to be durable before it is acknowledged goes there.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        spawn: Spawn,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs: dict[str, JobStore] = {}
        self.number = 0
        self.journal = Journal()
        self._steps: dict[str, Steps] = {}
        self._cut = ShardCut(self.jobs, self._steps)
        self._metrics = metrics
        self._spawn = spawn
        self._report = report
        self._clock = clock
        self._pool = BufferPool(_RETAIN)
        _expect_overflow()
        self._threads = ThreadPoolExecutor(THREADS, "update", _expect_overflow)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    # --- what the coordinator says

    def follow(self, epoch: Epoch) -> None:
        """Take a job's new epoch; an older one than known is ignored."""
        job = self.jobs.get(epoch.job) or self._new_job(epoch.job)
        steps = self._steps[job.name]
        if epoch.number <= job.epoch:
            self._report_ended(job, steps, also_none=True)  # our report may have been lost with a link
            return
        self.journal.epoch(epoch)
        if follow(job, steps, epoch):
            self._flush(job, steps)
        self._release(job)
        if job.holding is not None:
            job.holding.awaited &= job.clocks.members.keys()
            self._cut.check()
        self._report_ended(job, steps, also_none=True)  # who is out may have been the only one

    def _new_job(self, name: str) -> JobStore:
        label = name if len(self.jobs) < _LABELLED_JOBS else "other"
        job = self.jobs[name] = JobStore(name, label)
        self._steps[name] = Steps(job, self.journal, self._metrics, self._threads, self._send, self._clock)
        return job

    def _flush(self, job: JobStore, steps: Steps) -> None:
        self._spawn(self._flushed(job, self._under_way(job, steps.flush())))

    async def _flushed(self, job: JobStore, flush: Awaitable[None]) -> None:
        await flush
        self._release(job)

    def decide(self, decision: Decide) -> None:
        """Take a decision about a synchronous step."""
        job = self.jobs.get(decision.job)
        if job is None:
            return  # no epoch of it was announced, so nothing of it is here
        steps = self._steps[job.name]
        if steps.decide(decision):
            self._spawn(self._settle(job, steps))

    async def _settle(self, job: JobStore, steps: Steps) -> None:
        await self._under_way(job, steps.settle())
        self._release(job)
        self._report_ended(job, steps)

    def report_all(self) -> None:
        """Tell the coordinator, who may have missed it, who has ended the open steps."""
        for name, job in self.jobs.items():
            self._report_ended(job, self._steps[name], also_none=True)

    def _report_ended(self, job: JobStore, steps: Steps, *, also_none: bool = False) -> None:
        if job.clocks.staleness == 0:
            ended = steps.ended()
            if ended.workers or also_none:
                self._report(ended)

    # --- checkpoints

    def hold(self, checkpoint: int) -> None:
        """Prepare for a cut; see ``psserver.cut``.

        Raises:
            ShuttingDown: the last one was taken.
        """
        if self.is_frozen:
            raise ShuttingDown("the shard is stopping")
        self._cut.hold(checkpoint)

    def release(self) -> None:
        """Give the cut up that is being prepared, if any; the last one is not."""
        if not self.is_frozen:
            self._cut.release()

    def marker(self, call: Call, session: Session, request: Marker) -> None:
        """Take a worker's marker, which is numbered among its pushes."""
        job = self._job(session)
        worker = job.worker(session)
        numbered = job.sequences[worker]
        fingerprint = request.checkpoint & 0xFFFFFFFF
        if numbered.is_new(request.seq):
            numbered.admit(request.seq, fingerprint, call)
            call.admitted(numbered, request.seq, fingerprint)
            self._cut.mark(request.checkpoint, job, worker)
            call.reply(Empty())
            return
        answer, outcome = numbered.retry(request.seq, fingerprint, call)
        if isinstance(outcome, PSError):
            call.fail(outcome)
        elif answer:
            call.reply(Empty())

    def cut(self, checkpoint: int, taken: Callable[[Snapshot], None], *, stays: bool = False) -> bool:
        """Take the cut as soon as all is quiet.

        Args:
            checkpoint: its number, which ``hold`` was told.
            taken: called with what the shard is at that moment.
            stays: nothing is gone on with after it: the server stops.

        Returns:
            Whether this checkpoint is being prepared.
        """
        self._cut.stays = stays
        return self._cut.cut(checkpoint, lambda: taken(self._snapshot()))

    def freeze(self, taken: Callable[[Snapshot], None]) -> None:
        """Have ``taken`` called with what the shard is when all is quiet; after that nothing is done."""
        self._cut.freeze(lambda: taken(self._snapshot()))

    @property
    def is_frozen(self) -> bool:
        """Whether its last state was taken: nothing may be done any more."""
        return self._cut.is_last

    def snapshot(self) -> Snapshot:
        """Return what the shard is now; it need not be quiet, nor the state one to go on from."""
        return self._snapshot()

    def _snapshot(self) -> Snapshot:
        return replace(snapshot(self.jobs, self._steps, self.journal), updates=self.updates)

    @property
    def log_problem(self) -> str:
        """Why updates cannot be made durable now; "" if they can."""
        problem = self.journal.problem
        return "" if problem is None else problem.message

    @property
    def updates(self) -> int:
        """Updates applied here, of all jobs; another number says that something has changed."""
        return sum(job.updates + len(job.blocks) for job in self.jobs.values())

    def replace(self, jobs: Sequence[LoadedJob], arrays: Mapping[tuple[str, str, str], Array]) -> None:
        """Forget all jobs, and take these, on which nobody works yet. Who waits is not answered any more."""
        self._cut.release()
        for job in self.jobs.values():
            job.gone = True
            job.clocks.members.clear()  # what is still under way is refused
        self.jobs.clear()
        self._steps.clear()
        load(jobs, arrays, self._made)

    def install(self, state: Mapping[str, Any], arrays: Sequence[SavedArray]) -> None:
        """Take the jobs of a checkpoint as they were, with who worked on them.

        Raises:
            BadRequest: the state is not whole.
        """
        install(state, arrays, self._made)

    def replay(self, batch: Batch) -> None:
        """Do what one batch of a log says.

        Raises:
            BadRequest: it says what no shard writes.
        """
        replay(batch, self.jobs, self._steps, self._made)

    def _made(self, name: str) -> tuple[JobStore, Steps]:
        job = self._new_job(name)
        return job, self._steps[name]

    def open_step(self, job: str) -> tuple[int, set[int]]:
        """Return the open step of a synchronous job, and the workers that are in it for good."""
        steps = self._steps[job]
        return steps.clock, steps.included()

    def take_up(self) -> None:
        """Go on after a restart: do what was decided before it, and not done."""
        for name, steps in self._steps.items():
            for numbered in self.jobs[name].sequences.values():
                numbered.resume()
            if steps.has_to_flush:
                self._flush(self.jobs[name], steps)

    # --- before the payload

    def arrays_for_init(self, session: Session, request: Init) -> Sequence[Array]:
        """Return where the initial values go."""
        job = self._job(session)
        job.worker(session)
        check_spec(request.spec, averaged=job.clocks.staleness == 0)
        if len(request.tensors) != 1:
            raise BadTensor("one block is filled at a time", field="tensors", value=len(request.tensors))
        (part,) = request.tensors
        if part.name != request.name or part.dtype != request.spec.dtype:
            raise BadTensor("the block's name and dtype are the spec's", field="tensors", value=part)
        if not 0 < part.elements <= math.prod(request.spec.shape) - request.start:
            raise BadTensor(
                f"a block of shape {request.spec.shape} has at least one element, and ends where it does",
                field=request.name,
                value=f"{part.elements} from {request.start}",
            )
        return self._allocate(request.tensors)

    def arrays_for_push(self, session: Session, request: Step) -> Sequence[Array]:
        """Return where the gradients go; refuse what does not fit before anything is allocated."""
        job = self._job(session)
        worker = job.worker(session)
        numbered = job.sequences[worker]
        new = numbered.is_new(request.seq)
        refused = None if new else numbered.refused(request.seq)
        if refused is not None:
            raise refused
        try:
            if self.journal.problem is not None and new:
                raise self.journal.problem
            self._check_push(job, request)
            if new and self._in_steps(job, request):
                self._steps[job.name].check(worker, request.step, request.seq)
        except PSError as error:
            if new:
                numbered.refuse(request.seq, error)
            raise
        return self._allocate(request.tensors)

    def _check_push(self, job: JobStore, request: Step) -> None:
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
        if not request.weight and request.tensors:
            raise BadRequest("weight 0 is for a step with nothing in it", field="weight", value=0)

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
            fresh = DenseBlock(request.name, request.spec, arrays[0], request.attempt, request.start)
            self._spawn(call.answer_with(self._fill(call, job, fresh)))
        else:
            call.reply(Empty())

    async def _fill(self, call: Call, job: JobStore, block: DenseBlock) -> None:
        await block.check(block.values, self._threads)
        current = job.blocks.get(block.name)
        if current is None or current.attempt < block.attempt:  # no later attempt was faster
            job.blocks[block.name] = block
            self.journal.filled(job, block, lambda: call.reply(Empty()))
        else:
            call.reply(Empty())

    def pull(self, call: Call, session: Session, request: Pull) -> None:
        """Send blocks; to a worker when it may read in its step."""
        job = self._job(session)
        _check_names(job, request.names)
        member = job.clocks.members.get(-1 if session.worker is None else session.worker)
        if member is None or member.incarnation != session.incarnation:
            self._send(call, job, session, request.names, None)
        else:
            self._send_when_readable(call, job, session, member.worker, request.names)

    def push(self, call: Call, session: Session, request: Step, arrays: Sequence[Array]) -> None:
        """Apply gradients, or count them into a step; a retry is only answered."""
        job = self._job(session)
        worker = job.worker(session)  # the payload took its time: it may be out by now
        numbered = job.sequences[worker]
        fingerprint = fingerprint_of_push(request, arrays)
        if not numbered.is_new(request.seq):
            answer, outcome = numbered.retry(request.seq, fingerprint, call)
            self._metrics.duplicates += 1
            if answer:
                self.journal.when_durable(partial(self._answer_again, call, job, session, request, outcome))
            return
        numbered.admit(request.seq, fingerprint, call)
        call.admitted(numbered, request.seq, fingerprint)
        taken = Taken(worker, session.incarnation or 0, request.seq, fingerprint)
        if job.holding is not None and worker not in job.holding.awaited:
            job.holding.held.append(partial(self._take_held, call, job, session, taken, request, arrays))
        else:
            self._take(call, job, session, taken, request, arrays)

    def _take_held(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        request: Step,
        arrays: Sequence[Array],
    ) -> None:
        try:
            job.worker(session)  # it may be out by now
            self._take(call, job, session, taken, request, arrays)
        except Exception as error:
            call.fail_with(error)

    def _take(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        request: Step,
        arrays: Sequence[Array],
    ) -> None:
        if self._in_steps(job, request):
            work = self._contribute(call, job, session, taken, request, arrays)
            self._spawn(call.answer_with(self._under_way(job, work)))
            return
        blocks = [job.block(part.name) for part in request.tensors]
        if sum(array.nbytes for array in arrays) > INLINE or any(b.lock.locked() for b in blocks):
            later = self._apply_later(call, job, session, taken, request, blocks, arrays)
            self._spawn(call.answer_with(self._under_way(job, later)))
            return
        fresh = [block.next_version(array) for block, array in zip(blocks, arrays, strict=True)]
        self._applied(call, job, session, taken, request, blocks, fresh)

    def _under_way(self, job: JobStore, work: Awaitable[None]) -> Coroutine[Any, Any, None]:
        """Return what runs ``work``; a cut waits for it from now on, not only when it has begun."""
        job.applying += 1
        return self._until_done(job, work)

    async def _until_done(self, job: JobStore, work: Awaitable[None]) -> None:
        try:
            await work
        finally:
            job.applying -= 1
            if job.holding is not None:
                self._cut.check()

    @staticmethod
    def _in_steps(job: JobStore, request: Step) -> bool:
        """Return whether a push waits for its step's end, rather than being applied at once."""
        return job.clocks.in_lockstep(request.step)

    def _answer_again(
        self, call: Call, job: JobStore, session: Session, request: Step, outcome: Outcome
    ) -> None:
        try:
            worker = job.worker(session)  # it may be out by now
            if isinstance(outcome, PSError):
                call.fail(outcome)
            elif isinstance(outcome, Pulled) and type(request) is PushPull:  # late, or of nothing
                self._send(call, job, session, request.names, outcome.clock)
            elif outcome is not None:
                call.reply(outcome)
            elif type(request) is PushPull:  # a restart may have come while it waited for others
                self._send_when_readable(call, job, session, worker, request.names)
            else:  # a restart came between its effect and its answer
                call.reply(Pushed(job.updates))
        except Exception as error:
            call.fail_with(error)

    async def _contribute(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        request: Step,
        arrays: Sequence[Array],
    ) -> None:
        steps = self._steps[job.name]
        await steps.contribute(call, session, taken, request, arrays)
        self._report_ended(job, steps)

    async def _apply_later(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
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
            job.worker(session)  # nothing of a worker is applied once it is out
            self._applied(call, job, session, taken, request, blocks, fresh)

    def _applied(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        request: Step,
        blocks: Sequence[DenseBlock],
        fresh: Sequence[Array],
    ) -> None:
        """Swap in what was computed, all of it or, had one failed, nothing; acknowledge it when durable."""
        for block, values in zip(blocks, fresh, strict=True):
            block.swap(values)
        self._metrics.updates_missed.observe(float(job.updates - session.seen))
        job.updates += 1
        session.seen += 1  # its own update is none that it has not seen
        self._metrics.updates[job.label] += 1
        job.sequences[taken.worker].applied(taken.seq)
        if request.done is not None:
            job.cursors[taken.worker, taken.incarnation] = request.done
        if type(request) is PushPull:
            job.clocks.ended(taken.worker, request.step)
            self._metrics.staleness.observe(float(job.clocks.lead(taken.worker)))
        if self.journal.log is None:
            self._acknowledge(call, job, session, request)
        else:
            then = partial(self._acknowledge_logged, call, job, session, request)
            self.journal.push(job, taken, request, blocks, then)
        if job.readers and type(request) is PushPull:
            self._release(job)

    def _acknowledge_logged(self, call: Call, job: JobStore, session: Session, request: Step) -> None:
        try:
            job.worker(session)  # it may be out by now
            self._acknowledge(call, job, session, request)
        except Exception as error:
            call.fail_with(error)

    def _acknowledge(self, call: Call, job: JobStore, session: Session, request: Step) -> None:
        if type(request) is not PushPull:
            call.reply(Pushed(job.updates))
        elif request.step < job.clocks.since:  # under another staleness: nobody is held to it
            self._send(call, job, session, request.names, None)
        else:
            self._send_when_readable(call, job, session, session.worker or 0, request.names)

    # --- who has to wait for others

    def _may_read(self, job: JobStore, worker: int) -> bool:
        if job.clocks.staleness == 0:
            return job.clocks.clock(worker) <= self._steps[job.name].clock
        return job.clocks.may_read(worker)

    def _send_when_readable(
        self, call: Call, job: JobStore, session: Session, worker: int, names: Sequence[str]
    ) -> None:
        if self._may_read(job, worker):
            self._send(call, job, session, names, None)
        else:
            job.readers.append(Reader(call, session, worker, names, self._clock()))

    def _release(self, job: JobStore) -> None:
        """Answer those who need not wait any longer."""
        readers, job.readers = job.readers, []
        now = self._clock()
        for reader in readers:
            member = job.clocks.members.get(reader.worker)
            if member is None or member.incarnation != reader.session.incarnation:
                reader.call.fail(fenced(reader.worker))
            elif not self._may_read(job, reader.worker):
                job.readers.append(reader)
            else:
                self._metrics.barrier_wait.observe(now - reader.since)
                job.longest_wait = max(job.longest_wait, now - reader.since)
                try:
                    self._send(reader.call, job, reader.session, reader.names, None)
                except Exception as error:
                    reader.call.fail_with(error)  # the others are answered all the same

    def waits(self) -> list[Wait]:
        """Return who keeps whom waiting here because of bounded staleness."""
        return [self._wait(job) for job in self.jobs.values() if job.readers and job.clocks.staleness]

    def _wait(self, job: JobStore) -> Wait:
        clocks = job.clocks
        furthest = max(clocks.clock(reader.worker) for reader in job.readers)
        names = clocks.behind(furthest)
        since = min(reader.since for reader in job.readers)
        what = f"step {clocks.slowest}"
        return Wait(job.name, self.number, what, len(job.readers), names[:NAMED], self._clock() - since)

    # --- pieces of the above

    def _job(self, session: Session) -> JobStore:
        job = self.jobs.get(session.job or "")
        if job is None:
            if session.worker is not None:
                raise fenced(session.worker)  # the job went with a timeline that is over
            raise UnknownJob("join or attach to a job first", field="job", value=session.job)
        return job

    def _allocate(self, parts: Sequence[Part]) -> Sequence[Array]:
        return [self._pool.empty(part.elements, DTYPES[part.dtype]) for part in parts]

    def _send(
        self, call: Call, job: JobStore, session: Session | None, names: Sequence[str], clock: int | None
    ) -> None:
        blocks = [job.block(name) for name in names]
        parts = tuple([Part(b.name, b.spec.dtype, b.values.size) for b in blocks])
        if session is not None:
            session.seen = job.updates
        call.reply(Pulled(job.updates, parts, clock), [block.values for block in blocks])


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
