"""A regressor as scikit-learn has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin

from protocol.credentials import Access
from protocol.optimizers import Optimizer
from psworker.data.batch import Batch
from psworker.estimators.estimator import ServedEstimator

__all__ = ["Regressor"]

Array = npt.NDArray[Any]


class Regressor(RegressorMixin, ServedEstimator):  # type: ignore[misc]
    """A regressor, of any ``kind`` that predicts numbers. See ``ServedEstimator``.

    Attributes:
        coef_, intercept_: of models that are linear in the features: (features,), and a number.
    """

    _predicts_numbers = True

    def __init__(
        self,
        kind: str = "linear",
        settings: Mapping[str, Any] | None = None,
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
        self.kind = kind
        self.settings = settings
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803 (scikit-learn's name)
        """Train anew.

        Args:
            X: (n, features), numbers: an array, a data frame or a SciPy matrix.
            y: (n,), numbers.
            sample_weight: (n,), what each row counts; None: 1.

        Raises:
            ValueError: what scikit-learn refuses, a setting that cannot be used, or training has diverged.
            PSError: the cluster refuses, or is gone.
        """
        return self._fit(X, y, sample_weight, anew=True, passes=self.max_iter, keeps=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Make one more pass, over these rows, and go on from what the optimizer knew; see ``fit``."""
        return self._fit(X, y, sample_weight, anew=not hasattr(self, "parameters_"), passes=1, keeps=True)

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the number, (n,), for each row of ``X``.

        Raises:
            ValueError: it is not fitted (``NotFittedError``), or ``X`` has other features.
        """
        return self._predicted(X)

    def _fit(self, x: Any, y: Any, sample_weight: Any, *, anew: bool, passes: int, keeps: bool) -> Self:
        x, y = self._checked(x, y, reset=anew, y_numeric=True)
        examples = Batch(x, y.astype(np.float32), None, self._weights(x, sample_weight))
        self._train(examples, classes=None, anew=anew, passes=passes, keeps=keeps)
        return self

    def _is_trained(self) -> None:
        found = self._linear_weights()
        if found is not None:
            self.coef_, intercept = found
            self.intercept_ = float(intercept[0])
