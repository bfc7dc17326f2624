"""Scores of a factorization machine: linear, and each pair of features weighs what their factors say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from protocol.tables import Initial, Normal
from psworker.data.batch import Batch
from psworker.models.scored import Array, Forward, Parameters, Scored, Share


class FactorScores(Scored):
    """z = b + x w + sum_{i<j} (v_i . v_j) x_i x_j (Rendle, "Factorization machines", ICDM 2010, equation 1).

    The sum over pairs is 1/2 sum_f [(x v_f)^2 - x^2 v_f^2] (lemma 3.1), linear in the features that a row
    has; its gradient by v_jf is x_j (x v_f) - x_j^2 v_jf (equation 4). Parameters: b (1,), w (features,)
    from zero; v (features, rank) from normal deviates of `std`: from zero they would never move; float32.

    The penalty is l2/2 (w_j^2 + |v_j|^2), the mean over the rows of its sum over the features that a row
    has: a feature is held back as often as it is trained, however the rows are cut into mini-batches (as
    libFM does).
    """

    __slots__ = ()
    features: int
    rank: int
    l2: float
    std: float
    seed: int
    per_feature = ("w", "v")

    @property
    def initial(self) -> Mapping[str, Initial]:
        """See `HashedModel`."""
        return {"v": Normal(self.std)}

    def parameters(self) -> dict[str, Array]:
        """See `Model.parameters`."""
        deviates = np.random.default_rng(self.seed).normal(0.0, self.std, (self.features, self.rank))
        return {
            "w": np.zeros(self.features, np.float32),
            "v": deviates.astype(np.float32),
            "b": np.zeros(1, np.float32),
        }

    def forward(self, parameters: Parameters, batch: Batch) -> Forward:
        """See `Scored.forward`."""
        x, v = batch.x, parameters["v"]
        squares = x * x
        sums = x @ v
        pairs = 0.5 * (sums**2 - squares @ v**2).sum(axis=1)

        def back(slopes: Array) -> dict[str, Array]:
            return {
                "w": x.T @ slopes,
                "v": x.T @ (slopes[:, np.newaxis] * sums) - (squares.T @ slopes)[:, np.newaxis] * v,
                "b": slopes.sum(keepdims=True),
            }

        return parameters["b"] + x @ parameters["w"] + pairs, back

    def penalised(self, parameters: Parameters, batch: Batch, share: Share) -> tuple[float, dict[str, Array]]:
        """See `Scored.penalised`."""
        if not self.l2:
            return 0.0, {}
        w, v = parameters["w"], parameters["v"]
        held = self.l2 * ((batch.x != 0).T @ share)  # (features,): how much of the rows has the feature
        squares = w.astype(np.float64) ** 2 + (v.astype(np.float64) ** 2).sum(axis=1)
        return 0.5 * float(held @ squares), {
            "w": (held * w).astype(w.dtype),
            "v": (held[:, np.newaxis] * v).astype(v.dtype),
        }
