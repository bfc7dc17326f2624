"""The coordinator, which lives in shard 0: who the shards and workers are, what tensors exist and where,
and what work is left. The rules are those of membership, leases and placement; here they meet the wire.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import protocol
from protocol.connection import Connection
from protocol.documents import CATALOGUE, STATUS
from protocol.errors import (
    BadRequest,
    JobMismatch,
    NotAMember,
    PSError,
    UnknownJob,
)
from protocol.messages import (
    Attach,
    Attached,
    Block,
    Catalogue,
    Create,
    Describe,
    Described,
    Empty,
    Epoch,
    Finish,
    Heartbeat,
    Initialised,
    Join,
    Joined,
    JoinShard,
    Lease,
    Leave,
    ShardJoined,
    Spec,
    Status,
    StatusReport,
)
from protocol.status import (
    ClusterStatus,
    JobStatus,
    ShardStatus,
    TensorStatus,
)
from protocol.tensors import DTYPES, Part
from psserver.call import Call
from psserver.catalogue import TensorCatalogue
from psserver.leases import Ledger
from psserver.membership import Membership, Worker
from psserver.placement import place
from psserver.shard import Session, Shard, Spawn
from psserver.store.dense import check_spec

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _ShardLink:
    """A server of the cluster; ``connection`` is None for the coordinator's own shard."""

    address: str
    connection: Connection | None
    load: int = 0  # bytes of parameters placed there


@dataclass(slots=True)
class _Job:
    """A job as the coordinator knows it."""

    name: str
    staleness: float
    workers: Membership
    ledger: Ledger | None = None
    tensors: TensorCatalogue[Connection, Call] = field(default_factory=TensorCatalogue)
    joining: list[tuple[Call, Worker]] = field(default_factory=list)
    idle: list[tuple[Call, Worker]] = field(default_factory=list)  # wait for a lease
    at_work: dict[Connection, Worker] = field(default_factory=dict)


class Coordinator:
    """Answers what concerns the cluster as a whole.

    Args:
        shard: this server's own shard, number 0.
        shards: how many servers make the cluster.
        spawn: runs a coroutine in a task that somebody awaits.
        clock: seconds, monotonic.
    """

    def __init__(
        self, shard: Shard, shards: int, spawn: Spawn, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ready = asyncio.Event()
        self._shard = shard
        self._links: list[_ShardLink | None] = [_ShardLink("", None), *[None] * (shards - 1)]
        self._jobs: dict[str, _Job] = {}
        self._spawn = spawn
        self._clock = clock
        self._began = clock()
        self._own_address = ""
        self._check_ready()

    def listening_at(self, address: str) -> None:
        """Take note of the address that this server is bound to, for the status."""
        self._own_address = address

    # --- shards

    def join_shard(self, call: Call, request: JoinShard) -> None:
        """Give a server its number.

        Raises:
            BadRequest: the number asked for is out of range or taken, or all are, or it has one already.
        """
        if any(link is not None and link.connection is call.connection for link in self._links):
            raise BadRequest("this connection's server has joined", field="shard", value=request.shard)
        free = [index for index, link in enumerate(self._links) if link is None]
        shard = request.shard if request.shard is not None else (free[0] if free else None)
        if shard is None:
            raise BadRequest(
                "the cluster is complete; start the coordinator with more --shards",
                field="shards",
                value=len(self._links),
            )
        if shard not in free:
            raise BadRequest(
                f"that number is taken or not below --shards {len(self._links)}", field="shard", value=shard
            )
        host = request.host or call.connection.peer.rpartition(":")[0]
        self._links[shard] = _ShardLink(f"{host}:{request.port}", call.connection)
        call.reply(ShardJoined(shard, len(self._links)))
        _log.info("shard %d joined from %s:%d", shard, host, request.port)
        self._check_ready()

    def _check_ready(self) -> None:
        if all(self._links):
            self.ready.set()

    def _addresses(self) -> tuple[str, ...]:
        return tuple(link.address if link else "" for link in self._links)

    async def _announce(self, job: _Job) -> None:
        """Tell every shard the job's epoch, and return when all follow it."""
        members = job.workers
        epoch = Epoch(job.name, members.epoch, job.staleness, members.members(), members.lost())
        self._shard.follow(epoch)
        connections = [link.connection for link in self._links if link and link.connection]
        await asyncio.gather(*(connection.request(epoch) for connection in connections))

    # --- workers

    def attach(self, call: Call, session: Session, request: Attach) -> None:
        """Tell a client that is no worker where the shards are."""
        self._check_not_at_work(call.connection)
        job = self._job(request.job) if request.job is not None else self._only_job()
        session.job = job.name
        plan = job.ledger.plan if job.ledger else None
        call.reply(Attached(job.name, self._addresses(), job.staleness, plan))

    def join(self, call: Call, session: Session, request: Join) -> None:
        """Make the client a worker; answer when the job may start."""
        self._check_not_at_work(call.connection)
        if request.job is None:
            job = self._only_job()
        else:
            job = self._jobs.get(request.job) or self._new_job(request.job, request)
        self._check_settings(job, request)
        now = self._clock()
        barrier = self._shard.jobs[job.name].barrier if job.name in self._shard.jobs else None
        done = job.ledger is not None and job.ledger.finished
        finished_at = (barrier.clock if barrier else 0) if done else None
        ledger = Ledger(request.plan, now) if request.plan is not None and job.ledger is None else job.ledger
        worker = job.workers.join(request.name, finished_at=finished_at, now=now)
        job.ledger = ledger
        if ledger is not None:
            ledger.join(worker.id)
        self._jobs[job.name] = job
        session.job, session.worker, session.incarnation = job.name, worker.id, worker.incarnation
        job.at_work[call.connection] = worker
        job.joining.append((call, worker))
        _log.info("%s joined job %s from %s", worker.name, job.name, call.connection.peer)
        if job.workers.started:
            joining, job.joining = job.joining, []
            self._spawn(self._admit(job, joining))

    async def _admit(self, job: _Job, joining: Sequence[tuple[Call, Worker]]) -> None:
        try:
            await self._announce(job)
        except PSError as error:
            for call, _ in joining:
                call.fail(error)
            return
        barrier = self._shard.jobs[job.name].barrier
        clock = barrier.clock if barrier else 0
        plan = job.ledger.plan if job.ledger else None
        for call, worker in joining:
            identity = (job.name, worker.id, worker.incarnation, worker.name)
            call.reply(Joined(*identity, clock, self._addresses(), job.staleness, plan))

    def _new_job(self, name: str, request: Join) -> _Job:
        staleness = math.inf if request.staleness is None else request.staleness
        return _Job(name, staleness, Membership(request.workers or 1, fixed=staleness == 0))

    def _check_settings(self, job: _Job, request: Join) -> None:
        settings: list[tuple[str, object, object]] = [
            ("staleness", request.staleness, job.staleness),
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

    def leave(self, call: Call, session: Session, request: Leave) -> None:
        """Let a worker go."""
        job, worker = self._worker(session, call.connection)
        barrier = self._shard.jobs[job.name].barrier if job.name in self._shard.jobs else None
        if barrier is not None and request.clock > barrier.clock:
            # The others would wait for it up to a step that it has never reached.
            raise BadRequest(f"the open step is {barrier.clock}", field="clock", value=request.clock)
        del job.at_work[call.connection]
        self._take_back(job, worker)
        job.workers.leave(worker, request.clock)
        _log.info("%s left job %s after %d steps", worker.name, job.name, request.clock)
        self._spawn(call.answer_with(self._announce_and_reply(job, call)))

    async def _announce_and_reply(self, job: _Job, call: Call) -> None:
        await self._announce(job)
        call.reply(Empty())

    def connection_lost(self, connection: Connection) -> None:
        """Take note that a worker, a creator of tensors or a shard is gone."""
        for job in self._jobs.values():
            for call, created in job.tensors.lost(connection):
                call.reply(created)
            worker = job.at_work.pop(connection, None)
            if worker is not None:
                self._lose(job, worker)
        needed = any(job.at_work for job in self._jobs.values())
        for shard, link in enumerate(self._links):
            if link is not None and link.connection is connection:
                _log.log(
                    logging.ERROR if needed else logging.INFO,
                    "shard %d at %s is gone; jobs cannot go on without it",
                    shard,
                    link.address,
                )
                if not self.ready.is_set():
                    self._links[shard] = None  # nothing is there yet: another server may take the number

    def _lose(self, job: _Job, worker: Worker) -> None:
        job.joining = [(call, w) for call, w in job.joining if w is not worker]
        self._take_back(job, worker)
        job.workers.lose(worker)
        _log.warning("%s of job %s is lost: its connection ended without a goodbye", worker.name, job.name)
        if job.workers.started:
            self._spawn(self._announce_quietly(job))

    async def _announce_quietly(self, job: _Job) -> None:
        try:
            await self._announce(job)
        except PSError as error:
            _log.warning("a shard did not hear of epoch %d of job %s: %s", job.workers.epoch, job.name, error)

    def heartbeat(self, call: Call, session: Session, request: Heartbeat) -> None:
        """Take note of a worker's progress."""
        job, worker = self._worker(session, call.connection)
        job.workers.heartbeat(worker, request, self._clock())
        call.reply(Empty())

    # --- work

    def lease(self, call: Call, session: Session, request: Lease) -> None:
        """Hand out work, at once or when there is some."""
        job, worker = self._worker(session, call.connection)
        leased = self._ledger(job).lease(worker.id)
        if leased.kind == "wait" and request.block:
            job.idle.append((call, worker))
        else:
            call.reply(leased)

    def finish(self, call: Call, session: Session, request: Finish) -> None:
        """Count a chunk as done."""
        job, worker = self._worker(session, call.connection)
        self._ledger(job).finish(worker.id, request, self._clock())
        call.reply(Empty())
        self._serve_idle(job)

    def _take_back(self, job: _Job, worker: Worker) -> None:
        idle, job.idle = job.idle, []
        for call, other in idle:
            if other is worker:
                call.fail(NotAMember("the worker has left the job", field="worker", value=worker.name))
            else:
                job.idle.append((call, other))
        if job.ledger is not None:
            job.ledger.give_back(worker.id)
            self._serve_idle(job)

    def _serve_idle(self, job: _Job) -> None:
        """Give work that has come up to those who wait for it."""
        idle, job.idle = job.idle, []
        for call, worker in idle:
            leased = self._ledger(job).lease(worker.id)
            if leased.kind == "wait":
                job.idle.append((call, worker))
            else:
                call.reply(leased)

    # --- tensors

    def create(self, call: Call, session: Session, request: Create) -> None:
        """Make a tensor, or say where it is; the answer may have to wait until it is filled."""
        job, _ = self._worker(session, call.connection)
        check_spec(request.spec, averaged=job.staleness == 0)
        created = job.tensors.create(request.name, request.spec, call.connection, call, self._placed)
        if created is not None:
            call.reply(created)

    def _placed(self, spec: Spec) -> tuple[Block, ...]:
        itemsize = DTYPES[spec.dtype].itemsize
        links = [link for link in self._links if link is not None]
        blocks = place(math.prod(spec.shape), itemsize, [link.load for link in links])
        for block in blocks:
            links[block.shard].load += (block.stop - block.start) * itemsize
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
        call.reply(Described((Part("catalogue", "uint8", payload.size),)), (payload,))

    # --- status

    def status(self, call: Call, request: Status) -> None:
        """Report the state of the cluster."""
        payload = STATUS.encode(self.cluster_status())
        part = Part("status", "uint8", payload.size)
        call.reply(StatusReport((part,)), (payload,))

    def cluster_status(self) -> ClusterStatus:
        """Return the state of the cluster."""
        now = self._clock()
        shards = tuple(self._shard_status(index, link) for index, link in enumerate(self._links))
        jobs = tuple(self._job_status(job, now) for job in self._jobs.values())
        return ClusterStatus(protocol.__version__, now - self._began, shards, jobs)

    def _shard_status(self, index: int, link: _ShardLink | None) -> ShardStatus:
        if link is None:
            return ShardStatus(index, "", "joining", 0)
        state = "ready" if link.connection is None or link.connection.is_open else "lost"
        return ShardStatus(index, link.address or self._own_address, state, link.load)

    def _job_status(self, job: _Job, now: float) -> JobStatus:
        store = self._shard.jobs.get(job.name)
        tensors = tuple(
            TensorStatus(
                info.name, info.spec.dtype, info.spec.shape, info.spec.optimizer.name, len(info.blocks)
            )
            for info in job.tensors
        )
        return JobStatus(
            name=job.name,
            staleness=job.staleness,
            epoch=job.workers.epoch,
            step=store.barrier.clock if store and store.barrier else 0,
            workers=job.workers.status(now),
            tensors=tensors,
            progress=job.ledger.progress(now) if job.ledger else None,
            wait=self._shard.wait(job.name),
        )

    def worker_states(self) -> Counter[str]:
        """Return how many workers, of all jobs, are in each state."""
        jobs = tuple(self._jobs.values())  # called from the thread that serves the metrics
        return Counter(worker.state for job in jobs for worker in job.workers)

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
        for job in self._jobs.values():
            if connection in job.at_work:
                raise BadRequest("this connection's worker has joined a job", field="job", value=job.name)

    def _worker(self, session: Session, connection: Connection) -> tuple[_Job, Worker]:
        job = self._job(session.job)
        worker = job.at_work.get(connection)
        if worker is None:
            raise BadRequest("join the job on this connection first", field="worker", value=session.worker)
        return job, worker

    def _ledger(self, job: _Job) -> Ledger:
        if job.ledger is None:
            raise BadRequest("the job was made without a plan of its data", field="job", value=job.name)
        return job.ledger
