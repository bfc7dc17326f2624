"""What a worker's part of a job is: data in chunks, epoch after epoch, or a stream that does not end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from protocol.messages import Plan
from protocol.optimizers import Add, Optimizer
from psworker.client import Client
from psworker.data import Source, open_source
from psworker.data.bad_rows import BadRows
from psworker.data.magnitudes import unscaled
from psworker.data.tabular import TabularSource
from psworker.errors import DataError, JobError
from psworker.job import Job, StreamSettings, job_to_json, optimizer_of
from psworker.metrics import WorkerMetrics
from psworker.models import EvaluatedModel, Model, OwnRule, build_model
from psworker.online.opening import open_streams
from psworker.online.rows import Rows
from psworker.online.trainer import StreamTrainer
from psworker.pieces import check_pieces
from psworker.training import Trainer

__all__ = ["Learner", "Part", "check", "part_of", "unscaled_columns"]

_log = logging.getLogger(__name__)


class Learner(Protocol):
    """Does a worker's part."""

    async def run(self, optimizer: Optimizer) -> None:
        """Work until the job is finished or ``stop`` is called."""

    def stop(self) -> None:
        """Have ``run`` end soon, and in good order."""


@dataclass(frozen=True, slots=True)
class Part:
    """``plan`` is what the coordinator is told of the work, ``learner`` makes who does it.

    ``skipped`` says how many rows have been left out so far, by reason.
    """

    plan: Plan
    learner: Callable[[Client, WorkerMetrics], Learner]
    skipped: Callable[[], Mapping[str, int]]


async def part_of(job: Job, reconnect_for: float) -> Part:
    """Open what a job learns from, and make its model.

    Args:
        job: what is trained.
        reconnect_for: seconds to keep trying while something is not there.

    Raises:
        JobError, DataError: a setting, the model or the data cannot be used.
    """
    if job.stream is None:
        return await _chunks(job)
    return await _stream(job, job.stream, reconnect_for)


def check(job: Job) -> None:
    """Raise what a worker of this job would raise at once, so that nobody starts a cluster to hear it.

    Raises:
        JobError, DataError: a setting, the model or the file cannot be used.
    """
    optimizer = optimizer_of(job.optimizer)
    if job.stream is not None:
        if job.stream.kind == "-":
            raise JobError(
                '[stream] source = "-" is the standard input of a psworker, which has to be started by hand: '
                "psctl up, and then ... | psworker"
            )
        _model_of_stream(job, job.stream)
    elif job.data.source != "digits":  # which cannot be wrong, and takes a second to load
        _load(job, optimizer)


def unscaled_columns(job: Job) -> str:
    """Return what is wrong with the sizes of a job's columns, and what to do; "": nothing is known to be."""
    if job.stream is not None:
        return ""
    try:
        return unscaled(open_source(job.data, seed=job.seed, holdout=job.eval.held_out, parts=job.parts))
    except DataError:
        return ""


# --- chunks


async def _chunks(job: Job) -> Part:
    source, model = await asyncio.to_thread(_load, job, optimizer_of(job.optimizer))
    plan = Plan(
        job_to_json(_resolved(job, source)),
        chunks=source.chunks,
        epochs=job.train.epochs,
        evaluate_every=_evaluate_every(job, model),
        seed=job.seed,
        partition=job.data.partition,
        parts=job.parts,
        survey=source.wants_survey,
        patience=job.train.patience,
        min_delta=job.train.min_delta,
        monitor=job.train.monitor,
        rate_factor=job.train.rate_factor,
        returns=job.train.returns,
    )

    def learner(client: Client, metrics: WorkerMetrics) -> Learner:
        return Trainer(client, model, source, job.train, seed=job.seed, metrics=metrics)

    return Part(plan, learner, lambda: source.skipped)


def _resolved(job: Job, source: Source) -> Job:
    """Return the job with what it leaves to the files, so that whoever predicts does without them.

    All workers find the same, or have other files; then it is right that the coordinator refuses one.
    """
    data = job.data
    if not isinstance(source, TabularSource):
        return job
    if not data.columns:
        data = replace(data, columns=source.columns)
    if data.kind == "libsvm" and not data.hashed:
        data = replace(data, dimensions=source.features)
    return replace(job, data=data)


def _evaluate_every(job: Job, model: Model) -> int:
    """Return after how many epochs there is something to evaluate, and somebody who can; 0: never."""
    if not job.eval.every or not job.eval.held_out:
        return 0
    if not isinstance(model, EvaluatedModel):
        _log.warning("%s has no method evaluate: the rows held out are not looked at", job.model.kind)
        return 0
    return job.eval.every


def _load(job: Job, optimizer: Optimizer) -> tuple[Source, Model]:
    source = open_source(job.data, seed=job.seed, holdout=job.eval.held_out, parts=job.parts)
    model = build_model(job.model, features=source.features, classes=source.classes, seed=job.seed)
    check_pieces(job.train, model, optimizer)
    _check_nothing_is_dropped(job, model, source)
    return source, model


def _check_nothing_is_dropped(job: Job, model: Model, source: Source) -> None:
    """Sums are right or wrong; gradients of which a few are dropped are gradients still."""
    adds = isinstance(model, OwnRule) and isinstance(model.optimizer, Add)
    if job.train.backup_workers and (adds or source.wants_survey):
        what = f"[model] {job.model.kind} adds" if adds else "the survey that [data] asks for adds"
        raise JobError(
            f"[train] backup-workers = {job.train.backup_workers} drops what the slowest push, and {what} up "
            "what is pushed; take 0"
        )


# --- streams


async def _stream(job: Job, stream: StreamSettings, reconnect_for: float) -> Part:
    rows, model = _model_of_stream(job, stream)
    bad_rows = BadRows(job.data, endless=True)
    streams = await open_streams(stream, workers=job.train.workers, reconnect_for=reconnect_for)
    told = job if job.data.columns else replace(job, data=replace(job.data, columns=rows.columns))
    plan = Plan(
        job_to_json(told),
        chunks=streams.partitions,
        epochs=1,
        evaluate_every=0,
        seed=job.seed,
        stream=True,
        raised_rate=stream.raised_rate if stream.on_drift == "raise-rate" else 1.0,
    )

    def learner(client: Client, metrics: WorkerMetrics) -> Learner:
        return StreamTrainer(
            client,
            model,
            streams,
            rows,
            bad_rows,
            stream,
            batch_size=job.train.batch_size,
            share=-(-streams.partitions // job.train.workers),
            seed=job.seed,
            metrics=metrics,
        )

    return Part(plan, learner, lambda: bad_rows.counts)


def _model_of_stream(job: Job, stream: StreamSettings) -> tuple[Rows, Model]:
    rows = Rows(job.data, stream.source[0], stream.format == "json", stream.fields)
    classes = len(job.data.classes) or None
    model = build_model(job.model, features=rows.features, classes=classes, seed=job.seed)
    adds = isinstance(model.optimizer if isinstance(model, OwnRule) else optimizer_of(job.optimizer), Add)
    if stream.decay < 1 and (not adds or job.data.hashed):
        raise JobError(
            f"[stream] decay = {stream.decay:g} makes old sums smaller, and there are none: it is for dense "
            "models whose optimizer adds, such as kmeans and linear-exact; others forget as they learn"
        )
    return rows, model
