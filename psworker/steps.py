"""The steps of a worker through one chunk: on which parameters each is computed, and what its push asks for.

At a finite staleness a step is computed on the parameters that the push before it has brought back. In
asynchronous jobs its push is under way while the next step is computed, on the parameters of the step before:
what a push asks for is for the step after the next. One round trip a step, either way. Of hashed features a
push asks for the rows of that step's keys, which are known as far as the chunk reaches; where it begins, and
where the staleness has been changed meanwhile, the rows are pulled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np

from protocol.errors import NotFinite
from protocol.messages import Leased
from protocol.tables import Keys
from psworker.data import Batch
from psworker.divergence import LossWatch
from psworker.errors import TrainingDiverged
from psworker.metrics import WorkerMetrics
from psworker.pieces import Compute, Parameters
from psworker.served import ServedModel
from psworker.units import NO_KEYS, Units

__all__ = ["Steps"]

_SWIFT: Final = 1e-3  # seconds


class _UnderWay(NamedTuple):
    """A push that has no answer yet, and the unit that it brings the parameters for."""

    number: int
    answer: Awaitable[Parameters]


class Steps:
    """The steps that one worker takes with a model, chunk by chunk.

    Args:
        served: the model's parameters.
        compute: what is pushed of a unit, in ``computing``.
        computing: a thread.
        watch: says when the losses are too large.
        metrics: where steps are counted.
        hashed: whether the features are.
    """

    def __init__(
        self,
        served: ServedModel,
        compute: Compute,
        computing: ThreadPoolExecutor,
        watch: LossWatch,
        metrics: WorkerMetrics,
        *,
        hashed: bool,
    ) -> None:
        self._served = served
        self._client = served.client
        self._compute = compute
        self._computing = computing
        self._watch = watch
        self._metrics = metrics
        self._hashed = hashed
        self._parameters: Parameters = {}
        self._held_for = -1  # the unit for whose keys these are, where features are hashed
        self._swift = False  # whether the last gradient was too quick to be worth a thread

    async def pull(self, keys: Keys | None = None) -> Parameters:
        """Return the present parameters; those for all features, if these are not hashed, are kept."""
        with self._metrics.phase("pull"):
            self._parameters = await self._served.pull(keys)
        self._held_for = -1
        return self._parameters

    async def wait(self) -> None:
        """End a step with nothing: where steps are counted others wait for this worker."""
        with self._metrics.phase("push"):
            self._parameters = await self._served.push_pull({}, next_keys=NO_KEYS if self._hashed else None)
        self._held_for = -1

    async def train(
        self, units: Units, leased: Leased, stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Take the steps of a chunk that others have not taken.

        Returns:
            Their mean "loss", weighted as the rows are, if there were any; None if it was ``stopped``.

        Raises:
            TrainingDiverged: the losses are too large, or the servers refuse what is not finite.
            PSError, ModelError, DataError: as whoever raises it.
        """
        self._held_for = -1
        total = weight = 0.0
        under_way: _UnderWay | None = None
        try:
            for number in range(leased.skip, len(units)):
                if stopped():
                    return None
                parameters = await self._parameters_for(number, units)
                with self._metrics.phase("compute"):
                    batch, gradients, loss = await self._compute_one(parameters, units, number)
                self._look_at(loss)
                if under_way is not None:
                    await self._landed(under_way)
                waits = self._client.staleness != math.inf
                ahead = number + (1 if waits else 2)
                push = self._pushed(batch, gradients, units, leased, number, ahead)
                if waits:
                    under_way = None
                    await self._landed(_UnderWay(ahead, push))
                else:
                    under_way = _UnderWay(ahead, asyncio.create_task(push))
                counts = batch.total
                total += loss * counts
                weight += counts
                self._count(batch, loss)
            if under_way is not None:
                await self._landed(under_way)
        finally:
            if under_way is not None:
                await asyncio.gather(under_way.answer, return_exceptions=True)
        return {"loss": total / weight} if weight else {}

    async def _parameters_for(self, number: int, units: Units) -> Parameters:
        if self._hashed and self._held_for != number:
            return await self.pull(units.keys(number))
        return self._parameters

    async def _compute_one(
        self, parameters: Parameters, units: Units, number: int
    ) -> tuple[Batch, Parameters, float]:
        if self._swift:
            await asyncio.sleep(0)  # the push under way is sent first
            return self._computed(parameters, units, number)
        return await asyncio.get_running_loop().run_in_executor(
            self._computing, self._computed, parameters, units, number
        )

    def _computed(self, parameters: Parameters, units: Units, number: int) -> tuple[Batch, Parameters, float]:
        began = time.perf_counter()
        batch = units[number]
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # the loss is looked at, and servers look at the rest
            gradients, loss = self._compute(parameters, batch)
        for ahead in (number + 1, number + 2):
            units.keys(ahead)  # cut here, and not where it would keep the connections waiting
        # To wake another thread takes longer than the gradient of one example, and holds nobody up any less.
        self._swift = units.size == 1 and time.perf_counter() - began < _SWIFT
        return batch, gradients, loss

    def _pushed(
        self, batch: Batch, gradients: Parameters, units: Units, leased: Leased, number: int, ahead: int
    ) -> Coroutine[Any, Any, Parameters]:
        return self._served.push_pull(
            gradients,
            batch.keys,
            units.keys(ahead),
            weight=batch.total,
            done=self._client.done(leased, number + 1),
        )

    async def _landed(self, push: _UnderWay) -> None:
        try:
            with self._metrics.phase("push"):
                self._parameters = await push.answer
        except NotFinite as error:
            raise self._diverged(error.message) from error
        self._held_for = push.number

    def _look_at(self, loss: float) -> None:
        self._metrics.loss = loss  # now: a push of NaN is not sent, and the worker ends
        wrong = self._watch.look(loss)
        if wrong:
            raise self._diverged(wrong)

    def _diverged(self, reason: str) -> TrainingDiverged:
        return TrainingDiverged(self._client.clock, self._metrics.loss, reason)

    def _count(self, batch: Batch, loss: float) -> None:
        self._metrics.steps.inc()
        self._metrics.examples.inc(len(batch))
        self._client.report.examples += len(batch)
        self._client.report.loss = loss
