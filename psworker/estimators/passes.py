"""Train a model on examples in memory with several workers in this process.

The work is dealt out here, not leased from the coordinator as a daemon's is: in pass e, mini-batch number
``s * workers + w`` of the examples in the order of ``(seed, e)`` is worker w's part of step s. So synchronous
training (staleness 0) is the same every time, which lessees who race for chunks cannot promise.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.addresses import split_address
from protocol.credentials import Access, Credentials
from protocol.errors import NotFinite, PSError, UnknownJob
from protocol.optimizers import Optimizer
from psworker import asking
from psworker.client import Client, connect
from psworker.data.batch import Batch
from psworker.errors import DataError
from psworker.loop_thread import LoopThread
from psworker.models.calls import gradients_of
from psworker.models.model import Model

__all__ = ["Passes", "Place", "drop", "is_flat", "train"]

_log = logging.getLogger(__name__)

Parameters = Mapping[str, npt.NDArray[Any]]

_QUICK: Final = 0.001
"""Seconds; what took less is computed where it is: the way to another thread and back takes as long."""


@dataclass(frozen=True, slots=True)
class Place:
    """The cluster, who one is there, and the job whose tensors are trained."""

    address: str
    access: Access
    job: str


@dataclass(frozen=True, slots=True)
class Passes:
    """How often, in which order, and by how many the examples are worked through.

    ``most``: passes at most. With a ``tol`` training ends when the mean loss of ``patience`` passes, one
    after the other, has not fallen below the lowest one by more than that. ``seed``: of the examples' order.
    """

    workers: int
    staleness: float
    most: int
    batch_size: int
    tol: float | None
    patience: int
    seed: tuple[int, ...]


def train(
    place: Place, passes: Passes, model: Model, optimizer: Optimizer, start: Parameters, examples: Batch
) -> tuple[dict[str, npt.NDArray[Any]], list[float]]:
    """Return the parameters after training from ``start``, and the mean loss of each pass.

    A job that exists is gone on with: then its values count, and ``start`` is ignored.

    Raises:
        ValueError: training has diverged, the model cannot take the examples, or it has a defect.
        PSError: the cluster refuses, or is gone.
    """
    loop = LoopThread()
    try:
        return loop.run(_Training(place, passes, model, optimizer, start, examples).run())
    except DataError as error:
        raise ValueError(f"the model cannot be trained on these examples: {error.reason}") from error
    except NotFinite as error:
        raise ValueError(f"training has diverged ({error}); scale the features, or lower lr") from error
    finally:
        loop.close()


def drop(place: Place) -> None:
    """Have the cluster forget a job. Where it cannot be done the log says so: what was trained is at hand."""
    loop = LoopThread()
    try:
        credentials = Credentials(place.access)
        loop.run(asking.drop(*split_address(place.address), place.job, within=0.0, credentials=credentials))
    except UnknownJob:
        pass  # it did not come to be made, or went with its server
    except PSError as error:
        _log.warning("job %s at %s could not be dropped: %s", place.job, place.address, error)
    finally:
        loop.close()


def is_flat(losses: Sequence[float], tol: float | None, patience: int) -> bool:
    """Return whether the last ``patience`` losses have brought less than ``tol``.

    The first does not count: it has that of the initial values in it, which is 0 of a perceptron's zeros, and
    nothing would ever be better.
    """
    if tol is None:
        return False
    best, flat = math.inf, 0
    for loss in losses[1:]:
        flat = flat + 1 if loss > best - tol else 0
        best = min(best, loss)
    return flat >= patience


class _Training:
    def __init__(
        self,
        place: Place,
        passes: Passes,
        model: Model,
        optimizer: Optimizer,
        start: Parameters,
        examples: Batch,
    ) -> None:
        self._place = place
        self._passes = passes
        self._model = model
        self._optimizer = optimizer
        self._start = start
        self._examples = examples
        self._sums = np.zeros((passes.most, passes.workers, 2))  # of losses by weights, and of weights
        self._seconds = [math.inf] * passes.workers  # that the last mini-batch took
        self._meeting = asyncio.Barrier(passes.workers)
        self._threads = ThreadPoolExecutor(passes.workers, "compute")

    async def run(self) -> tuple[dict[str, npt.NDArray[Any]], list[float]]:
        with self._threads:
            try:
                async with asyncio.TaskGroup() as group:
                    workers = [group.create_task(self._work(one)) for one in range(self._passes.workers)]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return workers[0].result()

    async def _work(self, worker: int) -> tuple[dict[str, npt.NDArray[Any]], list[float]]:
        place, passes = self._place, self._passes
        async with connect(
            place.address,
            place.job,
            name=f"worker-{worker}",
            staleness=passes.staleness,
            workers=passes.workers,
            token_file=place.access.token_file,
            tls=place.access.tls,
        ) as client:
            for name, value in self._start.items():
                await client.create(name, value, self._optimizer)
            for number in range(passes.most):
                await self._meeting.wait()
                if is_flat(self._losses(number), passes.tol, passes.patience):
                    break
                await self._pass(client, worker, number)
            else:
                number = passes.most
            await self._meeting.wait()
            return await client.pull(tuple(self._start)), self._losses(number)

    async def _pass(self, client: Client, worker: int, number: int) -> None:
        names, size, workers = tuple(self._start), self._passes.batch_size, self._passes.workers
        order = np.random.default_rng((*self._passes.seed, number)).permutation(len(self._examples))
        parameters: Parameters = await client.pull(names)
        loop = asyncio.get_running_loop()
        for begin in range(worker * size, len(order) + worker * size, workers * size):
            rows = order[begin : begin + size]
            if self._seconds[worker] < _QUICK:
                gradients, loss, weight = self._gradients(parameters, rows, worker)
            else:
                gradients, loss, weight = await loop.run_in_executor(
                    self._threads, self._gradients, parameters, rows, worker
                )
            self._sums[number, worker] += (loss * weight, weight)
            parameters = await client.push_pull(gradients, names, weight=weight)

    def _gradients(
        self, parameters: Parameters, rows: npt.NDArray[np.intp], worker: int
    ) -> tuple[Parameters, float, float]:
        """Return gradients, loss and weight of a mini-batch; nothing where it has no rows that count."""
        began = time.perf_counter()
        found = self._of(parameters, rows)
        self._seconds[worker] = time.perf_counter() - began
        return found

    def _of(self, parameters: Parameters, rows: npt.NDArray[np.intp]) -> tuple[Parameters, float, float]:
        batch = self._examples.take(rows)
        if not len(batch) or not batch.total:
            return {}, 0.0, 0.0  # the step is ended with nothing, so that nobody waits for this worker
        return *gradients_of(self._model, parameters, batch), batch.total

    def _losses(self, number: int) -> list[float]:
        """Return the mean losses of the first ``number`` passes, which are complete."""
        losses, weights = self._sums[:number].sum(axis=1).T
        return [float(loss) for loss in losses / np.maximum(weights, np.finfo(np.float64).tiny)]
