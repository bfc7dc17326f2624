"""Clusters as scikit-learn has them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClusterMixin

from protocol.credentials import Access
from psworker.data.batch import Batch
from psworker.estimators.estimator import ServedEstimator

__all__ = ["KMeans"]

Array = npt.NDArray[Any]


class KMeans(ClusterMixin, ServedEstimator):  # type: ignore[misc]
    """Mini-batch k-means. See ``ServedEstimator``; the model, and with it the rule, are always these.

    Args:
        n_clusters: how many.

    Attributes:
        cluster_centers_: (clusters, features).
        labels_: the number of the centre nearest to each row of ``fit``.
        inertia_: the sum of these rows' squared distances to their centres, as they count.
    """

    kind = "kmeans"
    optimizer, lr = "add", None

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        cluster: Any = None,
        access: Access | None = None,
        workers: int = 2,
        staleness: float = 0,
        max_iter: int = 100,
        batch_size: int = 256,
        tol: float | None = 1e-4,
        n_iter_no_change: int = 5,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.cluster = cluster
        self.access = access
        self.workers = workers
        self.staleness = staleness
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        """Of the model."""
        return {"clusters": self.n_clusters}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803 (scikit-learn's name)
        """Find the centres anew.

        Args:
            X: (n, features), numbers: an array or a data frame.
            y: not looked at.
            sample_weight: (n,), what each row counts; None: 1.

        Raises:
            ValueError: what scikit-learn refuses, fewer different rows than clusters, or a setting that
                cannot be used.
            PSError: the cluster refuses, or is gone.
        """
        return self._fit(X, sample_weight, anew=True, passes=self.max_iter, keeps=False)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Make one more pass, over these rows; as ``fit`` otherwise."""
        return self._fit(X, sample_weight, anew=not hasattr(self, "parameters_"), passes=1, keeps=True)

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the number, (n,), of the centre nearest to each row of ``X``.

        Raises:
            ValueError: it is not fitted (``NotFittedError``), or ``X`` has other features.
        """
        return self._predicted(X)

    def _fit(self, x: Any, sample_weight: Any, *, anew: bool, passes: int, keeps: bool) -> Self:
        x = self._checked(x, reset=anew)
        weights = self._weights(x, sample_weight)
        examples = Batch(x, np.zeros(len(x), np.float32), None, weights)
        self._train(examples, classes=None, anew=anew, passes=passes, keeps=keeps)
        self.labels_ = self._predicted(x)
        counts = np.ones(len(x)) if weights is None else weights
        distances = np.square(x.astype(np.float64) - self.cluster_centers_[self.labels_]).sum(axis=1)
        self.inertia_ = float(counts @ distances)
        return self

    def _is_trained(self) -> None:
        self.cluster_centers_ = self._model.centres(self.parameters_)
