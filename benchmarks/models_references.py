"""What models are compared with: scikit-learn's estimators, and in NumPy what it has not got."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.models_data import Data

Array = npt.NDArray[Any]
Settings = Mapping[str, float]
Reference = Callable[[Data, Settings], Array]
"""Fits itself to the training rows with these settings, and returns its predictions of the test rows."""


def fitted(estimator: Callable[[Data, Settings], Any]) -> Reference:
    """Return what a scikit-learn estimator predicts; of categories it sees a column a value."""

    def predict(data: Data, settings: Settings) -> Array:
        x, x_test = columns_of(data)
        return np.asarray(estimator(data, settings).fit(x, data.y).predict(x_test))

    return predict


def factorization_machine(rank: int, std: float) -> Reference:
    """Return a factorization machine for two classes, written out over all pairs, by L-BFGS; its setting: l2.

    z = b + x w + 1/2 x (V V' - diag) x', the same objective as `FactorScores`, no line of it shared.
    """

    def predict(data: Data, settings: Settings) -> Array:
        from scipy.optimize import minimize

        l2 = settings["l2"]
        x, x_test = columns_of(data)
        rows, features = x.shape
        present = (x != 0).mean(axis=0)

        def parts(values: Array) -> tuple[float, Array, Array]:
            return values[0], values[1 : features + 1], values[features + 1 :].reshape(features, rank)

        def scores(values: Array, x: Array) -> Array:
            b, w, v = parts(values)
            pairs = v @ v.T
            np.fill_diagonal(pairs, 0)
            return np.asarray(b + x @ w + 0.5 * ((x @ pairs) * x).sum(axis=1))

        def objective(values: Array) -> tuple[float, Array]:
            _, w, v = parts(values)
            z = scores(values, x)
            slopes = (1 / (1 + np.exp(-z)) - data.y) / rows
            pairs = x.T @ (slopes[:, np.newaxis] * x)
            np.fill_diagonal(pairs, 0)
            loss = (np.logaddexp(0, z) - data.y * z).mean()
            loss += 0.5 * l2 * float(present @ (w**2 + (v**2).sum(axis=1)))
            by_v = pairs @ v + l2 * present[:, np.newaxis] * v
            return loss, np.concatenate([[slopes.sum()], x.T @ slopes + l2 * present * w, by_v.ravel()])

        start = np.concatenate(
            [np.zeros(features + 1), np.random.default_rng(0).normal(0, std, features * rank)]
        )
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
        return (scores(found.x, x_test) > 0).astype(np.int64)

    return predict


def alternating_least_squares(rank: int, std: float, rounds: int = 60) -> Reference:
    """Return matrix factorization with biases by alternating least squares; its setting: l2.

    Each user's bias and factors are the ridge regression of what is left of his ratings on the items'
    factors, and the other way round (Koren, Bell and Volinsky 2009): the objective is that of
    `MatrixFactorization`, times the number of ratings.
    """

    def predict(data: Data, settings: Settings) -> Array:
        l2 = settings["l2"]
        rng = np.random.default_rng(0)
        ids = data.x.astype(np.int64)
        sizes = np.maximum(ids.max(axis=0), data.x_test.max(axis=0)).astype(np.int64) + 1
        biases = [np.zeros(size) for size in sizes]
        factors = [rng.normal(0, std, (size, rank)) for size in sizes]
        mean = float(data.y.mean())
        rows_of = [[np.flatnonzero(ids[:, mine] == one) for one in range(sizes[mine])] for mine in (0, 1)]
        for _ in range(rounds):
            for mine, other in ((0, 1), (1, 0)):
                left = data.y - mean - biases[other][ids[:, other]]
                for one, rows in enumerate(rows_of[mine]):
                    if not len(rows):
                        continue
                    seen = np.c_[np.ones(len(rows)), factors[other][ids[rows, other]]]
                    matrix = seen.T @ seen + l2 * len(rows) * np.eye(rank + 1)
                    solution = np.linalg.solve(matrix, seen.T @ left[rows])
                    biases[mine][one], factors[mine][one] = solution[0], solution[1:]
        user, item = data.x_test.astype(np.int64).T
        products = (factors[0][user] * factors[1][item]).sum(axis=1)
        return np.asarray(mean + biases[0][user] + biases[1][item] + products)

    return predict


def columns_of(data: Data) -> tuple[Array, Array]:
    """Return the features of training and test rows, a column for each value of a category."""
    if not data.categorical:
        return data.x, data.x_test
    both = np.vstack([data.x, data.x_test])
    columns = [column[:, np.newaxis] == np.unique(column) for column in both.T]
    wide = np.hstack(columns).astype(np.float64)
    return wide[: len(data.x)], wide[len(data.x) :]
