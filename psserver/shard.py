"""One shard: the blocks of every job that live here, and what workers do to them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final
from weakref import WeakSet

import numpy as np

from protocol.buffers import BufferPool
from protocol.compression.keys import parts_of_wanted, values_part
from protocol.connection import Array
from protocol.errors import (
    BadRequest,
    BadTensor,
    FrameTooLarge,
    PSError,
    ShuttingDown,
    SpecMismatch,
    UnknownJob,
)
from protocol.frames import MAX_HEADER
from protocol.messages import (
    Decide,
    Empty,
    Ended,
    Epoch,
    Init,
    KeptJobs,
    LoadedJob,
    Marker,
    Pull,
    Pulled,
    Pushed,
    PushPull,
    Reset,
    Step,
)
from protocol.sequences import fingerprint_of_push, fingerprint_of_reset
from protocol.status import Load, Wait
from protocol.tables import HASH_SLOTS
from protocol.tensors import DTYPES, Part
from psserver.answers import Answers
from psserver.arriving import Arrived, Asked, Block, arrived, asked_in, check_parts
from psserver.backups import Backups
from psserver.call import Call, Spawn
from psserver.cut import ShardCut
from psserver.durability.checkpoint import SavedArray
from psserver.durability.log import Batch
from psserver.incarnations import fenced, is_of_dropped, job_dropped
from psserver.jobs import JobStore, Reader, Session
from psserver.journal import Changes, Journal, Taken
from psserver.load_meter import LoadMeter
from psserver.metrics import ServerMetrics
from psserver.optimizers import Moment
from psserver.resetting import begin_anew, check_reset
from psserver.sequences import Outcome
from psserver.shard_state import Snapshot, install, load, replay, snapshot
from psserver.steps import Steps, follow
from psserver.store.arithmetic import INLINE, THREADS
from psserver.store.dense import DenseBlock
from psserver.store.kernels.compiled import use_compiled
from psserver.store.sparse import LONG, SparseBlock
from psserver.store.spec import check_spec
from psserver.store.swapping import swap_all

__all__ = ["NAMED", "Report", "Shard"]

_RETAIN: Final = 2 * 1024**3
"""Idle bytes kept for the gradients to come: one frame of the default limit, twice."""

_LABELLED_JOBS: Final = 100
"""Jobs with a metric label of their own: no label takes an unbounded number of values."""

_OTHER: Final = "other"

_FIT: Final = 64
"""Tensors that a reply's header has room for, whatever their names."""

_PART_OVERHEAD: Final = 32
"""Bytes of a tensor in a reply's header beside its name and dtype, and of all else there: at most so many."""

NAMED: Final = 16
"""Workers that a wait names at most."""

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
        longest: bytes of a reply's payload at most.
        timeline: of its state; 0: it has none yet.
        issued: no incarnation above it was of a job that was dropped, as far as this shard has heard.
        journal: what has to be durable before it is acknowledged goes there.
        latest_load: what ``load`` returned last.
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
        self.timeline = 1
        self.issued = 0
        self.longest = 1 << 30
        self.journal = Journal()
        self._steps: dict[str, Steps] = {}
        self._cut = ShardCut(self.jobs, self._steps)
        self._metrics = metrics
        self._spawn = spawn
        self._report = report
        self._clock = clock
        self._pool = BufferPool(_RETAIN)
        self._meter = LoadMeter(metrics.traffic)
        self.latest_load = Load()
        self._dropped = 0  # what ``updates`` counted of jobs that were dropped
        self._seen_tables: WeakSet[SparseBlock] = WeakSet()
        self._compiling = asyncio.Lock()
        _expect_overflow()
        self._threads = ThreadPoolExecutor(THREADS, "update", _expect_overflow)
        self._answers = Answers(self._pool, self._meter, spawn, clock, self._threads)

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
        label = name if len(self.jobs) < _LABELLED_JOBS else _OTHER
        job = self.jobs[name] = JobStore(name, label)
        self._steps[name] = Steps(
            job, self.journal, self._metrics, self._threads, self._answers.send, self._clock
        )
        return job

    def keep(self, kept: KeptJobs) -> tuple[list[str], int]:
        """Drop all jobs but these, as ``drop`` does; return which, and how many bytes that frees."""
        self.issued = max(self.issued, kept.issued)
        born = {job.name: job.born for job in kept.jobs}
        others = [name for name, job in self.jobs.items() if born.get(name) != job.born]
        return others, self.drop(others)

    def drop(self, names: Iterable[str]) -> int:
        """Forget jobs, of which the journal is not told; return how many bytes of memory that frees.

        Who waits is told that the job was dropped, and so is whoever still asks for something of it.
        """
        freed = 0
        for name in names:
            job, steps = self.jobs.pop(name), self._steps.pop(name)
            freed += job.nbytes
            self._dropped += _changes(job) + 1
            if job.label != _OTHER:
                self._metrics.forget(job.label)
                job.label = _OTHER  # what is still under way counts there
            job.drop()
            steps.drop_all(job_dropped(name))
        self._cut.check()  # it is not waited for any more
        return freed

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
        if job.clocks.staleness == 0 and not job.gone:
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
        return self._dropped + sum(map(_changes, self.jobs.values()))

    @property
    def is_untouched(self) -> bool:
        """Whether there are no jobs, and none was dropped since the server was started."""
        return not self.jobs and not self._dropped

    def replace(
        self,
        jobs: Sequence[LoadedJob],
        arrays: Mapping[tuple[str, str, str], Array],
        versions: Mapping[tuple[str, str], int],
    ) -> None:
        """Forget all jobs, and take these, on which nobody works yet. Who waits is not answered any more.

        See ``psserver.shard_state.load``.
        """
        self._cut.release()
        for job in self.jobs.values():
            job.gone = True
            job.clocks.members.clear()  # what is still under way is refused
        self.jobs.clear()
        self._steps.clear()
        load(jobs, arrays, versions, self._made)

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
            self.jobs[name].read.clear()  # nobody knows any more; not that they have read nothing
            for numbered in self.jobs[name].sequences.values():
                numbered.resume()
            if steps.has_to_flush:
                self._flush(self.jobs[name], steps)

    # --- before the payload

    def arrays_for_init(self, session: Session, request: Init) -> Sequence[Array]:
        """Return where the initial values go."""
        job = self._job(session)
        job.worker(session)
        check_spec(request.spec)
        if request.spec.table is not None:
            _check_table(request)
            return ()
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
            self._check_push(job, session, request)
            if new and self._in_steps(job, request):
                self._steps[job.name].check(worker, request.step, request.seq)
        except PSError as error:
            if new:
                numbered.refuse(request.seq, error)
            raise
        return self._allocate(request.tensors)

    def arrays_for_reset(self, session: Session, request: Reset) -> Sequence[Array]:
        """Return where the values go, as ``arrays_for_push`` does for gradients."""
        job = self._job(session)
        numbered = job.sequences[job.worker(session)]
        new = numbered.is_new(request.seq)
        refused = None if new else numbered.refused(request.seq)
        if refused is not None:
            raise refused
        try:
            if self.journal.problem is not None and new:
                raise self.journal.problem
            check_reset(job, request)
        except PSError as error:
            if new:
                numbered.refuse(request.seq, error)
            raise
        return self._allocate(request.tensors)

    def arrays_for_pull(self, session: Session, request: Pull) -> Sequence[Array]:
        """Return where the keys go."""
        job = self._job(session)
        check_parts(job, session.keys, request)
        self._check_asked(job, request)
        return self._allocate(request.tensors) if request.tensors else ()

    def _check_asked(self, job: JobStore, request: Pull | PushPull) -> None:
        """Refuse to be asked for what cannot be sent back, before anything is done for it."""
        if request.names:
            _check_names(job, request)
        if request.wanted:
            tables = [job.block(rows.name) for rows in request.wanted]
            dims = [table.dim if isinstance(table, SparseBlock) else 0 for table in tables]
            parts = [values_part(rows, dim) for rows, dim in zip(request.wanted, dims, strict=True)]
            if sum(part.nbytes for part in parts) > self.longest:
                raise FrameTooLarge(
                    f"the rows asked for have more than --max-frame {self.longest} bytes; ask for fewer",
                    field="wanted",
                    value=f"{sum(rows.keys for rows in request.wanted)} keys",
                )

    def _check_push(self, job: JobStore, session: Session, request: Step) -> None:
        check_parts(job, session.keys, request)
        if type(request) is PushPull:
            self._check_asked(job, request)
        if not request.weight and (request.rows or len(request.tensors) > len(_keys_parts(request))):
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
            self._spawn(call.answer_with(self._fill(call, job, _made(request, arrays))))
        else:
            call.reply(Empty())

    async def _fill(self, call: Call, job: JobStore, block: Block) -> None:
        if isinstance(block, DenseBlock):
            await block.check(block.values, self._threads)
        current = job.blocks.get(block.name)
        if current is None or current.attempt < block.attempt:  # no later attempt was faster
            job.blocks[block.name] = block
            self.journal.filled(job, block, lambda: call.reply(Empty()))
        else:
            call.reply(Empty())

    def pull(self, call: Call, session: Session, request: Pull, arrays: Sequence[Array]) -> None:
        """Send blocks and rows; to a worker when it may read in its step."""
        self._meter.requests += 1
        job = self._job(session)
        asked = asked_in(job, session.keys, request, arrays)
        member = job.clocks.members.get(-1 if session.worker is None else session.worker)
        if member is None or member.incarnation != session.incarnation:
            self._answers.send(call, job, session, asked, None)
        else:
            self._send_when_readable(call, job, session, member.worker, asked)

    def push(self, call: Call, session: Session, request: Step, arrays: Sequence[Array]) -> None:
        """Apply gradients, or count them into a step; a retry is only answered."""
        self._meter.requests += 1
        job = self._job(session)
        worker = job.worker(session)  # the payload took its time: it may be out by now
        numbered = job.sequences[worker]
        fingerprint = fingerprint_of_push(request, arrays)
        if not numbered.is_new(request.seq):
            answer, outcome = numbered.retry(request.seq, fingerprint, call)
            self._metrics.duplicates += 1
            all_of_it = arrived(job, session.keys, request, arrays)  # its keys are known here from now on
            if answer:
                again = partial(self._answer_again, call, job, session, all_of_it, outcome)
                self.journal.when_durable(again)
            return
        if request.rows:
            self._meter.keys += sum(rows.keys for rows in request.rows)
        numbered.admit(request.seq, fingerprint, call)
        call.admitted(numbered, request.seq, fingerprint)
        all_of_it = arrived(job, session.keys, request, arrays)
        taken = Taken(worker, session.incarnation or 0, request.seq, fingerprint)
        if job.holding is not None and worker not in job.holding.awaited:
            job.holding.held.append(partial(self._take_held, call, job, session, taken, all_of_it))
        else:
            self._take(call, job, session, taken, all_of_it)

    def _take_held(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        arrived: Arrived,
    ) -> None:
        try:
            job.worker(session)  # it may be out by now
            self._take(call, job, session, taken, arrived)
        except Exception as error:
            call.fail_with(error)

    def _take(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        arrived: Arrived,
    ) -> None:
        if self._in_steps(job, arrived.request):
            work = self._contribute(call, job, session, taken, arrived)
            self._spawn(call.answer_with(self._under_way(job, work)))
            return
        if job.applying or _takes_time(arrived):  # after what came before it
            later = self._apply_later(call, job, session, taken, arrived)
            self._spawn(call.answer_with(self._under_way(job, later)))
            return
        read = _read(job, session)
        moment = self._moment(job, read, arrived)
        changes: Changes = [
            (block, block.next_version(gradient, moment, read.of(block, gradient)))
            for block, gradient in arrived.gradients
        ]
        for block, version in changes:
            block.swap(version)
        self._applied(call, job, session, taken, arrived, changes, read)

    def _moment(self, job: JobStore, read: Backups, arrived: Arrived) -> Moment:
        staleness = float(job.updates - read.seen)
        return Moment(arrived.request.step, staleness, self._clock(), job.clocks.rate)

    def reset(self, call: Call, session: Session, request: Reset, arrays: Sequence[Array]) -> None:
        """Have tensors begin anew; a retry is only answered."""
        job = self._job(session)
        worker = job.worker(session)
        numbered = job.sequences[worker]
        fingerprint = fingerprint_of_reset(request, arrays)
        if not numbered.is_new(request.seq):
            answer, outcome = numbered.retry(request.seq, fingerprint, call)
            self._metrics.duplicates += 1
            if isinstance(outcome, PSError):
                call.fail(outcome)
            elif answer:
                self.journal.when_durable(lambda: call.reply(Empty()))
            return
        numbered.admit(request.seq, fingerprint, call)
        call.admitted(numbered, request.seq, fingerprint)
        taken = Taken(worker, session.incarnation or 0, request.seq, fingerprint)
        take = partial(self._take_reset, call, job, session, taken, request, arrays)
        if job.holding is not None and worker not in job.holding.awaited:
            job.holding.held.append(take)
        else:
            take()

    def _take_reset(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        request: Reset,
        arrays: Sequence[Array],
    ) -> None:
        work = self._reset(call, job, session, taken, request, arrays)
        self._spawn(call.answer_with(self._under_way(job, work)))

    async def _reset(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        request: Reset,
        arrays: Sequence[Array],
    ) -> None:
        begun = await begin_anew(job, session, request, arrays, self._threads)
        job.updates += 1  # which others have missed
        if job.is_live(taken.worker, taken.incarnation):
            job.sequences[taken.worker].applied(taken.seq, Empty())
        self.journal.reset(job, taken, begun.blocks, begun.tables, lambda: call.reply(Empty()))

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
        self, call: Call, job: JobStore, session: Session, arrived: Arrived, outcome: Outcome
    ) -> None:
        request = arrived.request
        try:
            worker = job.worker(session)  # it may be out by now
            if isinstance(outcome, PSError):
                call.fail(outcome)
            elif isinstance(outcome, Pulled) and type(request) is PushPull:  # late, or of nothing
                self._answers.send(call, job, session, arrived.asked, outcome.clock)
            elif outcome is not None:
                call.reply(outcome)
            elif type(request) is PushPull:  # a restart may have come while it waited for others
                self._send_when_readable(call, job, session, worker, arrived.asked)
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
        arrived: Arrived,
    ) -> None:
        job.worker(session)  # it may be out by now, and the job be dropped
        steps = self._steps[job.name]
        await steps.contribute(call, session, taken, arrived)
        self._report_ended(job, steps)

    async def _apply_later(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        arrived: Arrived,
    ) -> None:
        read = _read(job, session)
        backups = [read.of(block, gradient) for block, gradient in arrived.gradients]
        async with AsyncExitStack() as locks:
            for block, _ in sorted(arrived.gradients, key=lambda one: one[0].name):
                await locks.enter_async_context(block.lock)
            moment = self._moment(job, read, arrived)
            changes: Changes = [
                (block, await block.next_version_in_threads(gradient, moment, self._threads, backup))
                for (block, gradient), backup in zip(arrived.gradients, backups, strict=True)
            ]
            job.worker(session)  # nothing of a worker is applied once it is out
            await swap_all(changes, self._threads)
            self._applied(call, job, session, taken, arrived, changes, read)

    def _applied(
        self,
        call: Call,
        job: JobStore,
        session: Session,
        taken: Taken,
        arrived: Arrived,
        changes: Changes,
        read: Backups,
    ) -> None:
        """Take note of what was swapped in, all of a push or nothing; acknowledge it when it is durable.

        ``read`` is what the worker had read before.
        """
        request = arrived.request
        self._metrics.updates_missed.observe(float(job.updates - read.seen))
        job.updates += 1
        read.seen += 1  # its own update is none that it has not seen
        self._metrics.updates[job.label] += 1
        if request.done is not None:
            job.note_done(taken.worker, taken.incarnation, request.done)
        is_live = job.is_live(taken.worker, taken.incarnation)  # rows take their time to be swapped in
        if is_live:
            job.sequences[taken.worker].applied(taken.seq)
        if is_live and type(request) is PushPull:
            job.clocks.ended(taken.worker, request.step)
            self._metrics.staleness.observe(float(job.clocks.lead(taken.worker)))
        if self.journal.log is None and is_live:
            self._acknowledge(call, job, session, arrived)
        else:
            then = partial(self._acknowledge_later, call, job, session, arrived)
            self.journal.push(job, taken, request, changes, then)
        if job.readers and type(request) is PushPull:
            self._release(job)

    def _acknowledge_later(self, call: Call, job: JobStore, session: Session, arrived: Arrived) -> None:
        try:
            job.worker(session)  # it may be out by now
            self._acknowledge(call, job, session, arrived)
        except Exception as error:
            call.fail_with(error)

    def _acknowledge(self, call: Call, job: JobStore, session: Session, arrived: Arrived) -> None:
        if type(arrived.request) is not PushPull:
            call.reply(Pushed(job.updates))
        elif arrived.request.step < job.clocks.since:  # under another staleness: nobody is held to it
            self._answers.send(call, job, session, arrived.asked, None)
        else:
            self._send_when_readable(call, job, session, session.worker or 0, arrived.asked)

    # --- who has to wait for others

    def _may_read(self, job: JobStore, worker: int) -> bool:
        if job.clocks.staleness == 0:
            return job.clocks.clock(worker) <= self._steps[job.name].clock
        return job.clocks.may_read(worker)

    def _send_when_readable(
        self, call: Call, job: JobStore, session: Session, worker: int, asked: Asked
    ) -> None:
        if self._may_read(job, worker):
            self._answers.send(call, job, session, asked, None)
        else:
            job.readers.append(Reader(call, session, worker, asked, self._clock()))

    def _release(self, job: JobStore) -> None:
        """Answer those who need not wait any longer."""
        readers, job.readers = job.readers, []
        now = self._clock()
        for reader in readers:
            member = job.clocks.members.get(reader.worker)
            if member is None or member.incarnation != reader.session.incarnation:
                reader.call.fail(job.out(reader.worker))
            elif not self._may_read(job, reader.worker):
                job.readers.append(reader)
            else:
                self._metrics.barrier_wait.observe(now - reader.since)
                job.longest_wait = max(job.longest_wait, now - reader.since)
                try:
                    self._answers.send(reader.call, job, reader.session, reader.asked, None)
                except Exception as error:
                    reader.call.fail_with(error)  # the others are answered all the same

    def load(self) -> Load:
        """Return how much this shard has to do; to be called now and then."""
        jobs = self.jobs.values()
        rows = sum(table.rows for job in jobs for table in job.tables())
        self.latest_load = self._meter.read(sum(job.nbytes for job in jobs), rows, self._clock())
        return self.latest_load

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

    # --- kernels

    def use_compiled(self) -> None:
        """See to it that tables are computed by compiled kernels; to be called now and then."""
        for job in self.jobs.values():
            for table in job.tables():
                if table not in self._seen_tables:
                    self._seen_tables.add(table)
                    self._spawn(self._use_compiled(table))

    async def _use_compiled(self, table: SparseBlock) -> None:
        async with self._compiling:  # what one has had compiled is there for the next
            await use_compiled(table)

    # --- rows that nobody uses

    def drop_rows(self) -> None:
        """Begin to drop the rows that have expired, or are too many; to be called now and then."""
        for job in self.jobs.values():
            for table in job.tables():
                if table.drops_rows and not table.lock.locked() and not self.is_frozen:
                    self._spawn(self._under_way(job, self._drop_rows(job, table)))

    async def _drop_rows(self, job: JobStore, table: SparseBlock) -> None:
        loop = asyncio.get_running_loop()
        while job.holding is None and not job.gone:  # a cut does not wait for it
            async with table.lock:
                keys = await loop.run_in_executor(self._threads, table.expire, self._clock())
                self.journal.dropped(job, table, keys)
            self._metrics.rows_dropped[job.label] += keys.size
            if not keys.size:
                return

    # --- pieces of the above

    def _job(self, session: Session) -> JobStore:
        job = self.jobs.get(session.job or "")
        if job is None or (session.incarnation is not None and session.incarnation <= job.born):
            raise self._gone(session, None if job is None else job.born)
        return job

    def _gone(self, session: Session, born: int | None) -> PSError:
        """Return the error for whoever asks for something of a job that is not there any more."""
        if session.worker is None or session.incarnation is None:
            return UnknownJob("join or attach to a job first", field="job", value=session.job)
        if is_of_dropped(session.incarnation, self.timeline, self.issued, born):
            return job_dropped(session.job or "")
        return fenced(session.worker)  # the job went with a timeline that is over, or was lost

    def _allocate(self, parts: Sequence[Part]) -> Sequence[Array]:
        return [self._pool.empty(part.elements, DTYPES[part.dtype]) for part in parts]


def _changes(job: JobStore) -> int:
    return job.updates + len(job.blocks)


def _read(job: JobStore, session: Session) -> Backups:
    """Return what a worker has read; whoever has gone meanwhile has missed nothing."""
    return job.read_by(session) or Backups(job.updates)


def _keys_parts(request: Step) -> list[Part]:
    return parts_of_wanted(request.wanted) if isinstance(request, PushPull) else []


def _made(request: Init, arrays: Sequence[Array]) -> Block:
    """Return the block that is asked for."""
    if request.spec.table is not None:
        return SparseBlock(request.name, request.spec, request.attempt, request.start, request.stop)
    return DenseBlock(request.name, request.spec, arrays[0], request.attempt, request.start)


def _check_table(request: Init) -> None:
    if request.tensors:
        raise BadTensor("a table's block has no payload", field="tensors", value=len(request.tensors))
    if not 0 <= request.start < request.stop <= HASH_SLOTS:
        raise BadTensor(
            f"a table's block is a range of {HASH_SLOTS} slots",
            field=request.name,
            value=f"{request.start} to {request.stop}",
        )


def _takes_time(arrived: Arrived) -> bool:
    """Return whether a push has to wait for others, or to leave the event loop for threads."""
    dense, rows = 0, 0.0
    for block, gradient in arrived.gradients:
        if block.lock.locked():
            return True
        if isinstance(block, SparseBlock):
            rows += block.effort(gradient.keys.size)
        else:
            dense += gradient.nbytes * block.effort
    return dense > INLINE or rows > LONG


def _check_names(job: JobStore, request: Pull | PushPull) -> None:
    """Refuse names that cannot be sent back, before anything is done for them.

    Where only rows are wanted, the answer's header is shorter than the request's.
    """
    names = request.names
    blocks = [job.dense(name) for name in names]
    if len(blocks) + len(request.wanted) > _FIT and _header(blocks, request) > MAX_HEADER - _PART_OVERHEAD:
        raise BadRequest("name fewer tensors in one request", field="names", value=f"{len(names)} names")
    if len(names) > 1 and len(set(names)) != len(names):
        raise BadRequest("a tensor is named once in a request", field="names", value=names)


def _header(blocks: Sequence[DenseBlock], request: Pull | PushPull) -> int:
    """Return the bytes in a reply's header, at most, of blocks and of the rows that are wanted."""
    names = [(block.name, block.spec.dtype) for block in blocks]
    names += [(rows.name, rows.values) for rows in request.wanted]
    return sum(len(name.encode()) + len(dtype) + _PART_OVERHEAD for name, dtype in names)
