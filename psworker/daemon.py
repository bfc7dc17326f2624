"""``psworker`` from start to end: data, model, cluster, training, and errors as exit codes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from protocol.credentials import Access, Credentials
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.logs import Speaker
from protocol.errors import (
    AccessError,
    ClusterError,
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
from psworker.client import Client, connect
from psworker.data import Source, open_source
from psworker.errors import DataError, JobError
from psworker.job import Job, difference, job_from_json, job_to_json, optimizer_of
from psworker.metrics import WorkerMetrics
from psworker.models import EvaluatedModel, Model, build_model
from psworker.training import Trainer

__all__ = ["WorkerSettings", "check", "exit_code", "work"]

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
    source, model = await asyncio.to_thread(_load, job)
    plan = Plan(
        job_to_json(job),
        chunks=source.chunks,
        epochs=job.train.epochs,
        evaluate_every=_evaluate_every(job, model),
        seed=job.seed,
        partition=job.data.partition,
        parts=job.parts,
    )
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
            plan=plan,
        ) as client:
            speaker.tell = client.identity
            _log.info("%s works on job %s", client.name, job.name, extra=about("work.begins"))
            metrics.recovery = client.recovery
            await _train(client, model, source, job, optimizer, metrics)
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
            raise await _explained(settings, job, plan, error) from error
        raise


def check(job: Job) -> None:
    """Raise what a worker of this job would raise at once, so that nobody starts a cluster to hear it.

    Raises:
        JobError, DataError: a setting, the model or the file cannot be used.
    """
    optimizer_of(job.optimizer)
    if job.data.source != "digits":  # which cannot be wrong, and takes a second to load
        _load(job)


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


def _evaluate_every(job: Job, model: Model) -> int:
    """Return after how many epochs there is something to evaluate, and somebody who can; 0: never."""
    if not job.eval.every or not job.eval.holdout:
        return 0
    if not isinstance(model, EvaluatedModel):
        _log.warning("%s has no method evaluate: the rows held out are not looked at", job.model.kind)
        return 0
    return job.eval.every


def _load(job: Job) -> tuple[Source, Model]:
    source = open_source(job.data, seed=job.seed, holdout=job.eval.holdout, parts=job.parts)
    return source, build_model(job.model, features=source.features, classes=source.classes, seed=job.seed)


async def _train(
    client: Client,
    model: Model,
    source: Source,
    job: Job,
    optimizer: Optimizer,
    metrics: WorkerMetrics,
) -> None:
    """Train; when cancelled, give the mini-batch under way a moment to complete."""
    trainer = Trainer(client, model, source, batch_size=job.train.batch_size, seed=job.seed, metrics=metrics)
    training = asyncio.create_task(trainer.run(optimizer))
    try:
        await asyncio.shield(training)
    except asyncio.CancelledError:
        trainer.stop()
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
        case NotFinite():
            return ExitCode.DIVERGED
        case JobMismatch() | UnknownJob() | SpecMismatch():
            return ExitCode.JOB_MISMATCH
        case WireError() | AccessError():
            return ExitCode.REFUSED
        case ClusterError():
            return ExitCode.CLUSTER_LOST
        case PSError():
            return ExitCode.USAGE
        case _:
            return None
