"""The averaged perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from protocol.optimizers import SGD, Optimizer
from protocol.tables import Initial
from psworker.data.batch import Batch
from psworker.models.labels import check_classes
from psworker.models.perceptron import Perceptron
from psworker.models.scored import Array, Parameters


@dataclass(frozen=True, slots=True)
class AveragedPerceptron:
    """A perceptron that predicts with the mean of the weights after each step: less noisy than the last ones.

    Nobody keeps all the weights. With a count c that begins at 1, step t changes w by d and u by c d, and c
    by 1; after T steps w - u / c is the mean of the w that the steps began with and the last. Source:
    Freund and Schapire, "Large margin classification using the perceptron algorithm", 1999; in this form
    Daume, "Practical structured learning techniques for natural language processing", 2006, section 2.1.1.

    The rule is its own: plain descent with a learning rate of 1, on which a perceptron's predictions do not
    depend. A step is a mini-batch, or at staleness 0 those of all workers together. Where workers are
    asynchronous, c is as late as w.

    Parameters: w and its u, (features, classes), float32 and float64; b and ub, (classes,), the same; c
    (1,) float64. Raises ValueError if there are fewer than 2 classes.
    """

    features: int
    classes: int

    per_feature = ("w", "u")
    initial: ClassVar[Mapping[str, Initial]] = {}
    optimizer: ClassVar[Optimizer] = SGD(lr=1.0)

    def __post_init__(self) -> None:
        check_classes(self.classes)

    def parameters(self) -> dict[str, Array]:
        """See `Model.parameters`."""
        plain = self._plain.parameters()
        sums = {"u": plain["w"].astype(np.float64), "ub": plain["b"].astype(np.float64)}
        return {**plain, **sums, "c": np.ones(1)}

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, Array], float]:
        """See `Model.gradients`: those of the perceptron, c times the same, and -1 for the count."""
        gradients, loss = self._plain.gradients(parameters, batch)
        c = parameters["c"]
        sums = {"u": c * gradients["w"], "ub": c * gradients["b"]}
        return {**gradients, **sums, "c": -np.ones(1)}, loss

    def evaluate(self, parameters: Parameters, batch: Batch) -> dict[str, float]:
        """As `Perceptron.evaluate`, of the mean."""
        return self._plain.evaluate(_averaged(parameters), batch)

    def predict(self, parameters: Parameters, batch: Batch) -> Array:
        """See `PredictingModel.predict`."""
        return self._plain.predict(_averaged(parameters), batch)

    @property
    def _plain(self) -> Perceptron:
        return Perceptron(self.features, self.classes)


def _averaged(parameters: Parameters) -> dict[str, Array]:
    c = parameters["c"]
    return {
        "w": parameters["w"] - (parameters["u"] / c).astype(np.float32),
        "b": parameters["b"] - (parameters["ub"] / c).astype(np.float32),
    }
