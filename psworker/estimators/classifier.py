"""A classifier as scikit-learn has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from protocol.credentials import Access
from protocol.optimizers import Optimizer
from psworker.data.batch import Batch
from psworker.estimators.estimator import ServedEstimator
from psworker.models.model import ProbableModel
from psworker.models.scored import Scored

__all__ = ["Classifier"]

Array = npt.NDArray[Any]


def _knows_probabilities(estimator: Classifier) -> bool:
    return estimator._able(ProbableModel)


def _has_scores(estimator: Classifier) -> bool:
    return estimator._able(Scored)


class Classifier(ClassifierMixin, ServedEstimator):  # type: ignore[misc]
    """A classifier, of any ``kind`` with classes; ``logistic`` and ``fm`` have two. See ``ServedEstimator``.

    Args:
        class_weight: what rows of each class count: by label, or ``"balanced"``; None: 1.

    Attributes:
        classes_: the labels, in ascending order.
        coef_, intercept_: of models that are linear in the features: (classes, features) and (classes,), or
            (1, features) and (1,) of two.
    """

    def __init__(
        self,
        kind: str = "softmax",
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
        class_weight: Mapping[Any, float] | str | None = None,
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
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803 (scikit-learn's name)
        """Train anew.

        Args:
            X: (n, features), numbers: an array, a data frame or a SciPy matrix.
            y: (n,), labels.
            sample_weight: (n,), what each row counts; None: 1.

        Raises:
            ValueError: what scikit-learn refuses, a setting that cannot be used, or training has diverged.
            PSError: the cluster refuses, or is gone.
        """
        x, y = self._checked(X, y, reset=True)
        self._take_classes(y)
        examples = self._examples(x, y, sample_weight)
        self._train(examples, classes=len(self.classes_), anew=True, passes=self.max_iter, keeps=False)
        return self

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> Self:
        """Make one more pass, over these rows, and go on from what the optimizer knew.

        Args:
            X: as for ``fit``.
            y: as for ``fit``.
            classes: all labels that will ever come; needed the first time.
            sample_weight: as for ``fit``.

        Raises:
            ValueError: as ``fit``, or for other classes than the first time.
            PSError: as ``fit``.
        """
        anew = not hasattr(self, "parameters_")
        if anew and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        x, y = self._checked(X, y, reset=anew)
        if anew:
            self._take_classes(np.asarray(classes))
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes={classes!r}: at first they were {self.classes_!r}")
        examples = self._examples(x, y, sample_weight)
        self._train(examples, classes=len(self.classes_), anew=anew, passes=1, keeps=True)
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the label, (n,), of each row of ``X``.

        Raises:
            ValueError: it is not fitted (``NotFittedError``), or ``X`` has other features.
        """
        indices = self._predicted(X)
        return np.asarray(self.classes_[indices])

    @available_if(_knows_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return the probability of each class, (n, classes), in the order of ``classes_``.

        Raises:
            ValueError: as ``predict``.
        """
        parameters, rows = self._asked(X)
        return np.asarray(self._model.probabilities(parameters, rows), np.float64)

    @available_if(_has_scores)  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return the score of each class, (n, classes); of two, (n,), above 0 for the second of them.

        Raises:
            ValueError: as ``predict``.
        """
        parameters, rows = self._asked(X)
        scores, _ = self._model.forward(parameters, rows)
        return _of_two(scores)

    def _take_classes(self, labels: Array) -> None:
        check_classification_targets(labels)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(f"there is only one class, {classes[0]}; a classifier needs two or more")
        if len(classes) > 2 and self._is_binary():
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f'{type_of_target(labels)}. (kind={self.kind!r} has two classes; take "softmax")'
            )
        self.classes_ = classes

    def _examples(self, x: Any, y: Array, sample_weight: Any) -> Batch:
        if not np.isin(y, self.classes_).all():
            raise ValueError(f"y has labels that are none of classes_, {self.classes_!r}")
        indices = np.searchsorted(self.classes_, y)
        weights = self._weights(x, sample_weight)
        if self.class_weight is not None:
            by_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            weights = (by_class[indices] * (1 if weights is None else weights)).astype(np.float32)
        return Batch(x, indices.astype(np.int64), None, weights)

    def _is_binary(self) -> bool:
        """Return whether the model takes two classes alone."""
        return self._takes_classes(2) and not self._takes_classes(3)

    def _is_trained(self) -> None:
        found = self._linear_weights()
        if found is not None:
            w, b = found
            self.coef_ = np.atleast_2d(_of_two(w).T)
            self.intercept_ = np.atleast_1d(_of_two(b))

    def __sklearn_tags__(self) -> Any:
        """See ``ServedEstimator``; some kinds have two classes."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = not self._is_binary()
        return tags


def _of_two(scores: Array) -> Array:
    """Return (..., classes) as it is; of two classes, how much the second has more than the first, (...)."""
    if scores.ndim and scores.shape[-1] == 2 and scores.ndim:
        return np.asarray(scores[..., 1] - scores[..., 0])
    return scores
