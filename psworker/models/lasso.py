"""Linear regression with an L1 penalty, whose zeros are real zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from protocol.optimizers import Add, Optimizer
from protocol.tables import Initial
from psworker.data.batch import Batch
from psworker.models.linear import LinearRegression
from psworker.models.scored import Array, Parameters
from psworker.models.settings import check_above_zero, check_not_negative


@dataclass(frozen=True, slots=True)
class ElasticNet:
    """z = x w + b, loss = mean 1/2 (z - y)^2 + l1 |w|_1 + l2/2 |w|^2, by FTRL-proximal.

    What the servers have are sums over all mini-batches, to which workers add (`Add`): Z of g - s w, S of
    s, N of g^2 and t of 1, where g is the gradient of the mean of 1/2 (z - y)^2 at the weights w that the
    worker had, and s = (sqrt(N + g^2) - sqrt(N)) / lr. The weights follow from them, and are made where
    they are needed:

        w = argmin_v  sum_i [g_i v + s_i/2 (v - w_i)^2] + t (l1 |v| + l2/2 v^2) = - soft(Z, t l1) / (S + t l2)

    with soft(a, c) = sign(a) max(|a| - c, 0), and b likewise, without any penalty; 0 where S is. So the L1
    penalty is never a gradient, under which small weights would change their signs forever: a weight is 0
    as long as the mean gradient does not outweigh l1. As the sums are what they say whoever adds when, that
    holds at any staleness, and as t counts all mini-batches, features that few rows have are penalised as
    the loss says, hashed ones, too. Source: McMahan, "Follow-the-regularized-leader and mirror descent",
    AISTATS 2011, with the L1 penalty of each round; the rates are those of Adagrad (Duchi, Hazan and Singer
    2011).

    `lr` is in the units of weights, as Adagrad's: about a third of the largest that one expects.
    scikit-learn's `ElasticNet(alpha, l1_ratio)` is l1 = alpha l1_ratio, l2 = alpha (1 - l1_ratio).
    Parameters: z, s, n (features,), zb, sb, nb (1,), t (1,), float64.
    Raises ValueError if `l1` or `l2` is negative or not finite, or `lr` not above 0.
    """

    features: int
    l1: float = 0.01
    l2: float = 0.01
    lr: float = 0.1

    per_feature = ("z", "s", "n")
    initial: ClassVar[Mapping[str, Initial]] = {}
    optimizer: ClassVar[Optimizer] = Add()

    def __post_init__(self) -> None:
        check_not_negative("l1", self.l1)
        check_not_negative("l2", self.l2)
        check_above_zero("lr", self.lr)

    def parameters(self) -> dict[str, Array]:
        """See `Model.parameters`."""
        found = {name: np.zeros(self.features) for name in ("z", "s", "n")}
        return found | {name: np.zeros(1) for name in ("zb", "sb", "nb", "t")}

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, Array], float]:
        """What is added to the sums, and the objective at the weights that follow from them so far."""
        weights = self.weights(parameters)
        slopes, loss = LinearRegression(self.features).gradients(weights, batch)
        added: dict[str, Array] = {"t": np.ones(1)}
        for name, of in (("w", ""), ("b", "b")):
            g, n = slopes[name].astype(np.float64), parameters[f"n{of}"]
            s = (np.sqrt(n + g**2) - np.sqrt(n)) / self.lr
            added |= {f"z{of}": g - s * weights[name], f"s{of}": s, f"n{of}": g**2}
        return added, loss + self._penalty(weights)

    def evaluate(self, parameters: Parameters, batch: Batch) -> dict[str, float]:
        """As `LinearRegression.evaluate`, with both penalties in the loss."""
        weights = self.weights(parameters)
        measures = LinearRegression(self.features).evaluate(weights, batch)
        return measures | {"loss": measures["loss"] + self._penalty(weights)}

    def predict(self, parameters: Parameters, batch: Batch) -> Array:
        """See `PredictingModel.predict`."""
        return LinearRegression(self.features).predict(self.weights(parameters), batch)

    def weights(self, parameters: Parameters) -> dict[str, Array]:
        """Return w (features,) and b (1,), float32, that follow from the sums."""
        t, z = parameters["t"], parameters["z"]
        soft = np.sign(z) * np.maximum(np.abs(z) - t * self.l1, 0)
        return {
            "w": _quotient(-soft, parameters["s"] + t * self.l2, parameters["s"] > 0),
            "b": _quotient(-parameters["zb"], parameters["sb"], parameters["sb"] > 0),
        }

    def _penalty(self, weights: Parameters) -> float:
        w = weights["w"].astype(np.float64)
        return self.l1 * float(np.abs(w).sum()) + 0.5 * self.l2 * float(w @ w)


def _quotient(above: Array, below: Array, where: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=where).astype(np.float32)


def lasso(features: int, l1: float = 0.01, lr: float = 0.1) -> ElasticNet:
    """Return linear regression with an L1 penalty alone (Tibshirani 1996)."""
    return ElasticNet(features, l1, 0.0, lr)
