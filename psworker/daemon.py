"""``psworker`` from start to end: data, model, cluster, training, and errors as exit codes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol.credentials import Access, Credentials
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.logs import Speaker
from protocol.errors import (
    AccessError,
    ClusterError,
    HasDiverged,
    JobDropped,
    JobMismatch,
    NotFinite,
    PSError,
    SpecMismatch,
    UnknownJob,
    Unreachable,
    WireError,
)
from protocol.events import about
from protocol.messages import Plan
from protocol.optimizers import Optimizer
from psworker.asking import fetch_plan
from psworker.client import connect
from psworker.errors import DataError, JobError, TrainingDiverged
from psworker.job import Job, difference, job_from_json, optimizer_of
from psworker.metrics import WorkerMetrics
from psworker.parts import Learner, part_of

__all__ = ["WorkerSettings", "exit_code", "work"]

_log = logging.getLogger(__name__)

_GRACE: Final = 5.0  # seconds for the mini-batch under way when the operator ends the worker


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is started with. ``job`` None: the cluster's only job; ``access``: who it is."""

    server: str
    job: Job | None
    name: str | None
    reconnect_for: float
    access: Access = field(default_factory=Access)


async def work(settings: WorkerSettings, metrics: WorkerMetrics, speaker: Speaker) -> None:
    """Do this worker's part of the job. When cancelled, leave the job in good order.

    From here on ``speaker`` tells which job it is, and who this worker is in it.

    Raises:
        JobError, DataError, PSError: see ``exit_code``.
    """
    job = settings.job or await _job_of_cluster(settings)
    speaker.tell = lambda: {"job": job.name, "worker": settings.name}
    optimizer = optimizer_of(job.optimizer)
    part = await part_of(job, settings.reconnect_for)
    metrics.skipped = part.skipped
    _log.info(
        "joining job %s at %s; workers that it starts with: %d", job.name, settings.server, job.train.workers
    )
    try:
        async with connect(
            settings.server,
            job.name,
            name=settings.name,
            staleness=job.train.staleness,
            workers=job.train.workers,
            backup_workers=job.train.backup_workers,
            reconnect_for=settings.reconnect_for,
            token_file=settings.access.token_file,
            tls=settings.access.tls,
            plan=part.plan,
        ) as client:
            speaker.tell = client.identity
            _log.info("%s works on job %s", client.name, job.name, extra=about("work.begins"))
            metrics.recovery = client.recovery
            client.report.skipped = lambda: sum(part.skipped().values())
            try:
                await _train(part.learner(client, metrics), optimizer)
            finally:
                _tell_skipped(part.skipped())
            if client.report.examples:
                _log.info("%s is done after %d steps", client.name, client.clock, extra=about("work.done"))
            else:
                _log.info(
                    "%s found nothing left to train in job %s; to train more, give it another [job] name",
                    client.name,
                    job.name,
                    extra=about("work.done"),
                )
    except JobMismatch as error:
        if error.field in ("plan", "chunks"):
            raise await _explained(settings, job, part.plan, error) from error
        raise


async def _job_of_cluster(settings: WorkerSettings) -> Job:
    try:
        plan = await fetch_plan(
            settings.server,
            None,
            reconnect_for=settings.reconnect_for,
            credentials=Credentials(settings.access),
        )
    except UnknownJob as error:
        raise UnknownJob(
            "the cluster has no job yet: give the first worker one with --job FILE"
            if error.value == "(none)"
            else "the cluster has several jobs: say which with --job FILE",
            field=error.field,
            value=error.value,
        ) from error
    if plan is None:
        raise UnknownJob("the cluster's job was made without a job file: give one with --job FILE")
    job = job_from_json(plan.text)
    if ":" in job.model.kind:  # code is run because its operator says so, never because a server does
        raise JobError(
            f'[model] kind = "{job.model.kind}" is what the cluster says; a class of one\'s own is only '
            "taken from a worker's own job file: give it with --job FILE"
        )
    return job


def _tell_skipped(skipped: Mapping[str, int]) -> None:
    if skipped:
        of_kinds = ", ".join(f"{rows} of {reason}" for reason, rows in sorted(skipped.items()))
        _log.warning("left out %d rows: %s", sum(skipped.values()), of_kinds)


async def _train(learner: Learner, optimizer: Optimizer) -> None:
    """Train; when cancelled, give the mini-batch under way a moment to complete."""
    training = asyncio.create_task(learner.run(optimizer))
    try:
        await asyncio.shield(training)
    except asyncio.CancelledError:
        learner.stop()
        await asyncio.wait([training], timeout=_GRACE)
        raise
    finally:
        training.cancel()
        await asyncio.gather(training, return_exceptions=True)


async def _explained(settings: WorkerSettings, job: Job, plan: Plan, error: JobMismatch) -> JobMismatch:
    """Say in which key two jobs of one name differ."""
    other = await fetch_plan(
        settings.server, job.name, reconnect_for=0.0, credentials=Credentials(settings.access)
    )
    if other is None:
        return error
    what = (
        difference(plan.text, other.text)
        if other.text != plan.text
        else f"this worker's data has {plan.chunks} chunks, the job's {other.chunks}: is it the same file?"
    )
    return JobMismatch(f"the cluster has another job of that name: {what}", field="job", value=job.name)


def exit_code(error: Exception) -> ExitCode | None:
    """Return the exit code that stands for ``error``; None if it is a defect of ours."""
    match error:
        case JobError():
            return ExitCode.USAGE
        case DataError():
            return ExitCode.DATA_UNREADABLE
        case Unreachable():
            return ExitCode.UNREACHABLE
        case NotFinite() | HasDiverged() | TrainingDiverged():
            return ExitCode.DIVERGED
        case JobMismatch() | UnknownJob() | JobDropped() | SpecMismatch():
            return ExitCode.JOB_MISMATCH
        case WireError() | AccessError():
            return ExitCode.REFUSED
        case ClusterError():
            return ExitCode.CLUSTER_LOST
        case PSError():
            return ExitCode.USAGE
        case _:
            return None
