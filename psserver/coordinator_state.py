"""The coordinator's state as plain data, and back: for checkpoints, and for what a log says came after.

A log's documents are ("job", name), ("decisions", name) and ("tensors", name), each replaced as a whole. The
chunk ledger, which may be long, is told by its events:

    ["ledger.join", job, worker]
    ["ledger.lease", job, worker, incarnation, seq, leased]
    ["ledger.finish", job, worker, incarnation, finish]
    ["ledger.give-back", job, worker, done]

    ["job.drop", job, issued]       no incarnation above ``issued`` was of a job that was dropped

Nothing of a job of that name that was made anew is in the batch of this last one: see ``psserver.journal``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import BadRequest, CheckpointUnusable
from protocol.fields import array_decoder, array_encoder
from protocol.messages import WORK_KINDS, Empty, Finish, Leased, Plan
from protocol.sequences import fingerprint_of_work
from protocol.status import Return
from psserver.catalogue import TensorCatalogue
from psserver.coordinated_job import Drifts, Job
from psserver.decisions import StepDecisions
from psserver.durability.log import Batch
from psserver.leases import Ledger
from psserver.membership import FailureSettings, Membership
from psserver.saved_state import AnyNumber, as_text

__all__ = [
    "job_doc",
    "job_state",
    "plain_finish",
    "plain_leased",
    "replay_job",
    "restored_job",
    "restored_jobs",
]

plain_leased: Final = array_encoder(Leased)
plain_finish: Final = array_encoder(Finish)
_leased_from_plain: Final = array_decoder(Leased)
_finish_from_plain: Final = array_decoder(Finish)
_plain_plan: Final = array_encoder(Plan)
_plan_from_plain: Final = array_decoder(Plan)
_plain_drifts: Final = array_encoder(Drifts)
_drifts_from_plain: Final = array_decoder(Drifts)


@dataclass(frozen=True, slots=True)
class _SavedReturn:
    """What is saved of a return after divergence."""

    step: int
    loss: AnyNumber
    checkpoint: int
    timeline: int
    rate: float


_plain_return: Final = array_encoder(_SavedReturn)
_return_from_plain: Final = array_decoder(_SavedReturn)


def job_doc(job: Job, what: str) -> Any:
    """Return one of a job's documents as it is now."""
    match what:
        case "job":
            return _settings(job)
        case "decisions":
            return job.decisions.state()
        case _:
            return job.tensors.state()


def _settings(job: Job) -> dict[str, Any]:
    return {
        "staleness": _plain_number(job.staleness),
        "made_with": _plain_number(job.made_with),
        "backup": job.backup,
        "born": job.born,
        "since": job.since,
        "rate": job.rate,
        "returns": [_saved_return(one) for one in job.returns],
        "drifts": _plain_drifts(job.drifts),
        "plan": None if job.ledger is None else _plain_plan(job.ledger.plan),
        "workers": job.workers.state(),
    }


def _saved_return(one: Return) -> Any:
    saved = _SavedReturn(one.step, as_text(one.loss), one.checkpoint, one.timeline, one.rate)
    return _plain_return(saved)


def _return(plain: Any) -> Return:
    saved: _SavedReturn = _return_from_plain(plain, "returns")
    return Return(saved.step, float(saved.loss), saved.checkpoint, saved.timeline, saved.rate)


def _plain_number(value: float) -> float | str:
    return "inf" if value == math.inf else value


def _number(plain: float | str) -> float:
    return math.inf if plain == "inf" else float(plain)


def job_state(job: Job, now: float) -> dict[str, Any]:
    """Return all of a job for a checkpoint."""
    ledger = None if job.ledger is None else job.ledger.state(now)
    return {
        "name": job.name,
        "job": _settings(job),
        "decisions": job.decisions.state(),
        "tensors": job.tensors.state(),
        "ledger": ledger,
        "furthest": job.furthest,
    }


def restored_job(state: Mapping[str, Any], shards: int, failure: FailureSettings, now: float) -> Job:
    """Return the job that ``job_state`` saw.

    Raises:
        BadRequest: the state is not whole.
    """
    try:
        settings = state["job"]
        job = _job(state["name"], settings, shards, failure, now)
        job.decisions = StepDecisions.restored(state["decisions"], shards)
        job.tensors = TensorCatalogue.restored(state["tensors"])
        job.furthest = state["furthest"]
        if state["ledger"] is not None:
            plan = _plan_from_plain(settings["plan"], "plan")
            job.ledger = Ledger.restored(plan, state["ledger"], now)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadRequest("the saved state is not whole", field="state", value=repr(error)) from error
    return job


def restored_jobs(
    state: Mapping[str, Any], shards: int, failure: FailureSettings, now: float
) -> dict[str, Job]:
    """Return the jobs that a checkpoint's coordinator had.

    Raises:
        CheckpointUnusable: the state is not whole.
    """
    try:
        jobs = [restored_job(one, shards, failure, now) for one in state["jobs"]]
    except (KeyError, TypeError, BadRequest) as error:
        raise CheckpointUnusable(f"the coordinator's state is not whole: {error}", field="state") from error
    return {job.name: job for job in jobs}


def _job(name: str, settings: Mapping[str, Any], shards: int, failure: FailureSettings, now: float) -> Job:
    staleness = _number(settings["staleness"])
    return Job(
        name=name,
        staleness=staleness,
        backup=settings["backup"],
        workers=Membership.restored(settings["workers"], failure, now),
        decisions=StepDecisions(shards),
        made_with=_number(settings["made_with"]),
        began=now,
        born=settings.get("born", 0),
        since=settings["since"],
        rate=settings["rate"],
        returns=tuple([_return(plain) for plain in settings["returns"]]),
        drifts=_drifts_from_plain(settings["drifts"], "drifts"),
    )


def replay_job(batch: Batch, jobs: dict[str, Job], shards: int, failure: FailureSettings, now: float) -> int:
    """Do what one batch of a log says.

    Returns:
        The highest incarnation of the jobs that it says were dropped; 0: none was.

    Raises:
        BadRequest: it says what no coordinator writes.
    """
    try:
        docs = [(str(key[0]), str(key[1]), doc) for key, doc in batch.docs.items() if len(key) == 2]
        for what, name, document in docs:
            if what == "job":
                _replay_settings(jobs, name, document, shards, failure, now)
        for what, name, document in docs:
            if what == "decisions":
                jobs[str(name)].decisions = StepDecisions.restored(document, shards)
            elif what == "tensors":
                jobs[str(name)].tensors = TensorCatalogue.restored(document)
        for event in batch.events:
            _replay_event(event, jobs, now)
        dropped = [event for event in batch.events if event[0] == "job.drop"]
        for _, name, _ in dropped:
            jobs.pop(name, None)
        return max((int(issued) for _, _, issued in dropped), default=0)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadRequest("the log says what cannot be", field="log", value=repr(error)) from error


def _replay_settings(
    jobs: dict[str, Job],
    name: str,
    document: Mapping[str, Any],
    shards: int,
    failure: FailureSettings,
    now: float,
) -> None:
    fresh, known = _job(name, document, shards, failure, now), jobs.get(name)
    if known is not None:
        fresh.decisions, fresh.tensors, fresh.ledger = known.decisions, known.tensors, known.ledger
    if fresh.ledger is None and document["plan"] is not None:
        fresh.ledger = Ledger(_plan_from_plain(document["plan"], "plan"), now)
    jobs[name] = fresh


def _replay_event(event: Sequence[Any], jobs: Mapping[str, Job], now: float) -> None:
    if not str(event[0]).startswith("ledger."):
        return
    job = jobs[event[1]]
    ledger = job.ledger
    if ledger is None:
        raise BadRequest("a job without data has no ledger", field="job", value=job.name)
    match event:
        case ["ledger.join", _, worker]:
            ledger.join(worker)
        case ["ledger.lease", _, worker, life, seq, fingerprint, plain]:
            leased: Leased = _leased_from_plain(plain, "leased")
            if leased.kind in WORK_KINDS and ledger.lease(worker, seq) != leased:
                raise BadRequest(
                    "the ledger would have leased another chunk", field="chunk", value=leased.chunk
                )
            _complete(job, worker, life, seq, fingerprint, leased)
        case ["ledger.finish", _, worker, life, plain]:
            finish: Finish = _finish_from_plain(plain, "finish")
            ledger.finish(worker, finish, now)
            _complete(job, worker, life, finish.seq, fingerprint_of_work(finish), Empty())
        case ["ledger.give-back", _, worker, done]:
            for lease, batches in done:
                ledger.reached(worker, lease, batches)
            ledger.give_back(worker)


def _complete(
    job: Job, worker: int, incarnation: int, seq: int, fingerprint: int, outcome: Leased | Empty
) -> None:
    for one in job.workers:
        if (one.id, one.incarnation) == (worker, incarnation):
            one.sequence.completed(seq, fingerprint, outcome)
