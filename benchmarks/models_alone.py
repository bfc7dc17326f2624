"""Train a model in this process as several workers would, with the servers' own rules and nothing between."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.optimizers import Add, Optimizer
from psserver.optimizers import Moment, hyper_of, rule_of
from psworker.data import Batch, minibatches
from psworker.models import Model

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]

LATE = 3
"""Updates that a gradient misses, of two asynchronous workers: two of its own, as its pushes are under way
while it computes, and one of the other's."""


def trained_alone(
    model: Model, optimizer: Optimizer, batch: Batch, *, epochs: int, size: int, workers: int, late: int
) -> Parameters:
    """Return the parameters after so many epochs in mini-batches of `size` rows.

    With `late` 0 a step is that of all workers' mini-batches together, as at staleness 0. Otherwise each is
    an update of its own, whose gradient is that of the parameters so many updates before. All tensors are
    dense.
    """
    served = _Served(model, optimizer)
    rng = np.random.default_rng(0)
    seen: deque[Parameters] = deque([dict(served.values)], maxlen=late + 1)
    at_once = 1 if late else workers
    number = 0
    for _ in range(epochs):
        parts = list(minibatches(batch, size, rng))
        for start in range(0, len(parts), at_once):
            together = parts[start : start + at_once]
            found = [model.gradients(seen[0], part)[0] for part in together]
            served.apply(_combined(found, together, optimizer), number * at_once // workers)
            seen.append(dict(served.values))
            number += 1
    return served.values


def _combined(
    gradients: Sequence[Parameters], parts: Sequence[Batch], optimizer: Optimizer
) -> dict[str, Array]:
    """Return the sum of deltas, or the mean of gradients, each counting its rows."""
    rows = sum(part.total for part in parts)
    shares = [1.0 if isinstance(optimizer, Add) else part.total / rows for part in parts]
    return {
        name: np.asarray(
            sum(share * one[name] for share, one in zip(shares, gradients, strict=True)),
            gradients[0][name].dtype,
        )
        for name in gradients[0]
    }


class _Served:
    """The parameters of one model, and what its rule keeps of each."""

    def __init__(self, model: Model, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._rule = rule_of(optimizer)
        self._updates = 0
        numbers = hyper_of(optimizer, Moment())
        self.values: dict[str, Array] = dict(model.parameters())
        self._slots = {name: self._rule.start(value.copy(), numbers) for name, value in self.values.items()}

    def apply(self, gradients: Parameters, step: int) -> None:
        self._updates += 1
        numbers = hyper_of(self._optimizer, Moment(step=step))
        if self._rule.counts:
            numbers = self._rule.at(self._updates, numbers)
        for name, gradient in gradients.items():
            a, b = self._slots[name]
            value, *slots = self._rule.step(self.values[name], gradient.copy(), a.copy(), b.copy(), numbers)
            self.values[name], self._slots[name] = value, (slots[0], slots[1])
