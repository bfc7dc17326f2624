"""A model whose gradients take as long as they are told to, and in some workers several times as long.

What such a worker does is sleep, so that many workers need few cores, and what they wait for is each other.
"""

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.models.softmax import SoftmaxRegression

# What differs between the workers of a job cannot be in the job, which is the same for all of them.
WORKER = "BENCHMARK_WORKER"
SLOW_SHARE = "BENCHMARK_SLOW_SHARE"


class PacedSoftmax:
    """Softmax regression that takes `pause` seconds for a gradient, and sometimes `slowdown` times as long.

    The environment says for which share of the mini-batches that is (BENCHMARK_SLOW_SHARE, 0 to 1) and for
    which worker (BENCHMARK_WORKER, a number): with the job's seed it decides which mini-batches are slow.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        seed: int,
        pause: float,
        slowdown: float,
        environment: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = SoftmaxRegression(features, classes)
        self._pause = pause
        self._slowdown = slowdown
        self._slow_share = float(environment.get(SLOW_SHARE, "0"))
        self._random = random.Random(f"{seed} {environment.get(WORKER, '0')}")
        self._sleep = sleep
        self._clock = clock

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """See `SoftmaxRegression`."""
        return self._model.parameters()

    def gradients(
        self, parameters: Mapping[str, npt.NDArray[Any]], batch: Batch
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See `SoftmaxRegression`; the time that it takes is part of the pause."""
        slow = self._random.random() < self._slow_share
        end = self._clock() + self._pause * (self._slowdown if slow else 1.0)
        found = self._model.gradients(parameters, batch)
        self._sleep(max(0.0, end - self._clock()))
        return found

    def evaluate(self, parameters: Mapping[str, npt.NDArray[Any]], batch: Batch) -> dict[str, float]:
        """See `SoftmaxRegression`."""
        return self._model.evaluate(parameters, batch)
