"""scikit-learn's own checks, of estimators of every kind."""

from typing import Any, Final

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from psworker.estimators import Classifier, KMeans, MatrixFactorization, Regressor, matrix_factorization

pytestmark = pytest.mark.xdist_group("estimators")  # one server for all of them

QUICK: Final[dict[str, Any]] = {"lr": 0.1, "max_iter": 30, "random_state": 0}

NOT_EQUAL: Final = "other mini-batches: the result is near, not equal, as of all stochastic descent"


def expected_to_fail(estimator: Any) -> dict[str, str]:
    if estimator.kind == "linear-exact":
        return {}
    dense = {"check_sample_weight_equivalence_on_dense_data": NOT_EQUAL}
    if estimator.kind == "kmeans":
        return dense
    both = dense | {"check_sample_weight_equivalence_on_sparse_data": NOT_EQUAL}
    if estimator.kind == "averaged-perceptron":
        return both | {"check_class_weight_classifiers": "its loss is lowest before it has learned anything"}
    return both


@parametrize_with_checks(
    [KMeans(2, random_state=0), Regressor(**QUICK)], expected_failed_checks=expected_to_fail
)  # type: ignore[untyped-decorator]
def test_checks(estimator: Any, check: Any) -> None:
    check(estimator)


CLASSIFIERS: Final = (
    "averaged-perceptron", "fm", "logistic", "mlp", "passive-aggressive", "perceptron", "softmax", "svm",
)  # fmt: skip
REGRESSORS: Final = ("elastic-net", "fm", "huber", "lasso", "linear-exact", "mlp", "quantile", "ridge")


@pytest.mark.long
@parametrize_with_checks(
    [
        *(Classifier(kind, **QUICK) for kind in CLASSIFIERS),
        *(Regressor(kind, **QUICK) for kind in REGRESSORS),
    ],
    expected_failed_checks=expected_to_fail,
)  # type: ignore[untyped-decorator]
def test_checks_of_the_other_kinds(estimator: Any, check: Any) -> None:
    check(estimator)


FEW_IDS: Final = {"check_regressors_train": "features that are rounded to ids say too little of y"}


@pytest.mark.long
@parametrize_with_checks(
    [MatrixFactorization(max_iter=3, random_state=0)], expected_failed_checks=lambda _: FEW_IDS
)  # type: ignore[untyped-decorator]
def test_checks_of_ids(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused, columns that are not two or no ids, is made two columns of ids."""

    def two_ids(x: Any) -> Any:
        first, *more = np.asarray(x, float).round().astype(np.int64).T
        return np.column_stack([first, more[0] if more else first])

    monkeypatch.setattr(matrix_factorization, "_whole", two_ids)
    check(estimator)
