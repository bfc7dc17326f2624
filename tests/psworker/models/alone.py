"""Train a model in this process, with the servers' own rules and nothing between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.optimizers import Optimizer
from psserver.optimizers import Moment, hyper_of, rule_of
from psworker.data import Batch, minibatches
from psworker.models import Model, OwnRule, PreparedModel

Parameters = dict[str, npt.NDArray[Any]]


class Alone:
    """The parameters of one model, and what its rule keeps of each."""

    def __init__(self, model: Model, optimizer: Optimizer) -> None:
        self.optimizer = model.optimizer if isinstance(model, OwnRule) else optimizer
        self.values = model.parameters()
        rule, numbers = rule_of(self.optimizer), hyper_of(self.optimizer, Moment())
        self._slots = {name: rule.start(value.copy(), numbers) for name, value in self.values.items()}
        self._updates = 0

    def apply(self, gradients: Mapping[str, npt.NDArray[Any]]) -> None:
        rule, numbers = rule_of(self.optimizer), hyper_of(self.optimizer, Moment(step=self._updates))
        self._updates += 1
        if rule.counts:
            numbers = rule.at(self._updates, numbers)
        for name, gradient in gradients.items():
            a, b = self._slots[name]
            value, *slots = rule.step(self.values[name], gradient.copy(), a.copy(), b.copy(), numbers)
            self.values[name] = value
            self._slots[name] = (slots[0], slots[1])


def trained(
    model: Model, batch: Batch, optimizer: Optimizer, *, epochs: int, batch_size: int = 32
) -> tuple[Model, Parameters]:
    """The model as it is trained, prepared if it has to be, and its parameters after so many epochs."""
    if isinstance(model, PreparedModel):
        model = model.prepared(batch)
    alone = Alone(model, optimizer)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for part in minibatches(batch, batch_size, rng):
            gradients, _ = model.gradients(alone.values, part)
            alone.apply(gradients)
    return model, alone.values
