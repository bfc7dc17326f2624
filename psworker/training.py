"""The training loop of a worker: lease a chunk, and for each mini-batch compute and push_pull.

What overlaps: the next chunk is leased and read in a thread while this one is trained on; and, where
the job is asynchronous, a mini-batch's push_pull is under way while the next one's gradient is computed
on the parameters of the one before. At a finite staleness a step is computed on the latest parameters only.

A worker that was declared dead finds its calls refused. It joins again and goes on with other chunks: those
that it had leased went to others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import Fenced
from protocol.messages import Leased
from protocol.optimizers import Optimizer
from psworker.client import Client
from psworker.data import Batch, Source, minibatches
from psworker.metrics import WorkerMetrics
from psworker.models import EvaluatedModel, Model
from psworker.models.calls import gradients_of, measures_of

__all__ = ["Trainer"]

Parameters = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")


class Trainer:
    """One worker's part in a job.

    Args:
        client: the connection to the cluster.
        model: computes gradients.
        source: reads chunks.
        batch_size: rows of a mini-batch.
        seed: the job's; with epoch and chunk it decides the order of rows.
        metrics: where steps are counted.
    """

    def __init__(
        self,
        client: Client,
        model: Model,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        metrics: WorkerMetrics,
    ) -> None:
        self._client = client
        self._model = model
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._metrics = metrics
        self._stopped = False
        self._names: tuple[str, ...] = ()
        self._parameters: Parameters = {}
        self._reading = ThreadPoolExecutor(1, "data")
        self._computing = ThreadPoolExecutor(1, "compute")
        self._ahead: asyncio.Task[tuple[Leased, Batch | None]] | None = None

    def stop(self) -> None:
        """Have ``run`` end after the mini-batch under way."""
        self._stopped = True

    async def run(self, optimizer: Optimizer) -> None:
        """Create the model's tensors and work until the job is finished or ``stop`` is called.

        Raises:
            PSError: the cluster refuses or is gone.
            DataError: a chunk cannot be read.
        """
        try:
            initial = self._model.parameters()
            while True:
                try:
                    await self._client.rejoin()  # if it has to
                    await self._begin(initial, optimizer)
                    await self._work()
                except Fenced:
                    await self._drop_ahead()
                else:
                    return
        finally:
            await self._drop_ahead()
            self._reading.shutdown(wait=False, cancel_futures=True)
            self._computing.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, initial: Parameters, optimizer: Optimizer) -> None:
        for name, value in initial.items():  # also when joining again: what was there may be gone
            await self._client.create(name, value, optimizer)
        self._names = tuple(initial)
        await self._pull()

    async def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _work(self) -> None:
        while not self._stopped:
            with self._metrics.phase("data"):
                leased, batch = await self._next_chunk()
            if leased.kind == "finished":
                return
            if batch is None:
                # Where steps are counted the others wait for this worker: end the step with nothing.
                with self._metrics.phase("push"):
                    self._parameters = await self._client.push_pull({}, self._names)
            elif leased.kind == "train":
                await self._train(leased, batch)
            else:
                await self._evaluate(leased, batch)

    # --- data

    async def _next_chunk(self) -> tuple[Leased, Batch | None]:
        """Return a piece of work and its rows; None for the rows where there is nothing to do."""
        ahead, self._ahead = self._ahead, None
        leased, batch = await (self._fetch(block=False) if ahead is None else ahead)
        if leased.kind == "wait":
            # What was asked for early may have come up since; asynchronous workers wait for it.
            leased, batch = await self._fetch(block=self._client.staleness == math.inf)
        return leased, batch

    async def _fetch(self, *, block: bool) -> tuple[Leased, Batch | None]:
        leased = await self._client.lease(block=block)
        if leased.kind == "train":
            return leased, await self._in(
                self._reading, self._source.read, leased.chunk, "train", leased.part
            )
        if leased.kind == "evaluate":
            return leased, await self._in(self._reading, self._source.read, leased.chunk, "holdout")
        return leased, None

    # --- training

    async def _train(self, leased: Leased, chunk: Batch) -> None:
        self._ahead = asyncio.create_task(self._fetch(block=False))
        rng = np.random.default_rng((self._seed, leased.epoch, leased.chunk))
        total = examples = 0.0
        under_way: asyncio.Task[dict[str, npt.NDArray[Any]]] | None = None
        try:
            for number, batch in enumerate(minibatches(chunk, self._batch_size, rng), 1):
                if self._stopped:
                    return  # the lease goes back when this worker leaves
                if number <= leased.skip:
                    continue  # others have done it
                with self._metrics.phase("compute"):
                    gradients, loss = await self._in(
                        self._computing, gradients_of, self._model, self._parameters, batch
                    )
                self._metrics.loss = loss  # now: a push of NaN is refused, and the worker ends
                if under_way is not None:
                    self._parameters = await self._pushed(under_way)
                done = self._client.done(leased, number)
                push = self._client.push_pull(gradients, self._names, weight=len(batch), done=done)
                under_way = asyncio.create_task(push)
                if self._client.staleness != math.inf:
                    self._parameters = await self._pushed(under_way)
                    under_way = None
                total += loss * len(batch)
                examples += len(batch)
                self._count(batch, loss)
            if under_way is not None:
                self._parameters = await self._pushed(under_way)
        finally:
            if under_way is not None:
                await asyncio.gather(under_way, return_exceptions=True)
        measures = {"loss": total / examples} if examples else {}
        await self._client.finish(leased, len(chunk), measures)

    async def _pushed(
        self, under_way: asyncio.Task[dict[str, npt.NDArray[Any]]]
    ) -> dict[str, npt.NDArray[Any]]:
        with self._metrics.phase("push"):
            return await under_way

    def _count(self, batch: Batch, loss: float) -> None:
        self._metrics.steps.inc()
        self._metrics.examples.inc(len(batch))
        self._client.report.examples += len(batch)
        self._client.report.loss = loss

    # --- evaluation

    async def _evaluate(self, leased: Leased, chunk: Batch) -> None:
        measures: dict[str, float] = {}
        if len(chunk) and isinstance(self._model, EvaluatedModel):
            await self._pull()
            measures = await self._in(self._computing, measures_of, self._model, self._parameters, chunk)
        await self._client.finish(leased, len(chunk) if measures else 0, measures)

    # --- pieces of the above

    async def _pull(self) -> None:
        with self._metrics.phase("pull"):
            self._parameters = await self._client.pull(self._names)

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
