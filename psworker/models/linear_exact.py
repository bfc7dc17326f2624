"""Linear regression in one pass: the normal equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from protocol.optimizers import Add, Optimizer
from psworker.data.batch import Batch
from psworker.models.linear import LinearRegression
from psworker.models.scored import Array, Parameters
from psworker.models.settings import check_not_negative

MAX_FEATURES: Final = 1024
"""So many features make 4 MiB of sums, which each mini-batch pushes, and equations that take tenths of a
second."""

_INDEPENDENT: Final = 1e-10
"""A column of which the columns before it leave no larger part unexplained is a combination of them."""


@dataclass(frozen=True, slots=True)
class ExactLinearRegression:
    """z = x w + b that minimises mean 1/2 (z - y)^2 + l2/2 |w|^2, not by steps but by solving for it.

    The servers have the sums S = sum w_i u_i u_i' and v = sum w_i u_i y_i over all rows, u = (1, x), to
    which workers add (`Add`). Whoever needs w solves (C + l2 I) w = c, with C and c the covariances that
    follow from the sums (Gauss 1809; ridge: Hoerl and Kennard 1970). One epoch is enough, several only
    multiply the sums, at any staleness and on any number of workers. Columns that are combinations of
    others, or constant, are no trouble: of all solutions it is the smallest, in units of the columns'
    deviations.

    Parameters: s ((features + 1)(features + 2)/2,), the upper triangle of S row by row; v (features + 1,);
    float64. Raises ValueError for more than 1024 features, or if `l2` is negative or not finite.
    """

    features: int
    l2: float = 0.0

    optimizer: ClassVar[Optimizer] = Add()

    def __post_init__(self) -> None:
        check_not_negative("l2", self.l2)
        if self.features > MAX_FEATURES:
            raise ValueError(
                f"linear-exact takes at most {MAX_FEATURES} features, and the data has {self.features}; "
                'use kind = "ridge"'
            )

    def parameters(self) -> dict[str, Array]:
        """Zeros: nothing has been seen."""
        size = self.features + 1
        return {"s": np.zeros(size * (size + 1) // 2), "v": np.zeros(size)}

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, Array], float]:
        """What the rows add to the sums, and the objective at the solution so far."""
        _, loss = LinearRegression(self.features, self.l2).gradients(self.weights(parameters), batch)
        u = np.column_stack([np.ones(len(batch)), batch.x.astype(np.float64)])
        weighted = u if batch.weight is None else u * batch.weight[:, np.newaxis].astype(np.float64)
        upper = np.triu_indices(self.features + 1)
        return {"s": (weighted.T @ u)[upper], "v": weighted.T @ batch.y.astype(np.float64)}, loss

    def evaluate(self, parameters: Parameters, batch: Batch) -> dict[str, float]:
        """As `LinearRegression.evaluate`."""
        return LinearRegression(self.features, self.l2).evaluate(self.weights(parameters), batch)

    def predict(self, parameters: Parameters, batch: Batch) -> Array:
        """See `PredictingModel.predict`."""
        return LinearRegression(self.features).predict(self.weights(parameters), batch)

    def weights(self, parameters: Parameters) -> dict[str, Array]:
        """Return w (features,) and b (1,), float32, that solve the equations; zeros before the first row."""
        size = self.features + 1
        upper = np.zeros((size, size))
        upper[np.triu_indices(size)] = parameters["s"]
        total = upper[0, 0]
        if total <= 0:
            return LinearRegression(self.features).parameters()
        means, mean_y = upper[0, 1:] / total, parameters["v"][0] / total
        squares = upper[1:, 1:] / total
        covariance = squares + np.triu(squares, 1).T - np.outer(means, means)
        w = _solved(covariance, parameters["v"][1:] / total - means * mean_y, self.l2, np.diag(squares))
        return {"w": w.astype(np.float32), "b": np.array([mean_y - means @ w], np.float32)}


def _solved(covariance: Array, right: Array, l2: float, squares: Array) -> Array:
    """Solve (C + l2 I) w = c; of several solutions the smallest, in units of the columns' deviations.

    `squares` are the columns' mean squares: a variance that is nothing beside them is rounding.
    """
    matrix = covariance + l2 * np.eye(len(covariance))
    scale = np.sqrt(np.where(np.diag(covariance) > 1e-13 * squares, np.diag(matrix), np.inf))
    matrix = matrix / np.outer(scale, scale)  # ones on the diagonal, or zeros for what is constant
    if _is_independent(matrix):
        return np.asarray(np.linalg.solve(matrix, right / scale) / scale)
    return np.asarray(np.linalg.lstsq(matrix, right / scale, rcond=_INDEPENDENT)[0] / scale)


def _is_independent(matrix: Array) -> bool:
    """Whether no column is a combination of others: the Cholesky factor's diagonal has what is left."""
    try:
        left = np.diag(np.linalg.cholesky(matrix)) ** 2
    except np.linalg.LinAlgError:
        return False
    return bool(left.min(initial=1.0) > _INDEPENDENT)
