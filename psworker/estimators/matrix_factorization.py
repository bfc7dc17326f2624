"""Matrix factorization as scikit-learn has estimators."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from protocol.credentials import Access
from protocol.optimizers import Optimizer
from psworker.data.batch import Batch
from psworker.estimators.estimator import ServedEstimator

__all__ = ["MatrixFactorization"]

Array = npt.NDArray[Any]


class MatrixFactorization(RegressorMixin, ServedEstimator):  # type: ignore[misc]
    """What a user makes of an item: z = mean + b_u + b_i + v_u . v_i. See ``ServedEstimator``.

    Args:
        rank: numbers in a factor v.
        l2: strength of the penalty on biases and factors, for each rating.
        std: deviation of the factors' initial values.

    Attributes:
        users_, items_: the ids that are known, int64, in ascending order.
        user_factors_, item_factors_: (users, rank) and (items, rank), in this order.
        user_biases_, item_biases_: (users,) and (items,).
        intercept_: the mean of the ratings, and what training has added to it.
    """

    kind = "mf"

    def __init__(
        self,
        rank: int = 8,
        l2: float = 0.05,
        std: float = 0.1,
        *,
        cluster: Any = None,
        access: Access | None = None,
        workers: int = 2,
        staleness: float = 0,
        optimizer: str | Optimizer = "adam",
        lr: float | None = 0.01,
        max_iter: int = 100,
        batch_size: int = 64,
        tol: float | None = 1e-4,
        n_iter_no_change: int = 5,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.l2 = l2
        self.std = std
        self.cluster = cluster
        self.access = access
        self.workers = workers
        self.staleness = staleness
        self.optimizer = optimizer
        self.lr = lr
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state

    _predicts_numbers = True

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        """Of the model."""
        return {"rank": self.rank, "l2": self.l2, "std": self.std}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803 (scikit-learn's name)
        """Train anew.

        Args:
            X: (n, 2), whole numbers: the ids of a user and of an item in each row. They may be any.
            y: (n,), ratings.
            sample_weight: (n,), what each row counts; None: 1.

        Raises:
            ValueError: what scikit-learn refuses, other columns, no whole numbers, a setting that cannot be
                used, or training has diverged.
            PSError: the cluster refuses, or is gone.
        """
        return self._fit(X, y, sample_weight, anew=True, passes=self.max_iter, keeps=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Make one more pass, over these rows, and go on from what the optimizer knew; see ``fit``.

        Users and items may be new; then the optimizer begins anew.
        """
        return self._fit(X, y, sample_weight, anew=not hasattr(self, "parameters_"), passes=1, keeps=True)

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the rating, (n,), float64, for each row of ``X``.

        A user whom nobody has seen has the bias of the item alone, and the other way round.

        Raises:
            ValueError: it is not fitted (``NotFittedError``), or ``X`` is none that ``fit`` takes.
        """
        check_is_fitted(self)
        ids = _whole(validate_data(self, X, reset=False, dtype="numeric"))
        z = np.full(len(ids), self.intercept_)
        products = np.ones((len(ids), self.user_factors_.shape[1]))
        for column, known, biases, factors in (
            (0, self.users_, self.user_biases_, self.user_factors_),
            (1, self.items_, self.item_biases_, self.item_factors_),
        ):
            places = np.searchsorted(known, ids[:, column]).clip(max=len(known) - 1)
            seen = known[places] == ids[:, column]
            z += seen * biases[places]
            products *= seen[:, np.newaxis] * factors[places]
        return np.asarray(z + products.sum(axis=1))

    def _fit(self, x: Any, y: Any, sample_weight: Any, *, anew: bool, passes: int, keeps: bool) -> Self:
        ids, y = validate_data(self, x, y, reset=anew, dtype="numeric", y_numeric=True)
        ids = _whole(ids)
        weights = self._weights(ids, sample_weight)
        if anew:
            self.users_, self.items_ = np.unique(ids[:, 0]), np.unique(ids[:, 1])
            self._mean = float(np.average(y, weights=weights if np.any(weights) else None))
        else:
            self._grow(ids)
        examples = Batch(self._design(ids), (y - self._mean).astype(np.float32), None, weights)
        self._train(examples, classes=None, anew=anew, passes=passes, keeps=keeps)
        return self

    def _design(self, ids: Array) -> csr_array:
        """Return (n, users + items), float32: two features in each row, of the user and of the item, 1."""
        users, items = np.searchsorted(self.users_, ids[:, 0]), np.searchsorted(self.items_, ids[:, 1])
        columns = np.column_stack([users, len(self.users_) + items]).ravel()
        shape = len(ids), len(self.users_) + len(self.items_)
        return csr_array(
            (np.ones(2 * len(ids), np.float32), columns, np.arange(0, 2 * len(ids) + 1, 2)), shape
        )

    def _grow(self, ids: Array) -> None:
        """Make room for users and items that are new: for them the values are those of a new model."""
        users, items = np.union1d(self.users_, ids[:, 0]), np.union1d(self.items_, ids[:, 1])
        if len(users) == len(self.users_) and len(items) == len(self.items_):
            return
        places = np.concatenate(
            [np.searchsorted(users, self.users_), len(users) + np.searchsorted(items, self.items_)]
        )
        seed = self._passes(1, self.n_iter_).seed[0]
        self._model = self._built(len(users) + len(items), None, seed)
        grown = dict(self._model.parameters())
        for name in ("w", "v"):
            grown[name][places] = self.parameters_[name]
        self.parameters_ = {**grown, "b": self.parameters_["b"]}
        self.users_, self.items_ = users, items
        self._is_trained()  # should what follows fail, all of it fits still
        self._drop_job()

    def _is_trained(self) -> None:
        w, v = self.parameters_["w"], self.parameters_["v"]
        users = len(self.users_)
        self.user_biases_, self.item_biases_ = w[:users], w[users:]
        self.user_factors_, self.item_factors_ = v[:users], v[users:]
        self.intercept_ = self._mean + float(self.parameters_["b"][0])

    def __sklearn_tags__(self) -> Any:
        """Features are ids, and two."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.categorical = True
        return tags


def _whole(ids: Array) -> npt.NDArray[np.int64]:
    """Return the ids as int64. Raises ValueError for other columns than two, or no whole numbers."""
    if ids.shape[1] != 2:
        raise ValueError(f"X has {ids.shape[1]} columns; expected two, the ids of a user and of an item")
    whole = ids.astype(np.int64)
    if ids.dtype.kind == "f" and (whole != ids).any():
        wrong = ids[whole != ids][0]
        raise ValueError(f"X has {wrong!s}; ids are whole numbers, as sklearn's OrdinalEncoder makes them")
    return whole
