"""The coordinator, which lives in shard 0: who the workers are, what tensors exist and where, what work is
left, and whose gradients a step contains. The rules are those of membership, decisions, leases and placement;
here they meet the wire.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import protocol
from protocol.connection import Connection
from protocol.documents import CATALOGUE, STATUS
from protocol.errors import BadRequest, JobMismatch, NotAMember, PSError, UnknownJob
from protocol.messages import (
    Attach,
    Attached,
    Beat,
    Block,
    Catalogue,
    Create,
    Decide,
    Describe,
    Described,
    Empty,
    Ended,
    Epoch,
    Finish,
    Heartbeat,
    Initialised,
    Join,
    Joined,
    Lease,
    Leave,
    Set,
    Spec,
    Status,
    StatusReport,
)
from protocol.sequences import fingerprint_of_work
from protocol.status import ClusterStatus, JobStatus, TensorStatus, Wait
from protocol.tensors import DTYPES
from psserver.call import Call
from psserver.catalogue import TensorCatalogue
from psserver.decisions import StepDecisions
from psserver.jobs import Session, fenced
from psserver.leases import Ledger
from psserver.links import ShardLinks
from psserver.membership import FailureSettings, Membership, Worker
from psserver.placement import place
from psserver.shard import NAMED, Shard, Spawn
from psserver.store.dense import check_spec

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)

_MOST_BACKUP: Final = 1 << 20


@dataclass(slots=True)
class _Job:
    """A job as the coordinator knows it.

    ``agreed`` is what all shards are known to follow. ``made_with`` is the staleness that the job was made
    with, which those who join later say too, whatever it has been set to since.
    """

    name: str
    staleness: float
    backup: int
    workers: Membership
    decisions: StepDecisions
    made_with: float
    began: float
    since: int = 0
    agreed: Beat = field(default_factory=lambda: Beat(0, math.inf, 0))
    ledger: Ledger | None = None
    tensors: TensorCatalogue[Worker, Call] = field(default_factory=TensorCatalogue)
    joining: dict[int, Call] = field(default_factory=dict)  # by worker
    idle: list[tuple[Call, Worker]] = field(default_factory=list)  # wait for a lease

    def live(self) -> list[int]:
        """Return the live workers."""
        return [worker.id for worker in self.workers.live()]


class Coordinator:
    """Answers what concerns the cluster as a whole.

    Args:
        shard: this server's own shard, number 0.
        shards: how many servers make the cluster.
        spawn: runs a coroutine in a task that somebody awaits.
        settings: when silence is death.
        clock: seconds, monotonic.

    Attributes:
        links: the servers.
    """

    def __init__(
        self,
        shard: Shard,
        shards: int,
        spawn: Spawn,
        settings: FailureSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self._jobs: dict[str, _Job] = {}
        self._spawn = spawn
        self._settings = settings
        self._clock = clock
        self._began = self._ticked = clock()
        self._at_work: dict[Connection, tuple[_Job, Worker]] = {}
        self.links = ShardLinks(shard, shards, secrets.token_hex(8), settings, self._missed, clock)

    # --- epochs and decisions

    def _epoch(self, job: _Job) -> Epoch:
        return Epoch(job.name, job.workers.epoch, job.staleness, job.since, job.workers.members())

    async def _announce(self, job: _Job) -> None:
        """Tell every shard the job's epoch, and return when all follow it."""
        epoch = self._epoch(job)
        await self.links.announce(epoch)
        if epoch.number > job.agreed.epoch:
            job.agreed = Beat(epoch.number, epoch.staleness, epoch.since)

    def _missed(self) -> Iterable[Decide | Epoch]:
        """Return what a shard that was away may have missed; it ignores what it knows."""
        for job in self._jobs.values():
            if job.workers.started:
                yield from job.decisions.again(job.name)
                yield self._epoch(job)

    def ended(self, shard: int, report: Ended) -> None:
        """Take a shard's report of who has ended the open step there."""
        job = self._jobs.get(report.job)
        if job is not None and job.staleness == 0:
            known = {worker.id for worker in job.workers.live() if worker.told}
            job.decisions.ended(shard, report, known, self._clock())
            self._decide(job)

    def _decide(self, job: _Job) -> None:
        if job.staleness:
            return
        decision = job.decisions.decide(job.name, job.live(), job.backup)
        if decision is not None:
            self.links.decide(decision)

    def change(self, call: Call, request: Set) -> None:
        """Change how a job's workers are kept together.

        Raises:
            BadRequest: the job has tensors that cannot be averaged, or a number makes no sense.
        """
        job = self._job(request.job) if request.job is not None else self._only_job()
        _check_backup(request.backup_workers)
        staleness = job.staleness if request.staleness is None else request.staleness
        if staleness == 0:
            for spec in job.tensors.specs():
                check_spec(spec, averaged=True)
        if request.backup_workers is not None:
            job.backup = request.backup_workers
        if staleness != job.staleness:
            self._change_staleness(job, staleness)
        self._decide(job)
        self._spawn(call.answer_with(self._announce_and_reply(job, call)))
        _log.info("job %s: staleness %g, %d backup workers", job.name, job.staleness, job.backup)

    def _change_staleness(self, job: _Job, staleness: float) -> None:
        """Have all workers begin at one step; what they are at work on still counts as before it."""
        if job.staleness == 0:
            job.since = job.decisions.step + 1
        elif staleness == 0 or job.staleness == math.inf:
            job.since = self._furthest(job) + 1
        job.staleness = staleness
        if staleness == 0:
            job.decisions.begin_at(job.since)
        job.workers.epoch += 1
        self._serve_idle(job)  # where steps are kept, who waits for work must not hold up who does it

    def _furthest(self, job: _Job) -> int:
        store = self._shard.jobs.get(job.name)
        return max(job.since, store.clocks.furthest if store is not None else 0)

    async def _announce_and_reply(self, job: _Job, call: Call) -> None:
        await self._announce(job)
        call.reply(Empty())

    # --- who comes

    def attach(self, call: Call, session: Session, request: Attach) -> None:
        """Tell a client that is no worker where the shards are."""
        self._check_not_at_work(call.connection)
        job = self._job(request.job) if request.job is not None else self._only_job()
        session.job = job.name
        plan = job.ledger.plan if job.ledger else None
        call.reply(Attached(job.name, self.links.addresses(), job.staleness, plan))

    def join(self, call: Call, session: Session, request: Join) -> None:
        """Make the client a worker; answer when the job may start."""
        if request.job is None:
            job = self._only_job()
        else:
            job = self._jobs.get(request.job) or self._new_job(request.job, request)
        worker = job.workers.find(request.token)
        if worker is None:
            self._check_not_at_work(call.connection)
            worker = self._new_worker(job, request)
            _log.info("%s joined job %s from %s", worker.name, job.name, call.connection.peer)
        session.job, session.worker, session.incarnation = job.name, worker.id, worker.incarnation
        self._is_at(call.connection, job, worker)
        job.joining[worker.id] = call
        if job.workers.started:
            self._let_in(job)
            joining, job.joining = job.joining, {}
            self._spawn(self._admit(job, joining))

    def _new_worker(self, job: _Job, request: Join) -> Worker:
        self._check_settings(job, request)
        now = self._clock()
        ledger = job.ledger
        if ledger is None and request.plan is not None:
            ledger = Ledger(request.plan, now)
        worker = job.workers.join(request.name, request.token, now)
        job.ledger = ledger
        if ledger is not None:
            ledger.join(worker.id)
        self._jobs[job.name] = job
        return worker

    def _let_in(self, job: _Job) -> None:
        """Say at which step those who are new begin, before any epoch tells of them."""
        for worker in job.workers.live():
            if worker.begins is None:
                first = job.decisions.first_step(worker.id) if job.staleness == 0 else self._furthest(job)
                worker.begins = worker.clock = first

    async def _admit(self, job: _Job, joining: dict[int, Call]) -> None:
        """Answer those who may start, when every shard knows them."""
        try:
            await self._announce(job)
        except Exception as error:
            for call in joining.values():
                call.fail_with(error)
            return
        plan = job.ledger.plan if job.ledger else None
        live = {worker.id: worker for worker in job.workers.live()}
        for number, call in joining.items():
            if number not in live:
                call.fail(fenced(number))  # it went away while the shards were told
                continue
            worker = live[number]
            job.workers.tell(worker, self._clock())
            identity = (job.name, worker.id, worker.incarnation, worker.name)
            beat = (job.staleness, job.agreed.epoch, self._settings.heartbeat)
            clock = max(worker.begins or 0, job.since)  # the dial may have been turned meanwhile
            call.reply(Joined(*identity, clock, self.links.addresses(), *beat, plan))

    def _new_job(self, name: str, request: Join) -> _Job:
        staleness = math.inf if request.staleness is None else request.staleness
        _check_backup(request.backup_workers)
        workers = Membership(request.workers or 1, self._settings)
        return _Job(
            name=name,
            staleness=staleness,
            backup=request.backup_workers or 0,
            workers=workers,
            decisions=StepDecisions(len(self.links)),
            made_with=staleness,
            began=self._clock(),
        )

    def _check_settings(self, job: _Job, request: Join) -> None:
        settings: list[tuple[str, object, object]] = [
            ("staleness", request.staleness, job.made_with),
            ("workers", request.workers, job.workers.needed),
        ]
        if request.plan is not None and job.ledger is not None:
            settings += [
                ("plan", request.plan.text, job.ledger.plan.text),
                ("chunks", request.plan.chunks, job.ledger.plan.chunks),
            ]
        for name, wanted, has in settings:
            if wanted is not None and wanted != has:
                raise JobMismatch(
                    f"job {job.name!r} exists with {name} {has}; take another name or the same settings",
                    field=name,
                    value=wanted,
                )

    def hello(self, session: Session, connection: Connection) -> None:
        """Take note that a worker is back, on a new connection."""
        job = self._jobs.get(session.job or "")
        if job is not None and session.worker is not None:
            try:
                self._worker(session, connection)
            except PSError as error:
                _log.info("a worker of job %s came back too late: %s", job.name, error)

    def _is_at(self, connection: Connection, job: _Job, worker: Worker) -> None:
        """Take note of the connection on which a worker was heard of last."""
        if self._at_work.get(connection, (None, None))[1] is not worker:
            for other in [c for c, (_, w) in self._at_work.items() if w is worker]:
                del self._at_work[other]
            self._at_work[connection] = (job, worker)
            job.workers.returned(worker, self._clock())

    # --- who goes

    def leave(self, call: Call, session: Session, request: Leave) -> None:
        """Let a worker go."""
        job, worker = self._worker(session, call.connection)
        job.workers.leave(worker, request.clock)
        self._is_out(job, worker)
        _log.info("%s left job %s after %d steps", worker.name, job.name, request.clock)
        call.reply(Empty())

    def connection_lost(self, connection: Connection) -> None:
        """Take note that a worker's or a shard's connection has ended; either may come back."""
        self.links.lost(connection)
        job, worker = self._at_work.pop(connection, (None, None))
        if job is not None and worker is not None:
            job.workers.disconnected(worker, self._clock())
            _log.info("the connection of %s of job %s ended without a goodbye", worker.name, job.name)

    def tick(self, period: float) -> None:
        """Look after those that are silent; to be called every ``period`` seconds."""
        now = self._clock()
        asleep = now - self._ticked - period
        self._ticked = now
        if asleep > self._settings.heartbeat:
            _log.warning("this server was not running for %.1f s; nobody is blamed for that", asleep)
            self.links.excuse(asleep, now)
        waits = self.links.waits()
        for job in tuple(self._jobs.values()):
            if asleep > self._settings.heartbeat:
                job.workers.excuse(asleep, now)
            self._note_clocks(job, now)
            for worker, reason in job.workers.bury(now, self._waited_for(job, waits)):
                _log.warning("%s of job %s is dead: %s", worker.name, job.name, reason)
                self._is_out(job, worker)
        self.links.watch(now)

    def _note_clocks(self, job: _Job, now: float) -> None:
        """Take from this server's own shard how far the workers are, which is newer than their heartbeats."""
        store = self._shard.jobs.get(job.name)
        if store is not None:
            for worker in job.workers.live():
                if worker.id in store.clocks.members:
                    job.workers.reached(worker, store.clocks.clock(worker.id), now)

    def _waited_for(self, job: _Job, waits: Sequence[Wait]) -> set[int]:
        """Return the workers that keep others waiting: for a step, for chunks, for a tensor."""
        if not self.links.all_open():
            return set()  # what is missing may be on its way to a server that is away
        names = {name for wait in waits if wait.job == job.name for name in wait.waiting_for}
        late = {worker.id for worker in job.workers if worker.name in names}
        if job.decisions.since is not None:
            late |= self._missing(job)
        if job.idle and job.ledger is not None:
            late |= set(job.ledger.leases())
        return late | {creator.id for _, creator, _ in job.tensors.waits()}

    def _missing(self, job: _Job) -> set[int]:
        return job.decisions.waiting_for(job.live()) if job.staleness == 0 else set()

    def _is_out(self, job: _Job, worker: Worker) -> None:
        """Have everybody go on without a worker."""
        for connection in [c for c, (_, w) in self._at_work.items() if w is worker]:
            del self._at_work[connection]
        job.joining.pop(worker.id, None)
        for call, created in job.tensors.lost(worker):
            call.reply(created)
        self._take_back(job, worker)
        if job.workers.started:
            self._decide(job)
            self._spawn(self._announce(job))

    # --- heartbeats and work

    def heartbeat(self, call: Call, session: Session, request: Heartbeat) -> None:
        """Take note of a worker's progress."""
        job, worker = self._worker(session, call.connection)
        job.workers.heartbeat(worker, request, self._clock())
        call.reply(job.agreed)

    def lease(self, call: Call, session: Session, request: Lease) -> None:
        """Hand out work, at once or when there is some."""
        job, worker = self._worker(session, call.connection)
        ledger = self._ledger(job)
        if self._answered_before(call, worker, request):
            return
        leased = ledger.lease(worker.id)
        if leased.kind == "wait" and request.block and job.staleness == math.inf:
            job.idle.append((call, worker))
        else:
            call.reply(leased)

    def finish(self, call: Call, session: Session, request: Finish) -> None:
        """Count a chunk as done."""
        job, worker = self._worker(session, call.connection)
        ledger = self._ledger(job)
        if self._answered_before(call, worker, request):
            return
        ledger.finish(worker.id, request, self._clock())
        worker.moved = self._clock()
        call.reply(Empty())
        self._serve_idle(job)

    def _answered_before(self, call: Call, worker: Worker, request: Lease | Finish) -> bool:
        """Return whether a request is a retry, which is answered as the first try was."""
        fingerprint = fingerprint_of_work(request)
        if worker.sequence.is_new(request.seq):
            worker.sequence.admit(fingerprint, call)
            call.admitted(worker.sequence, request.seq)
            return False
        answer, outcome = worker.sequence.retry(request.seq, fingerprint, call)
        if isinstance(outcome, PSError):
            call.fail(outcome)
        elif answer and outcome is not None:
            call.reply(outcome)
        return True

    def _take_back(self, job: _Job, worker: Worker) -> None:
        idle, job.idle = job.idle, []
        for call, other in idle:
            if other is worker:
                call.fail(fenced(worker.id))
            else:
                job.idle.append((call, other))
        if job.ledger is not None:
            job.ledger.give_back(worker.id)
            self._serve_idle(job)

    def _serve_idle(self, job: _Job) -> None:
        """Answer those who wait for work: with what has come up, or else, where steps are kept, to wait."""
        idle, job.idle = job.idle, []
        for call, worker in idle:
            leased = self._ledger(job).lease(worker.id)
            if leased.kind == "wait" and job.staleness == math.inf:
                job.idle.append((call, worker))
            else:
                call.reply(leased)

    # --- tensors

    def create(self, call: Call, session: Session, request: Create) -> None:
        """Make a tensor, or say where it is; the answer may have to wait until it is filled."""
        job, worker = self._worker(session, call.connection)
        check_spec(request.spec, averaged=job.staleness == 0)
        created = job.tensors.create(request.name, request.spec, worker, call, self._placed)
        if created is not None:
            call.reply(created)

    def _placed(self, spec: Spec) -> tuple[Block, ...]:
        itemsize = DTYPES[spec.dtype].itemsize
        blocks = place(math.prod(spec.shape), itemsize, self.links.loads())
        for block in blocks:
            self.links.place(block.shard, (block.stop - block.start) * itemsize)
        return blocks

    def initialised(self, call: Call, session: Session, request: Initialised) -> None:
        """Note that a tensor is filled."""
        job, _ = self._worker(session, call.connection)
        waiting = job.tensors.initialised(request.name, request.attempt)
        call.reply(Empty())
        for other, created in waiting:
            other.reply(created)

    def describe(self, call: Call, session: Session, request: Describe) -> None:
        """Say what tensors are and where."""
        found = self._job(session.job).tensors.describe(request.names)
        payload = CATALOGUE.encode(Catalogue(found))
        call.reply(Described(CATALOGUE.parts(payload)), (payload,))

    # --- status

    def status(self, call: Call, request: Status) -> None:
        """Report the state of the cluster."""
        payload = STATUS.encode(self.cluster_status())
        call.reply(StatusReport(STATUS.parts(payload)), (payload,))

    def cluster_status(self) -> ClusterStatus:
        """Return the state of the cluster."""
        now = self._clock()
        shard_waits = self.links.waits()
        jobs = tuple(self._job_status(job, now, shard_waits) for job in self._jobs.values())
        return ClusterStatus(protocol.__version__, now - self._began, self.links.status(), jobs)

    def _job_status(self, job: _Job, now: float, shard_waits: Sequence[Wait]) -> JobStatus:
        store = self._shard.jobs.get(job.name)
        tensors = tuple(
            TensorStatus(
                info.name, info.spec.dtype, info.spec.shape, info.spec.optimizer.name, len(info.blocks)
            )
            for info in job.tensors
        )
        furthest = self._furthest(job)
        self._note_clocks(job, now)
        leases = job.ledger.leases() if job.ledger else {}
        return JobStatus(
            name=job.name,
            staleness=job.staleness,
            backup_workers=job.backup,
            epoch=job.workers.epoch,
            step=furthest,
            workers=job.workers.status(now, leases, furthest),
            tensors=tensors,
            progress=job.ledger.progress(now) if job.ledger else None,
            waits=(*self._waits(job, now), *(wait for wait in shard_waits if wait.job == job.name)),
            dropped=store.dropped if store else 0,
            longest_wait=store.longest_wait if store else 0.0,
        )

    def waits(self) -> list[Wait]:
        """Return who waits for whom in steps, at every staleness."""
        now = self._clock()
        steps = [wait for job in self._jobs.values() for wait in self._step_wait(job, now)]
        return [*steps, *self.links.waits()]

    def _waits(self, job: _Job, now: float) -> Iterable[Wait]:
        waiting = job.workers.waiting()
        if waiting:
            what = f"start with {job.workers.needed} workers"
            yield Wait(job.name, 0, what, len(waiting), (), now - job.began)
        yield from self._step_wait(job, now)
        if job.idle:
            since = min(call.age() for call, _ in job.idle)
            holders = set(job.ledger.leases()) if job.ledger else set()
            yield Wait(job.name, 0, "chunks", len(job.idle), self._names(job, holders), since)
        for name, creator, asks in job.tensors.waits():
            age = max(call.age() for call in asks)
            yield Wait(job.name, 0, f"tensor {name}", len(asks), (creator.name,), age)

    def _step_wait(self, job: _Job, now: float) -> Iterable[Wait]:
        decisions, missing = job.decisions, self._missing(job)
        if missing and decisions.since is not None:
            names = self._names(job, missing)
            waiting = len(job.live()) - len(missing)
            yield Wait(job.name, 0, f"step {decisions.step}", waiting, names, now - decisions.since)

    def _names(self, job: _Job, workers: Iterable[int]) -> tuple[str, ...]:
        wanted = set(workers)
        return tuple(worker.name for worker in job.workers if worker.id in wanted)[:NAMED]

    def worker_states(self) -> Counter[str]:
        """Return how many workers, of all jobs, are in each state."""
        jobs = tuple(self._jobs.values())  # called from the thread that serves the metrics
        return Counter(worker.state for job in jobs for worker in job.workers)

    def workers_at_work(self) -> Iterable[tuple[str, int, int, float]]:
        """Yield job, worker, lag in steps and examples per second of each live worker."""
        for job in tuple(self._jobs.values()):  # called from the thread that serves the metrics
            live = [worker for worker in job.workers if worker.live]
            furthest = max((worker.clock for worker in live), default=0)  # as of when the others were seen
            for worker in live:
                yield job.name, worker.id, furthest - worker.clock, worker.speed()

    # --- pieces of the above

    def _only_job(self) -> _Job:
        if len(self._jobs) != 1:
            raise UnknownJob(
                "name the job: without a name the cluster must have exactly one",
                field="jobs",
                value=", ".join(self._jobs) or "(none)",
            )
        return next(iter(self._jobs.values()))

    def _job(self, name: str | None) -> _Job:
        job = self._jobs.get(name or "")
        if job is None:
            raise UnknownJob("no worker has made a job of that name", field="job", value=name)
        return job

    def _check_not_at_work(self, connection: Connection) -> None:
        job, worker = self._at_work.get(connection, (None, None))
        if job is not None and worker is not None:
            raise BadRequest("this connection's worker has joined a job", field="job", value=job.name)

    def _worker(self, session: Session, connection: Connection) -> tuple[_Job, Worker]:
        """Return the job and worker of a session; it was heard of on this connection.

        Raises:
            NotAMember: the session is no worker's.
            Fenced: its worker's incarnation is out.
        """
        job = self._job(session.job)
        if session.worker is None:
            raise NotAMember("join the job first", field="worker", value=session.worker)
        worker = job.workers.get(session.worker, session.incarnation)
        self._is_at(connection, job, worker)
        return job, worker

    def _ledger(self, job: _Job) -> Ledger:
        if job.ledger is None:
            raise BadRequest("the job was made without a plan of its data", field="job", value=job.name)
        return job.ledger


def _check_backup(backup: int | None) -> None:
    if backup is not None and backup > _MOST_BACKUP:
        raise BadRequest(f"at most {_MOST_BACKUP} are possible", field="backup_workers", value=backup)
