from collections.abc import Callable

import numpy as np
import pytest

from psworker.data import Batch
from psworker.errors import DataError
from psworker.models import EvaluatedModel, LogisticRegression, Perceptron, SoftmaxRegression
from psworker.models.labels import class_indices

CLASSIFIERS: list[Callable[[], EvaluatedModel]] = [
    lambda: LogisticRegression(1),
    lambda: SoftmaxRegression(1, 2),
    lambda: Perceptron(1, 2),
]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_whole_numbers_of_either_type_are_indices(dtype: type) -> None:
    indices = class_indices(np.array([0, 2, 1], dtype), 3)
    assert indices.tolist() == [0, 2, 1]
    assert indices.dtype == np.int64


@pytest.mark.parametrize("label", [-1, 2, 0.5, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_another_label_is_named(classifier: Callable[[], EvaluatedModel], label: float) -> None:
    model = classifier()
    batch = Batch(np.ones((3, 1), np.float32), np.array([0, 1, label], np.float32))
    for method in (model.gradients, model.evaluate):
        with pytest.raises(DataError) as caught:
            method(model.parameters(), batch)
        assert f"{label:g} is not one of the classes 0..1" in str(caught.value)


@pytest.mark.parametrize("classes", [1, 0, -3, 2.0, True, "ten"])
@pytest.mark.parametrize("model", [SoftmaxRegression, Perceptron])
def test_a_bad_number_of_classes(model: Callable[..., EvaluatedModel], classes: object) -> None:
    with pytest.raises(ValueError, match="classes is"):
        model(4, classes)


def test_logistic_regression_has_two_classes() -> None:
    LogisticRegression(4, 2)
    with pytest.raises(ValueError, match="logistic regression has 2"):
        LogisticRegression(4, 3)
