"""Scores that are linear in the features: z = x w + b."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from protocol.tables import Initial
from psworker.data.batch import Batch
from psworker.models.penalty import penalty
from psworker.models.scored import Array, Forward, Parameters, Scored, Share


class LinearScores(Scored):
    """One score: w (features,), b (1,); or one of each of k outputs: w (features, k), b (k,). All float32.

    The penalty is l2/2 |w|^2. They begin with zeros: the losses are convex.
    """

    __slots__ = ()
    features: int
    l2: float
    per_feature = ("w",)
    initial: ClassVar[Mapping[str, Initial]] = {}

    @property
    def outputs(self) -> int | None:
        """How many scores there are; None: one, without an axis of its own."""
        return None

    def parameters(self) -> dict[str, Array]:
        """See `Model.parameters`."""
        return linear_parameters(self.features, self.outputs)

    def forward(self, parameters: Parameters, batch: Batch) -> Forward:
        """See `Scored.forward`: dw = x' dz, db = sum dz."""

        def back(slopes: Array) -> dict[str, Array]:
            return {"w": batch.x.T @ slopes, "b": slopes.sum(axis=0, keepdims=slopes.ndim == 1)}

        return linear_scores(parameters, batch), back

    def penalised(self, parameters: Parameters, batch: Batch, share: Share) -> tuple[float, dict[str, Array]]:
        """See `Scored.penalised`."""
        return penalty(self.l2, parameters, ("w",))


def linear_parameters(features: int, outputs: int | None) -> dict[str, Array]:
    """Return zeros for w and b."""
    shape = () if outputs is None else (outputs,)
    return {"w": np.zeros((features, *shape), np.float32), "b": np.zeros(shape or 1, np.float32)}


def linear_scores(parameters: Parameters, batch: Batch) -> Array:
    """Return x w + b."""
    z: Array = batch.x @ parameters["w"] + parameters["b"]
    return z
