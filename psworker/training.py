"""A worker's part in a job: lease a chunk, survey it, train on it or evaluate it, and report it.

What overlaps: the next chunk is leased and read in a thread while this one is trained on; ``psworker.steps``
says what else.

A worker that was declared dead finds its calls refused. It joins again and goes on with other chunks: those
that it had leased went to others. It does the same where the cluster has gone back to a checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import BadRequest, CheckpointFailed, Fenced, HasDiverged
from protocol.events import about
from protocol.measures import MORE_IS_BETTER, derived
from protocol.messages import Leased
from protocol.optimizers import Optimizer
from psworker.client import Client
from psworker.data import Batch, Source
from psworker.data.magnitudes import unscaled
from psworker.data.packed import PackedBatch
from psworker.divergence import LossWatch
from psworker.errors import DataError, JobError, TrainingDiverged
from psworker.job import TrainSettings, nearest
from psworker.metrics import WorkerMetrics
from psworker.models import EvaluatedModel, Model
from psworker.models.calls import measures_of, prepared_of
from psworker.models.model import HashedModel, PreparedModel
from psworker.pieces import Compute, accumulated, local_rate, stepped
from psworker.served import ServedModel
from psworker.steps import Steps
from psworker.surveying import add_statistics, totals_of
from psworker.units import Units, order_of

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)

_EVALUATED: Final = 4096  # rows whose features are pulled at once

T = TypeVar("T")


class _Work(NamedTuple):
    """A piece of work: its rows, or the statistics of them, or neither where there is nothing to do."""

    leased: Leased
    rows: Batch | None = None
    statistics: dict[str, npt.NDArray[np.float64]] | None = None


class Trainer:
    """One worker's part in a job.

    Args:
        client: the connection to the cluster.
        model: computes gradients.
        source: reads chunks.
        settings: how to train.
        seed: the job's; with epoch and chunk it decides the order of rows.
        metrics: where steps are counted.
    """

    def __init__(
        self,
        client: Client,
        model: Model,
        source: Source,
        settings: TrainSettings,
        *,
        seed: int,
        metrics: WorkerMetrics,
    ) -> None:
        self._client = client
        self._given = model, source
        self._model = model  # prepared
        self._source = source  # informed
        self._settings = settings
        self._seed = seed
        self._metrics = metrics
        self._stopped = False
        self._steps: Steps | None = None  # none until the survey is over
        self._reading = ThreadPoolExecutor(1, "data")
        self._computing = ThreadPoolExecutor(1, "compute")
        self._ahead: asyncio.Task[_Work] | None = None

    def stop(self) -> None:
        """Have ``run`` end after the mini-batch under way."""
        self._stopped = True

    async def run(self, optimizer: Optimizer) -> None:
        """Work until the job is finished or ``stop`` is called.

        Raises:
            TrainingDiverged: the losses are no longer those of a model that learns.
            PSError: the cluster refuses or is gone.
            DataError: a chunk cannot be read.
            JobError: the model or the optimizer cannot be used so.
        """
        try:
            while True:
                try:
                    await self._client.rejoin()  # if it has to
                    await self._work(optimizer)
                except Fenced:
                    await self._drop_ahead()
                except TrainingDiverged as error:
                    await self._drop_ahead()
                    await self._go_back(error, await self._unscaled())
                else:
                    return
                self._steps = None  # what was there may be gone
        finally:
            await self._drop_ahead()
            self._reading.shutdown(wait=False, cancel_futures=True)
            self._computing.shutdown(wait=False, cancel_futures=True)

    async def _unscaled(self) -> str:
        """Return what is wrong with the sizes of the columns, as far as anybody can tell."""
        try:
            return await self._in(self._reading, unscaled, self._source)
        except DataError:
            return ""

    async def _go_back(self, error: TrainingDiverged, sizes: str) -> None:
        """Have the job go back to its last checkpoint and on at a lower rate, if it is to."""
        what = error.step, error.loss, error.reason
        if self._settings.on_divergence == "stop":
            raise TrainingDiverged(*what, unscaled=sizes) from error.__cause__
        loss = math.nan if error.loss is None else error.loss
        try:
            rate = await self._client.diverged(loss)
        except HasDiverged as refused:
            raise TrainingDiverged(*what, refused=refused.message, unscaled=sizes) from refused
        _log.warning(
            "training diverged at step %d: %s; the job is back at its last checkpoint, and goes on with its "
            "learning rate times %g%s",
            error.step,
            error.reason,
            rate,
            sizes and f"; {sizes}",
            extra=about("work.diverged"),
        )

    async def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _work(self, optimizer: Optimizer) -> None:
        while not self._stopped:
            with self._metrics.phase("data"):
                work = await self._next(optimizer)
            leased = work.leased
            if leased.kind == "finished":
                return
            if work.statistics is not None:
                await add_statistics(self._client, leased, work.statistics)
            elif self._steps is None:
                await self._client.step()
            elif work.rows is None:
                await self._steps.wait()
            elif leased.kind == "train":
                self._ahead = asyncio.create_task(self._fetch(optimizer, block=False))
                await self._train(self._steps, leased, work.rows)
            else:
                await self._evaluate(self._steps, leased, work.rows)

    # --- data

    async def _next(self, optimizer: Optimizer) -> _Work:
        """Return a piece of work."""
        ahead, self._ahead = self._ahead, None
        work = await (self._fetch(optimizer, block=False) if ahead is None else ahead)
        if work.leased.kind == "wait":
            # What was asked for early may have come up since; asynchronous workers wait for it.
            work = await self._fetch(optimizer, block=self._client.staleness == math.inf)
        return work

    async def _fetch(self, optimizer: Optimizer, *, block: bool) -> _Work:
        leased = await self._client.lease(block=block)
        if leased.kind == "survey":
            source = self._given[1]
            return _Work(leased, None, await self._in(self._reading, source.statistics, leased.chunk))
        if leased.kind not in ("train", "evaluate"):
            return _Work(leased)
        if self._steps is None:
            self._steps = await self._prepared(optimizer)
        read = self._source.read
        if leased.kind == "train":
            return _Work(leased, await self._in(self._reading, read, leased.chunk, "train", leased.part))
        return _Work(leased, await self._in(self._reading, read, leased.chunk, "holdout"))

    # --- what has to be there before the first step

    async def _prepared(self, optimizer: Optimizer) -> Steps:
        """Make of source and model what the data tells, and create the model's tensors."""
        model, source = self._given
        if source.wants_survey:
            source = await self._in(self._reading, source.informed, await totals_of(self._client))
        if isinstance(model, PreparedModel):
            rows = await self._in(self._reading, source.read, 0, "train")
            model = await self._in(self._computing, prepared_of, model, rows)
        self._model, self._source = model, source
        served = ServedModel(self._client, model, optimizer, seed=self._seed, hashed=source.hashed)
        await served.create()
        if self._settings.on_divergence == "lower-rate":
            await self._keep_the_beginning()
        steps = Steps(
            served,
            self._compute(model, optimizer),
            self._computing,
            LossWatch(self._settings.diverged_above, self._settings.unit_rows),
            self._metrics,
            hashed=source.hashed,
        )
        if not source.hashed:
            await steps.pull()
        return steps

    async def _keep_the_beginning(self) -> None:
        """See that there is something to go back to, before anything can diverge."""
        try:
            await self._client.prepared()
        except (BadRequest, CheckpointFailed) as error:
            _log.warning(
                'there is no checkpoint that [train] on-divergence = "lower-rate" could go back to: %s',
                error.message,
            )

    def _compute(self, model: Model, optimizer: Optimizer) -> Compute:
        per_feature: frozenset[str] = frozenset()
        if self._source.hashed and isinstance(model, HashedModel):
            per_feature = frozenset(model.per_feature)
        how = {"size": self._settings.batch_size, "per_feature": per_feature}
        if self._settings.local_steps > 1:
            lr = local_rate(model, optimizer)
            return partial(stepped, model, lr=lambda: lr * self._client.rate, **how)  # type: ignore[arg-type]
        return partial(accumulated, model, **how)  # type: ignore[arg-type]

    # --- training and evaluation

    async def _train(self, steps: Steps, leased: Leased, chunk: Batch) -> None:
        rng = np.random.default_rng((self._seed, leased.epoch, leased.chunk))
        order = order_of(self._settings.shuffle, len(chunk), rng)
        units = Units(chunk, order, self._settings.unit_rows)
        measures = await steps.train(units, leased, stopped=lambda: self._stopped)
        if measures is not None:  # else the lease goes back when this worker leaves
            skipped = self._source.skipped_in(leased.chunk, "train", leased.part)
            await self._client.finish(leased, len(chunk), measures, skipped)

    async def _evaluate(self, steps: Steps, leased: Leased, chunk: Batch) -> None:
        measures: dict[str, float] = {}
        if len(chunk) and isinstance(self._model, EvaluatedModel):
            measures = await self._measured(steps, self._model, chunk)
            self._check_monitor(measures)
        skipped = self._source.skipped_in(leased.chunk, "holdout")
        await self._client.finish(leased, len(chunk) if measures else 0, measures, skipped)

    def _check_monitor(self, measures: Mapping[str, float]) -> None:
        monitor, shown = self._settings.monitor, derived(measures)
        # A single chunk may be without what auc, f1 or r2 need, such as both classes.
        may_come = monitor in MORE_IS_BETTER and any(name.startswith("~") for name in measures)
        if self._settings.patience and monitor not in shown and not may_come:
            raise JobError(f'[train] monitor = "{monitor}" is not measured{nearest(monitor, shown)}')

    async def _measured(self, steps: Steps, model: EvaluatedModel, chunk: Batch) -> dict[str, float]:
        """Return the measures of a chunk.

        Piece by piece, where the rows of hashed features are pulled, or packed ones written out.
        """
        in_pieces = chunk.keys is not None or isinstance(chunk, PackedBatch)
        size = _EVALUATED if in_pieces else len(chunk)
        sums: dict[str, float] = {}
        for start in range(0, len(chunk), size):
            piece = (
                chunk if size >= len(chunk) else chunk.take(np.arange(start, min(start + size, len(chunk))))
            )
            parameters = await steps.pull(piece.keys)
            found = await self._in(self._computing, measures_of, model, parameters, piece)
            weight = piece.total
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value * weight
        whole = chunk.total
        return {name: value / whole for name, value in sums.items()}

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
