"""Models that give an example a score: how the score is made, and what it is for, are independent halves.

One half says how scores z come of parameters (`forward`: linear, factorization machine, network), the other
what is made of them (`tasks.py`: a number, one of two classes, one of many). A model is one of each, and
its own loss. The objective is sum_i s_i loss(z_i, y_i) + penalty, s_i being the row's share of the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.models.losses import Losses
from psworker.models.weighting import mean, scaled, shares

Array: TypeAlias = npt.NDArray[Any]
Parameters: TypeAlias = Mapping[str, Array]
Share: TypeAlias = npt.NDArray[np.float64]
Forward: TypeAlias = tuple[Array, Callable[[Array], dict[str, Array]]]
"""Scores, (n,) or (n, k), and what makes of the objective's slope by them its gradient by the parameters."""


class Scored(ABC):
    """What all such models do alike."""

    __slots__ = ()

    # --- how scores are made

    @abstractmethod
    def forward(self, parameters: Parameters, batch: Batch) -> Forward:
        """Return the scores of the batch's rows, and the way back."""

    @abstractmethod
    def penalised(self, parameters: Parameters, batch: Batch, share: Share) -> tuple[float, dict[str, Array]]:
        """Return the penalty, and its gradient by those parameters that it is on."""

    # --- what they are for

    @abstractmethod
    def labels(self, batch: Batch) -> Array:
        """Return the labels as the loss takes them. Raises DataError for what is none."""

    @abstractmethod
    def losses(self, z: Array, y: Array) -> Losses:
        """Return each row's loss, (n,), and its slope, as z."""

    @abstractmethod
    def measures(self, z: Array, y: Array, share: Share) -> dict[str, float]:
        """Return what is measured beside the loss."""

    @abstractmethod
    def predicted(self, z: Array) -> Array:
        """Return what the scores say: numbers, float32, or class indices, int64."""

    # --- what follows

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, Array], float]:
        """See `Model.gradients`."""
        share, y = shares(batch), self.labels(batch)
        z, back = self.forward(parameters, batch)
        losses, slopes = self.losses(z, y)
        gradients = back(scaled(slopes, share))
        penalty, more = self.penalised(parameters, batch, share)
        for name, gradient in more.items():
            gradients[name] += gradient
        return gradients, mean(losses, share) + penalty

    def evaluate(self, parameters: Parameters, batch: Batch) -> dict[str, float]:
        """Means over the rows: "loss", which is the objective, and the measures of the task."""
        share, y = shares(batch), self.labels(batch)
        z, _ = self.forward(parameters, batch)
        losses, _ = self.losses(z, y)
        penalty, _ = self.penalised(parameters, batch, share)
        return {"loss": mean(losses, share) + penalty, **self.measures(z, y, share)}

    def predict(self, parameters: Parameters, batch: Batch) -> Array:
        """See `PredictingModel.predict`."""
        z, _ = self.forward(parameters, batch)
        return self.predicted(z)
