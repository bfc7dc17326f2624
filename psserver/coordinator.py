"""The coordinator, which lives in shard 0: who the workers are, what tensors exist and where, what work is
left, and whose gradients a step contains. The rules are those of membership, decisions, leases and placement;
here they meet the wire.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import protocol
from protocol.auth import Role
from protocol.connection import Array, Connection
from protocol.documents import CATALOGUE, STATUS
from protocol.errors import BadRequest, Forbidden, JobMismatch, NotAMember, NotReady, PSError, UnknownJob
from protocol.events import Event, about
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
    Drift,
    DriftHeard,
    Drop,
    Dropped,
    Empty,
    Ended,
    Epoch,
    Finish,
    Heartbeat,
    Initialised,
    Join,
    Joined,
    KeptJob,
    KeptJobs,
    Lease,
    Leased,
    Leave,
    Mark,
    Reply,
    Set,
    Spec,
    Status,
    StatusReport,
    TensorInfo,
)
from protocol.sequences import fingerprint_of_work
from protocol.status import ClusterStatus, DurabilityStatus, History, JobStatus, Return, TensorStatus, Wait
from psserver.call import Call, Spawn
from psserver.checkpoints import Disturbance, Jobs
from psserver.coordinated_job import Job
from psserver.coordinator_state import job_doc, job_state, plain_finish, plain_leased
from psserver.decisions import StepDecisions
from psserver.durability.failpoints import failpoint
from psserver.durability.manifest import SavedJob
from psserver.durability.records import Key
from psserver.history import JobHistory
from psserver.incarnations import fenced, first_incarnation, is_of_dropped, job_dropped
from psserver.jobs import Session
from psserver.leases import Ledger
from psserver.links import ShardLinks
from psserver.membership import FailureSettings, Membership, Worker
from psserver.placement import load_of, place_tensor
from psserver.shard import NAMED, Shard
from psserver.store.spec import check_spec

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)

_MOST_BACKUP: Final = 1 << 20

_MOST_DRIFTS_UNDONE: Final = 1 << 20
"""Drifts that a worker may know of, and the state that was gone back to may not."""

_SKIPPED: Final = 1000
"""Incarnations and epochs that may have been used, and forgotten: the log did not come to hold them."""

_NAMES_KEPT: Final = 10_000
"""Names of jobs that were dropped, of which it is known which incarnations their workers had."""


def _nothing() -> None:
    """Do nothing."""


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
        serving: set while all servers are there, or have been, with the state that they should have.
        changes: how often the jobs have changed.
        durability: tells what outlives the servers; without a storage, nothing.
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
        self._jobs: dict[str, Job] = {}
        self._histories: dict[str, JobHistory] = {}  # by job
        self._spawn = spawn
        self._settings = settings
        self._clock = clock
        self._began = self._ticked = self._taken = clock()
        self._at_work: dict[Connection, tuple[Job, Worker]] = {}
        self._undisturbed = asyncio.Event()  # no cut is being prepared
        self._members_may = asyncio.Event()  # or one that waits for workers' markers
        self._undisturbed.set()
        self._members_may.set()
        self._told: Array | None = None  # the status, as it is told in this turn of the event loop
        self._untold: list[Callable[[], None]] = []  # decisions that became durable while a cut was prepared
        self.serving = asyncio.Event()
        self.changes = self._skipped = 0
        self._dropping: dict[str, Job] = {}  # jobs that are, until that is durable
        self._former: dict[str, int] = {}  # the highest incarnation of those that were, the latest last
        self.durability: Callable[[], DurabilityStatus] = DurabilityStatus
        self.links = ShardLinks(
            shard, shards, secrets.token_hex(8), settings, self.kept, self._missed, self._has_jobs, clock
        )

    # --- epochs and decisions

    def _epoch(self, job: Job) -> Epoch:
        kept_together = (job.staleness, job.since, job.workers.members(), job.rate)
        return Epoch(job.name, job.workers.epoch, *kept_together, job.born)

    async def _announce(self, job: Job, gone: Sequence[Worker] = ()) -> None:
        """Tell every shard the job's epoch, and return when all follow it; these are ``gone`` from now on."""
        await self._durable(job)  # an incarnation must not be issued twice
        while not self._may_announce(job):
            await (self._undisturbed if self._is_new_dial(job) else self._members_may).wait()
        if self._jobs.get(job.name) is not job:
            return  # another state has taken its place
        failpoint("membership.before-announce")
        epoch = self._epoch(job)
        followed = self.links.announce(epoch, lambda: job.is_dropped)
        for worker in gone:
            self._take_back(job, worker)
        await followed
        failpoint("membership.announced")
        if epoch.number > job.agreed.epoch:
            job.agreed = Beat(epoch.number, epoch.staleness, epoch.since, epoch.rate, job.drifts.count)

    def _may_announce(self, job: Job) -> bool:
        """Return whether a job's epoch may be told now.

        While a cut waits for markers that is so where the epoch says no more than who works on a job that
        needs them: a worker that is gone must not be waited for, and who is new is held.
        """
        return self._undisturbed.is_set() or (self._members_may.is_set() and not self._is_new_dial(job))

    @staticmethod
    def _is_new_dial(job: Job) -> bool:
        """Return whether an epoch says more than who the workers are; in steps, that says more, too."""
        agreed = job.agreed
        known = (agreed.staleness, agreed.since, agreed.rate)
        same = agreed.epoch > 0 and known == (job.staleness, job.since, job.rate)
        return not same or job.staleness == 0

    def _has_jobs(self) -> bool:
        return bool(self._jobs)

    def _missed(self) -> Iterable[Decide | Epoch]:
        """Return what a shard that was away may have missed; it ignores what it knows."""
        for job in self._jobs.values():
            yield from job.told

    def kept(self) -> KeptJobs:
        """Return which jobs the shards are to keep: also those that are dropped, until that is durable."""
        return self._kept({**self._dropping, **self._jobs}.values())

    def existing(self) -> KeptJobs:
        """Return which jobs there are."""
        return self._kept(self._jobs.values())

    def _kept(self, jobs: Iterable[Job]) -> KeptJobs:
        return KeptJobs(tuple([KeptJob(job.name, job.born) for job in jobs]), self._shard.issued)

    def _to_be_told(self, job: Job) -> list[Decide | Epoch]:
        return [*job.decisions.again(job.name), self._epoch(job)] if job.workers.started else []

    def ended(self, shard: int, report: Ended) -> None:
        """Take a shard's report of who has ended the open step there."""
        job = self._jobs.get(report.job)
        if job is not None and job.staleness == 0:
            known = {worker.id for worker in job.workers.live() if worker.told}
            job.decisions.ended(shard, report, known, self._clock())
            self._decide(job)

    def _decide(self, job: Job) -> None:
        if job.staleness or not self._undisturbed.is_set():
            return  # after the cut it is asked again
        decision = job.decisions.decide(job.name, job.live(), job.backup)
        if decision is None:
            return
        tell = partial(self._tell, job, decision, job.decisions.again(job.name))
        if len(self.links) == 1:
            tell()  # after a restart the one shard knows what came of it
        else:
            self._record(job, then=tell, changed=("decisions",))

    def _tell(self, job: Job, decision: Decide, again: Sequence[Decide]) -> None:
        if not self._undisturbed.is_set():
            self._untold.append(partial(self._tell, job, decision, again))
            return
        if self._jobs.get(job.name) is not job:
            return  # another state has taken its place
        job.told = [*again, *(message for message in job.told if isinstance(message, Epoch))]
        failpoint("membership.before-decide")
        self.links.decide(decision)

    # --- what has to be durable

    def _record(
        self,
        job: Job,
        *events: list[Any],
        then: Callable[[], None] = _nothing,
        changed: Sequence[str] = (),
    ) -> None:
        """Log what has happened to a job, if there is a log; call ``then`` when it is durable.

        Of a job that was dropped nothing is logged any more.
        """
        self.changes += 1
        log = self._shard.journal.log
        if log is None or job.is_dropped:
            then()
        else:
            docs: dict[Key, Callable[[], Any]] = {
                (what, job.name): partial(job_doc, job, what) for what in changed
            }
            log.append(events, docs=docs, then=then)

    # --- checkpoints

    def checkpoint_jobs(self) -> Jobs:
        """Return what a checkpoint needs to know of the jobs."""
        return Jobs(
            mark=self._mark,
            disturb=self._disturb,
            missing=self._unmarked,
            saved=self._saved_jobs,
            state=self._state,
            changes=self.state_number,
            at_work=lambda: bool(self.at_work()),
            serving=self.serving.is_set,
        )

    def state_number(self) -> int:
        """Return a number that changes with the jobs and with this server's shard."""
        return self.changes + self._shard.updates

    def _mark(self, checkpoint: int) -> None:
        """Ask the workers of jobs that need it for their markers."""
        for connection, (job, _) in self._at_work.items():
            store = self._shard.jobs.get(job.name)
            if store is not None and store.clocks.staleness:  # as the shards know it so far
                connection.notify(Mark(checkpoint))

    def _disturb(self, by: Disturbance) -> None:
        """Say which epochs and decisions may be told; what has come up meanwhile is told then."""
        if by == "nothing":
            self._members_may.clear()
        else:
            self._members_may.set()
        if by == "all":
            self._undisturbed.set()
            untold, self._untold = self._untold, []
            for tell in untold:
                tell()
            for job in self._jobs.values():
                self._decide(job)
        else:
            self._undisturbed.clear()

    def _unmarked(self) -> tuple[str, ...]:
        """Return whose markers are not in on this server's shard."""
        found: list[str] = []
        for store in self._shard.jobs.values():
            if store.holding is not None:
                found += [store.clocks.members[one].name for one in store.holding.awaited][:NAMED]
        return tuple(found[:NAMED])

    def _saved_jobs(self) -> tuple[SavedJob, ...]:
        return tuple(
            SavedJob(
                job.name,
                job.staleness,
                self._furthest(job),
                store.updates if (store := self._shard.jobs.get(job.name)) is not None else 0,
                None if job.ledger is None else job.ledger.plan.text,
                tuple(job.tensors),
                job.born,
            )
            for job in self._jobs.values()
        )

    def _state(self) -> dict[str, Any]:
        now = self._clock()
        for job in self._jobs.values():
            job.furthest = self._furthest(job)
            for worker in job.workers.live():
                self._reached(job, worker)
        return {"jobs": [job_state(job, now) for job in self._jobs.values()], "issued": self._shard.issued}

    def is_held(self, session: Session) -> bool:
        """Return whether what a worker asks for now is after the cut that is being prepared."""
        store = self._shard.jobs.get(session.job or "")
        if store is None or store.holding is None or not store.clocks.staleness:
            return False
        return session.worker is not None and session.worker not in store.holding.awaited

    def hold(self, session: Session, go_on: Callable[[], None]) -> None:
        """Keep what ``is_held`` until the cut is taken."""
        holding = self._shard.jobs[session.job or ""].holding
        assert holding is not None  # noqa: S101 (is_held)
        holding.held.append(go_on)

    # --- taking up what was saved

    def pause(self) -> None:
        """Have everybody wait: the state is about to be replaced."""
        self.serving.clear()

    def take(self, jobs: dict[str, Job]) -> None:
        """Have these jobs instead of those that there are."""
        self._jobs = jobs
        self._histories = {name: past for name, past in self._histories.items() if name in jobs}
        self._taken = self._clock()
        self._at_work.clear()
        self._untold.clear()
        for job in jobs.values():
            job.told = self._to_be_told(job)
        self.links.place_all(load_of(info for job in jobs.values() for info in job.tensors.infos()))
        self.changes += 1

    def serve(self) -> None:
        """Go on: all servers are there, with the state that they should have."""
        now = self._clock()
        for job in self._jobs.values():
            job.workers.excuse(now - self._taken, now)
            self._resume_steps(job)
            job.told = self._to_be_told(job)
        for message in self._missed():
            if isinstance(message, Decide):
                self._shard.decide(message)
            else:
                self._shard.follow(message)
        for job in self._jobs.values():
            self._go_on(job)
        self.serving.set()

    def _go_on(self, job: Job) -> None:
        """Tell that a job goes on after a restart, and take back what those hold who died right before it."""
        held = job.ledger.holders() if job.ledger is not None else set()
        absent = [worker for worker in job.workers if worker.id in held and not worker.present]
        if job.workers.started:
            job.workers.epoch += _SKIPPED  # of the latest, shards may have heard and the log not
            job.leaving |= {worker.name: asyncio.Event() for worker in absent}
            self._spawn(self._announce(job, absent))
        else:
            for worker in absent:
                self._take_back(job, worker)

    def _resume_steps(self, job: Job) -> None:
        """Have the steps of a job on this shard alone be those that the shard knows: it tells of no vote."""
        if job.name in self._shard.jobs and len(self.links) == 1:
            step, included = self._shard.open_step(job.name)
            if job.staleness == 0 and step < job.since:
                step, included = job.since, set()
            later = {worker.id for worker in job.workers.live() if (worker.begins or 0) > step}
            job.decisions.resume(step, included | later)  # who begins later is not missing

    def fence_all(self) -> None:
        """Have all workers join again: some of what was acknowledged may be lost."""
        self._skipped += _SKIPPED  # of jobs that were lost, too
        for job in self._jobs.values():
            present = [worker for worker in job.workers if worker.present]
            job.workers.skip_incarnations(_SKIPPED)
            job.workers.all_out()
            for worker in present if self.serving.is_set() else ():  # else it is done when it begins to serve
                self._is_out(job, worker)

    def at_work(self) -> list[str]:
        """Return the names of the workers that are at work."""
        return [worker.name for job in self._jobs.values() for worker in job.workers.live()]

    async def _durable(self, job: Job) -> None:
        """Return when what the job's workers and settings are is durable."""
        durable = asyncio.Event()
        told = self._to_be_told(job)

        def note() -> None:
            job.told = told
            durable.set()

        self._record(job, then=note, changed=("job", "decisions"))
        await durable.wait()

    def change(self, call: Call, request: Set) -> None:
        """Change how a job's workers are kept together, and its learning rate.

        Raises:
            BadRequest: a number makes no sense.
        """
        job = self._job(request.job) if request.job is not None else self._only_job()
        _check_backup(request.backup_workers)
        staleness = job.staleness if request.staleness is None else request.staleness
        if request.backup_workers is not None:
            job.backup = request.backup_workers
        if staleness != job.staleness:
            self._change_staleness(job, staleness)
        if request.rate is not None:
            self._change_rate(job, request.rate)
        self._decide(job)
        self._say_changed(job)
        self._spawn(call.answer_with(self._announce_and_reply(job, call, Empty())))

    @staticmethod
    def _say_changed(job: Job) -> None:
        _log.info(
            "job %s: staleness %g, %d backup workers, learning rate times %g",
            job.name, job.staleness, job.backup, job.rate,
            extra=_about("job.changed", job),
        )  # fmt: skip

    @staticmethod
    def _change_rate(job: Job, rate: float) -> None:
        if rate != job.rate:
            job.rate = rate
            job.workers.epoch += 1

    def _change_staleness(self, job: Job, staleness: float) -> None:
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

    def _furthest(self, job: Job) -> int:
        store = self._shard.jobs.get(job.name)
        return max(job.since, job.furthest, store.clocks.furthest if store is not None else 0)

    async def _announce_and_reply(self, job: Job, call: Call, reply: Reply) -> None:
        await self._announce(job)
        call.reply(reply)

    # --- jobs that are dropped

    def drop(self, call: Call, session: Session, request: Drop) -> None:
        """End a job and forget all of it; answer when that is durable, and all servers that are there have.

        It is over for everybody at once. Once that is durable it stays so; if this server dies before, the
        job is there again.

        Raises:
            UnknownJob: there is no such job.
            JobMismatch: it has workers, and it was not said to drop it by force.
            Forbidden: somebody who is no admin has said so.
            NotReady: the state is about to be replaced.
            LogUnwritable: it cannot be made durable now; nothing has changed.
        """
        if request.force and session.role is not Role.ADMIN:
            raise Forbidden(
                "to drop a job that has workers takes the token of an admin", field="force", value=True
            )
        if not self._undisturbed.is_set():  # it is in the checkpoint on all shards, or on none
            self._spawn(call.answer_with(self._drop_later(call, session, request)))
            return
        if not self.serving.is_set():
            raise NotReady("the cluster is not complete; ask again")
        if self._shard.journal.problem is not None:
            raise self._shard.journal.problem
        job = self._job(request.job)
        at_work = [worker.name for worker in job.workers if worker.present]
        if at_work and not request.force:
            raise JobMismatch(
                f"workers are at work on it ({', '.join(at_work[:3])}{', ...' if at_work[3:] else ''}); stop "
                "them first, or say --force to have them be told that it was dropped",
                field="job",
                value=job.name,
            )
        freed = self._forget(job)
        failpoint("drop.forgotten")
        then = partial(self._is_dropped, call, job, freed)
        self._shard.journal.drop([job.name], then, ["job.drop", job.name, self._shard.issued])

    async def _drop_later(self, call: Call, session: Session, request: Drop) -> None:
        await self._undisturbed.wait()
        self.drop(call, session, request)

    def _forget(self, job: Job) -> int:
        """Have a job be over, here and on this server's shard; return the bytes of memory that this frees."""
        self.changes += 1
        self._note_dropped(job)
        self._dropping[job.name] = job
        del self._jobs[job.name]
        self._histories.pop(job.name, None)
        for connection in [c for c, (its, _) in self._at_work.items() if its is job]:
            del self._at_work[connection]
        for shard, nbytes in load_of(job.tensors.infos()).items():
            self.links.place(shard, -nbytes)
        job.drop()
        return self._shard.drop([job.name]) if job.name in self._shard.jobs else 0

    def _note_dropped(self, job: Job) -> None:
        """Remember which incarnations the workers of a job had that is dropped."""
        issued = job.workers.issued
        self._shard.issued = max(self._shard.issued, issued)
        self._former.pop(job.name, None)
        self._former[job.name] = issued
        if len(self._former) > _NAMES_KEPT:
            del self._former[next(iter(self._former))]

    def _is_of_dropped(self, name: str, incarnation: int) -> bool:
        """Return whether a worker of a job of that name worked on one that was dropped.

        After a return to a checkpoint that is known by the name, if the job was dropped while this server
        runs: its workers, who are all out, may not have heard of that before the return.
        """
        found = self._jobs.get(name)
        born = None if found is None else found.born
        former = self._former.get(name, 0) if born is None else min(self._former.get(name, 0), born)
        return incarnation <= former or is_of_dropped(
            incarnation, self.links.timeline, self._shard.issued, born
        )

    def _is_dropped(self, call: Call, job: Job, freed: int) -> None:
        """Go on when it is durable that a job was dropped: another one may have its name from now on."""
        failpoint("drop.durable")
        if self._dropping.get(job.name) is job:
            del self._dropping[job.name]
        job.is_gone.set()
        told = self.links.keep(self.kept())  # before any shard hears of another one
        _log.info("job %s was dropped", job.name, extra=_about("job.dropped", job))
        self._spawn(call.answer_with(self._answer_dropped(call, job, freed, told)))

    @staticmethod
    async def _answer_dropped(
        call: Call, job: Job, freed: int, told: Awaitable[tuple[int, tuple[int, ...]]]
    ) -> None:
        freed_elsewhere, away = await told
        failpoint("drop.told")
        call.reply(Dropped(job.name, len(tuple(job.tensors)), freed + freed_elsewhere, away))

    # --- who comes

    def attach(self, call: Call, session: Session, request: Attach) -> None:
        """Tell a client that is no worker where the shards are."""
        self._check_not_at_work(call.connection)
        job = self._job(request.job) if request.job is not None else self._only_job()
        session.job = job.name
        plan = job.ledger.plan if job.ledger else None
        call.reply(Attached(job.name, self.links.addresses(), job.staleness, plan, self.links.timeline))

    def join(self, call: Call, session: Session, request: Join) -> None:
        """Make the client a worker; answer when the job may start."""
        if request.former is not None and self._is_of_dropped(request.job or "", request.former):
            raise job_dropped(request.job or "")
        former = self._jobs.get(request.job or "")
        dropped = self._dropping.get(request.job or "")
        if dropped is not None:
            self._spawn(call.answer_with(self._join_later(dropped.is_gone, None, call, session, request)))
            return
        job = self._only_job() if request.job is None else former or self._new_job(request.job, request)
        self._replace_absent(job, request)
        taken_back = job.leaving.get(request.name or "")
        if taken_back is not None:
            self._spawn(call.answer_with(self._join_later(taken_back, job, call, session, request)))
            return
        worker = job.workers.find(request.token)
        if worker is None:
            self._check_not_at_work(call.connection)
            worker = self._new_worker(job, request)
            _log.info(
                "%s joined job %s from %s", worker.name, job.name, call.connection.peer,
                extra=_about("worker.joined", job, worker),
            )  # fmt: skip
        session.job, session.worker, session.incarnation = job.name, worker.id, worker.incarnation
        self._is_at(call.connection, job, worker)
        job.joining[worker.id] = call
        if job.workers.started:
            self._let_in(job)
            joining, job.joining = job.joining, {}
            self._spawn(self._admit(job, joining))

    def _replace_absent(self, job: Job, request: Join) -> None:
        """Have a worker be out whose connection has ended, if another process comes under its name."""
        former = job.workers.named(request.name)
        if former is None or former.token == request.token:
            return
        if all(worker is not former for _, worker in self._at_work.values()):
            self._check_settings(job, request)
            job.workers.replaced(former)
            _log.warning(
                "%s of job %s is dead: another process has come in its place", former.name, job.name,
                extra=_about("worker.dead", job, former),
            )  # fmt: skip
            self._is_out(job, former)

    async def _join_later(
        self, free: asyncio.Event, job: Job | None, call: Call, session: Session, request: Join
    ) -> None:
        """Join when the name is free: what the worker's former self held would pass for its own.

        So it is with the name of a job that is being dropped; ``job`` is None then.
        """
        await free.wait()
        if job is not None and job.is_dropped:
            raise job_dropped(job.name)
        if call.connection.is_open:
            self.join(call, session, request)

    def _new_worker(self, job: Job, request: Join) -> Worker:
        self._check_settings(job, request)
        now = self._clock()
        ledger = job.ledger
        if ledger is None and request.plan is not None:
            ledger = Ledger(request.plan, now)
        worker = job.workers.join(request.name, request.token, now)
        job.ledger = ledger
        self._jobs[job.name] = job
        self._record(job, changed=("job", "decisions"))
        if ledger is not None:
            ledger.join(worker.id)
            self._record(job, ["ledger.join", job.name, worker.id])
        return worker

    def _let_in(self, job: Job) -> None:
        """Say at which step those who are new begin, before any epoch tells of them."""
        for worker in job.workers.live():
            if worker.begins is None:
                first = job.decisions.first_step(worker.id) if job.staleness == 0 else self._furthest(job)
                worker.begins = worker.clock = first

    async def _admit(self, job: Job, joining: dict[int, Call]) -> None:
        """Answer those who may start, when every shard knows them."""
        try:
            await self._announce(job)
        except Exception as error:
            for call in joining.values():
                call.fail_with(error)
            return
        if job.is_dropped:
            for call in joining.values():
                call.fail(job_dropped(job.name))
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
            joined = Joined(
                *identity,
                clock,
                self.links.addresses(),
                *beat,
                plan,
                self.links.timeline,
                job.agreed.rate,
                job.drifts.count,
            )
            # If that were forgotten, nobody would miss its heartbeats, nor hear its votes.
            self._record(job, then=partial(call.reply, joined), changed=("job",))

    def _new_job(self, name: str, request: Join) -> Job:
        staleness = math.inf if request.staleness is None else request.staleness
        _check_backup(request.backup_workers)
        born = max(self._shard.issued, first_incarnation(self.links.timeline) - 1) + self._skipped
        workers = Membership(request.workers or 1, self._settings, born + 1)
        return Job(
            name=name,
            born=born,
            staleness=staleness,
            backup=request.backup_workers or 0,
            workers=workers,
            decisions=StepDecisions(len(self.links)),
            made_with=staleness,
            began=self._clock(),
        )

    def _check_settings(self, job: Job, request: Join) -> None:
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
                _log.info(
                    "a worker of job %s came back too late: %s", job.name, error,
                    extra=_about("worker.returned.late", job),
                )  # fmt: skip

    def _is_at(self, connection: Connection, job: Job, worker: Worker) -> None:
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
        _log.info(
            "%s left job %s after %d steps", worker.name, job.name, request.clock,
            extra=_about("worker.left", job, worker),
        )  # fmt: skip
        self._record(job, then=lambda: call.reply(Empty()), changed=("job",))

    def connection_lost(self, connection: Connection) -> None:
        """Take note that a worker's or a shard's connection has ended; either may come back."""
        self.links.lost(connection)
        job, worker = self._at_work.pop(connection, (None, None))
        if job is not None and worker is not None:
            job.workers.disconnected(worker, self._clock())
            _log.info(
                "the connection of %s of job %s ended without a goodbye", worker.name, job.name,
                extra=_about("worker.disconnected", job, worker),
            )  # fmt: skip

    def tick(self, period: float) -> None:
        """Look after those that are silent; to be called every ``period`` seconds."""
        now = self._clock()
        asleep = now - self._ticked - period
        self._ticked = now
        if asleep > self._settings.heartbeat:
            _log.warning("this server was not running for %.1f s; nobody is blamed for that", asleep)
            self.links.excuse(asleep, now)
        self._note_history(now)
        waits = self.links.waits()
        if not self.serving.is_set():
            self.links.watch(now)
            return  # they cannot reach us yet
        for job in tuple(self._jobs.values()):
            if asleep > self._settings.heartbeat:
                job.workers.excuse(asleep, now)
            self._note_clocks(job, now)
            for worker, reason in job.workers.bury(now, self._waited_for(job, waits)):
                _log.warning(
                    "%s of job %s is dead: %s", worker.name, job.name, reason,
                    extra=_about("worker.dead" if worker.state == "dead" else "worker.left", job, worker),
                )  # fmt: skip
                self._is_out(job, worker)
        self.links.watch(now)

    def _note_history(self, now: float) -> None:
        """Have the curves go on, for whoever looks at them later."""
        self.links.note_history(now)
        for job in self._jobs.values():
            live = job.workers.live()
            if live and job.name not in self._histories:
                self._histories[job.name] = JobHistory(self._settings.heartbeat)
            if live:
                self._histories[job.name].note(now, live)

    def _note_clocks(self, job: Job, now: float) -> None:
        """Take from this server's own shard how far the workers are, which is newer than their heartbeats."""
        store = self._shard.jobs.get(job.name)
        if store is not None:
            for worker in job.workers.live():
                if worker.id in store.clocks.members:
                    job.workers.reached(worker, store.clocks.clock(worker.id), now)

    def _waited_for(self, job: Job, waits: Sequence[Wait]) -> set[int]:
        """Return the workers that keep others waiting: for a step, for chunks, for a tensor."""
        if not self.links.all_open():
            return set()  # what is missing may be on its way to a server that is away
        names = {name for wait in waits if wait.job == job.name for name in wait.waiting_for}
        late = {worker.id for worker in job.workers if worker.name in names}
        if job.decisions.since is not None:
            late |= self._missing(job)
        if job.idle and job.ledger is not None and not job.ledger.plan.stream:
            late |= set(job.ledger.leases())
        return late | {creator.id for _, creator, _ in job.tensors.waits()}

    def _missing(self, job: Job) -> set[int]:
        return job.decisions.waiting_for(job.live()) if job.staleness == 0 else set()

    def _is_out(self, job: Job, worker: Worker) -> None:
        """Have everybody go on without a worker."""
        for connection in [c for c, (_, w) in self._at_work.items() if w is worker]:
            del self._at_work[connection]
        joining = job.joining.pop(worker.id, None)
        if joining is not None:
            joining.fail(fenced(worker.id))
        for call, created in job.tensors.lost(worker):
            call.reply(created)
        if job.workers.started:
            job.leaving[worker.name] = asyncio.Event()
            self._decide(job)
            self._spawn(self._announce(job, [worker]))
        else:
            self._take_back(job, worker)

    # --- heartbeats and work

    def heartbeat(self, call: Call, session: Session, request: Heartbeat) -> None:
        """Take note of a worker's progress."""
        job, worker = self._worker(session, call.connection)
        job.workers.heartbeat(worker, request, self._clock())
        call.reply(job.agreed)

    def drift(self, call: Call, session: Session, request: Drift) -> None:
        """Let the first worker that has found a drift act on it, and raise the rate; or lower it again.

        Raises:
            BadRequest: the job learns from no stream, or nobody can know of so many drifts.
        """
        job, worker = self._worker(session, call.connection)
        plan = self._ledger(job).plan
        if not plan.stream:
            raise BadRequest("a job whose data is in chunks has no drifts", field="op", value=request.op)
        if request.known > job.drifts.count + _MOST_DRIFTS_UNDONE:
            raise BadRequest("there were not so many drifts", field="known", value=request.known)
        former, rate = job.drifts, job.rate
        if request.over:
            if job.rate == plan.raised_rate and request.known == job.drifts.count:
                self._change_rate(job, 1.0)
        else:
            job.drifts = job.drifts.acted_on(worker.id, request.known)
            job.agreed = replace(job.agreed, drifts=job.drifts.count)
            if job.drifts != former and plan.raised_rate != 1.0:
                self._change_rate(job, plan.raised_rate)
        if job.rate != rate:
            self._say_changed(job)
        acts = job.rate != rate if request.over else job.drifts.is_last(worker.id, request.known)
        self._spawn(call.answer_with(self._announce_and_reply(job, call, DriftHeard(acts, job.drifts.count))))

    def lease(self, call: Call, session: Session, request: Lease) -> None:
        """Hand out work, at once or when there is some."""
        job, worker = self._worker(session, call.connection)
        ledger = self._ledger(job)
        if self._answered_before(call, worker, request):
            return
        leased = ledger.lease(worker.id, request.seq)
        if leased.kind == "wait" and request.block and job.staleness == math.inf:
            job.idle.append((call, worker))
        else:
            self._hand_out(job, worker, call, leased)

    def _hand_out(self, job: Job, worker: Worker, call: Call, leased: Leased) -> None:
        worker.sequence.applied(call.seq, leased)
        request = (worker.id, worker.incarnation, call.seq, call.fingerprint)
        event = ["ledger.lease", job.name, *request, plain_leased(leased)]
        self._record(job, event, then=partial(call.reply, leased))

    def finish(self, call: Call, session: Session, request: Finish) -> None:
        """Count a chunk as done."""
        job, worker = self._worker(session, call.connection)
        ledger = self._ledger(job)
        if self._answered_before(call, worker, request):
            return
        ledger.finish(worker.id, request, self._clock())
        worker.moved = self._clock()
        worker.sequence.applied(request.seq, Empty())
        event = ["ledger.finish", job.name, worker.id, worker.incarnation, plain_finish(request)]
        self._record(job, event, then=lambda: call.reply(Empty()))
        self._serve_idle(job)

    def _answered_before(self, call: Call, worker: Worker, request: Lease | Finish) -> bool:
        """Return whether a request is a retry, which is answered as the first try was."""
        fingerprint = fingerprint_of_work(request)
        if worker.sequence.is_new(request.seq):
            worker.sequence.admit(request.seq, fingerprint, call)
            call.admitted(worker.sequence, request.seq, fingerprint)
            return False
        answer, outcome = worker.sequence.retry(request.seq, fingerprint, call)
        if isinstance(outcome, PSError):
            call.fail(outcome)
        elif answer and outcome is not None:
            call.reply(outcome)
        return True

    def _take_back(self, job: Job, worker: Worker) -> None:
        idle, job.idle = job.idle, []
        for call, other in idle:
            if other is worker:
                call.fail(fenced(worker.id))
            else:
                job.idle.append((call, other))
        if job.ledger is not None:
            done = self._reached(job, worker)
            job.ledger.give_back(worker.id)
            self._record(job, ["ledger.give-back", job.name, worker.id, [*map(list, done.items())]])
            self._serve_idle(job)
        taken_back = job.leaving.pop(worker.name, None)
        if taken_back is not None:
            taken_back.set()

    def _reached(self, job: Job, worker: Worker) -> Mapping[int, int]:
        """Tell the ledger how far the worker's chunks are, as far as its updates have been applied."""
        store = self._shard.jobs.get(job.name)
        done = {} if store is None else store.cursors.get((worker.id, worker.incarnation), {})
        if job.ledger is not None:
            for lease, batches in done.items():
                job.ledger.reached(worker.id, lease, batches)
        return done

    def _serve_idle(self, job: Job) -> None:
        """Answer those who wait for work: with what has come up, or else, where steps are kept, to wait."""
        idle, job.idle = job.idle, []
        for call, worker in idle:
            leased = self._ledger(job).lease(worker.id, call.seq)
            if leased.kind == "wait" and job.staleness == math.inf:
                job.idle.append((call, worker))
            else:
                self._hand_out(job, worker, call, leased)

    def work_of(self, session: Session, connection: Connection) -> tuple[Job, Worker]:
        """Return the job and worker of a session, as ``_worker`` does.

        Raises:
            NotReady: the state is about to be replaced.
            NotAMember, Fenced: it is none.
        """
        if not self.serving.is_set():
            raise NotReady("the cluster is not complete; ask again")
        return self._worker(session, connection)

    def keep_rates(self, restored: Mapping[str, Job], diverged: str, back: Return) -> None:
        """Have the jobs that are taken from a checkpoint keep their rates; the diverged one's is lower.

        What rates were raised for is kept with them: else nobody would lower them.
        """
        for name in restored.keys() & self._jobs.keys():
            job, former = restored[name], self._jobs[name]
            job.rate, job.returns, job.drifts = former.rate, former.returns, former.drifts
            if name == diverged:
                job.rate, job.returns = back.rate, (*former.returns, back)

    # --- tensors

    def create(self, call: Call, session: Session, request: Create) -> None:
        """Make a tensor, or say where it is; the answer may have to wait until it is filled."""
        job, worker = self._worker(session, call.connection)
        check_spec(request.spec)
        created = job.tensors.create(request.name, request.spec, worker, call, self._placed)
        if created is not None:
            self._record(job, then=partial(call.reply, created), changed=("tensors",))

    def _placed(self, spec: Spec) -> tuple[Block, ...]:
        blocks = place_tensor(spec, self.links.loads())
        for shard, nbytes in load_of([TensorInfo("new", spec, blocks)]).items():
            self.links.place(shard, nbytes)
        return blocks

    def initialised(self, call: Call, session: Session, request: Initialised) -> None:
        """Note that a tensor is filled."""
        job, _ = self._worker(session, call.connection)
        if not self._undisturbed.is_set():  # it is in the checkpoint on all shards, or on none
            self._spawn(call.answer_with(self._initialised_later(call, session, request)))
            return
        waiting = job.tensors.initialised(request.name, request.attempt)

        def answer() -> None:
            call.reply(Empty())
            for other, created in waiting:
                other.reply(created)

        self._record(job, then=answer, changed=("tensors",))

    async def _initialised_later(self, call: Call, session: Session, request: Initialised) -> None:
        await self._undisturbed.wait()
        self.initialised(call, session, request)

    def describe(self, call: Call, session: Session, request: Describe) -> None:
        """Say what tensors are and where."""
        found = self._job_of(session).tensors.describe(request.names)
        payload = CATALOGUE.encode(Catalogue(found))
        call.reply(Described(CATALOGUE.parts(payload)), (payload,))

    # --- status

    def status(self, call: Call, request: Status) -> None:
        """Report the state of the cluster: the same to all who ask in one turn of the event loop.

        It takes long to tell, and one client may ask for it a thousand times in one breath. Each time is
        answered before the next one is read: else all of them would wait for a client that reads none.
        """
        if self._told is None:
            self._told = STATUS.encode(self.cluster_status())
            asyncio.get_running_loop().call_soon(self._forget_told)
        call.reply(StatusReport(STATUS.parts(self._told)), (self._told,))

    def _forget_told(self) -> None:
        self._told = None

    def cluster_status(self) -> ClusterStatus:
        """Return the state of the cluster."""
        now = self._clock()
        shard_waits = self.links.waits()
        jobs = tuple(self._job_status(job, now, shard_waits) for job in self._jobs.values())
        return ClusterStatus(
            protocol.__version__, now - self._began, self.links.status(), jobs, self.durability()
        )

    def _job_status(self, job: Job, now: float, shard_waits: Sequence[Wait]) -> JobStatus:
        store = self._shard.jobs.get(job.name)
        tensors = tuple(
            TensorStatus(
                info.name,
                info.spec.dtype,
                info.spec.shape,
                info.spec.optimizer.name,
                len(info.blocks),
                info.spec.table.dim if info.spec.table is not None else 0,
            )
            for info in job.tensors
        )
        furthest = self._furthest(job)
        self._note_clocks(job, now)
        leases = job.ledger.leases() if job.ledger else {}
        past = self._histories.get(job.name)
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
            history=past.status(now) if past is not None else History(),
            rate=job.rate,
            drifts=job.drifts.count,
            returns=job.returns,
        )

    def waits(self) -> list[Wait]:
        """Return who waits for whom in steps, at every staleness."""
        now = self._clock()
        steps = [wait for job in self._jobs.values() for wait in self._step_wait(job, now)]
        return [*steps, *self.links.waits()]

    def _waits(self, job: Job, now: float) -> Iterable[Wait]:
        waiting = job.workers.waiting()
        if waiting:
            what = f"start with {job.workers.needed} workers"
            yield Wait(job.name, 0, what, len(waiting), (), now - job.began)
        yield from self._step_wait(job, now)
        if (
            job.idle and job.ledger is not None and not job.ledger.plan.stream
        ):  # a stream has no end to wait for
            since = min(call.age() for call, _ in job.idle)
            holders = set(job.ledger.leases())
            yield Wait(job.name, 0, "chunks", len(job.idle), self._names(job, holders), since)
        for name, creator, asks in job.tensors.waits():
            age = max(call.age() for call in asks)
            yield Wait(job.name, 0, f"tensor {name}", len(asks), (creator.name,), age)

    def _step_wait(self, job: Job, now: float) -> Iterable[Wait]:
        decisions, missing = job.decisions, self._missing(job)
        if missing and decisions.since is not None:
            names = self._names(job, missing)
            waiting = len(job.live()) - len(missing)
            yield Wait(job.name, 0, f"step {decisions.step}", waiting, names, now - decisions.since)

    def _names(self, job: Job, workers: Iterable[int]) -> tuple[str, ...]:
        wanted = set(workers)
        return tuple(worker.name for worker in job.workers if worker.id in wanted)[:NAMED]

    def deaths(self) -> dict[str, int]:
        """Return how many workers of each job were declared dead."""
        return {job.name: job.workers.deaths for job in tuple(self._jobs.values())}

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

    def _only_job(self) -> Job:
        if len(self._jobs) != 1:
            raise UnknownJob(
                "name the job: without a name the cluster must have exactly one",
                field="jobs",
                value=", ".join(self._jobs) or "(none)",
            )
        return next(iter(self._jobs.values()))

    def _job(self, name: str | None) -> Job:
        job = self._jobs.get(name or "")
        if job is None:
            raise UnknownJob("no worker has made a job of that name", field="job", value=name)
        return job

    def _check_not_at_work(self, connection: Connection) -> None:
        job, worker = self._at_work.get(connection, (None, None))
        if job is not None and worker is not None:
            raise BadRequest("this connection's worker has joined a job", field="job", value=job.name)

    def _worker(self, session: Session, connection: Connection) -> tuple[Job, Worker]:
        """Return the job and worker of a session; it was heard of on this connection.

        Raises:
            NotAMember: the session is no worker's.
            Fenced: its worker's incarnation is out.
            JobDropped: its job was dropped.
        """
        job = self._job_of(session)
        if session.worker is None:
            raise NotAMember("join the job first", field="worker", value=session.worker)
        worker = job.workers.get(session.worker, session.incarnation)
        self._is_at(connection, job, worker)
        return job, worker

    def _job_of(self, session: Session) -> Job:
        name = session.job or ""
        if session.incarnation is not None and self._is_of_dropped(name, session.incarnation):
            raise job_dropped(name)
        if session.worker is not None and name not in self._jobs:
            raise fenced(session.worker)  # the job went with a timeline that is over, or was lost
        return self._job(session.job)

    def _ledger(self, job: Job) -> Ledger:
        if job.ledger is None:
            raise BadRequest("the job was made without a plan of its data", field="job", value=job.name)
        return job.ledger


def _about(event: Event, job: Job, worker: Worker | None = None) -> dict[str, object]:
    """Return the fields of a log line about a job, and a worker of it."""
    who = {} if worker is None else {"worker": worker.name}
    return about(event, job=job.name, epoch=job.workers.epoch, **who)


def _check_backup(backup: int | None) -> None:
    if backup is not None and backup > _MOST_BACKUP:
        raise BadRequest(f"at most {_MOST_BACKUP} are possible", field="backup_workers", value=backup)
