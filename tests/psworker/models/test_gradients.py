"""What holds for every built-in model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from psworker.data import Batch
from psworker.models import (
    EvaluatedModel,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    SoftmaxRegression,
)

MODELS: dict[str, Callable[..., EvaluatedModel]] = {
    "linear": lambda **settings: LinearRegression(5, **settings),
    "logistic": lambda **settings: LogisticRegression(5, **settings),
    "softmax": lambda **settings: SoftmaxRegression(5, 2, **settings),
    "perceptron": lambda **settings: Perceptron(5, 2, **settings),
}
each_model = pytest.mark.parametrize("kind", MODELS)


def example(n: int = 40) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 5)).astype(np.float32)
    return Batch(x, (rng.random(n) < 0.5).astype(np.int64))


def random_parameters(model: EvaluatedModel) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    parameters = {}
    for name, value in model.parameters().items():
        parameters[name] = rng.standard_normal(value.shape).astype(np.float32)
        parameters[name].flags.writeable = False
    return parameters


@each_model
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_gradients_are_finite_differences_of_the_loss(kind: str, l2: float) -> None:
    model, batch = MODELS[kind](l2=l2), example()
    parameters = random_parameters(model)
    gradients, _ = model.gradients(parameters, batch)
    # In float64 throughout, so that the differences are exact to many more digits than float32.
    wide = Batch(batch.x.astype(np.float64), batch.y)
    step = 1e-5
    for name, value in parameters.items():
        numeric = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            losses = []
            for sign in (1, -1):
                moved: dict[str, Any] = {key: array.astype(np.float64) for key, array in parameters.items()}
                moved[name][index] += sign * step
                losses.append(model.gradients(moved, wide)[1])
            numeric[index] = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-4, atol=1e-5)


@each_model
def test_gradients_are_pushed_as_they_are(kind: str) -> None:
    model, batch = MODELS[kind](), example()
    parameters = random_parameters(model)
    gradients, loss = model.gradients(parameters, batch)
    assert gradients.keys() == parameters.keys()
    assert isinstance(loss, float)
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float32
        assert gradient.shape == parameters[name].shape
        assert gradient.flags.c_contiguous


@each_model
def test_the_initial_values_are_the_same_on_every_call(kind: str) -> None:
    first, second = MODELS[kind]().parameters(), MODELS[kind]().parameters()
    assert first.keys() == second.keys() == {"w", "b"}
    for name in first:
        assert first[name].dtype == np.float32
        np.testing.assert_array_equal(first[name], second[name])


@each_model
def test_evaluation_has_the_loss_that_is_trained(kind: str) -> None:
    model, batch = MODELS[kind](l2=0.3), example()
    parameters = random_parameters(model)
    _, loss = model.gradients(parameters, batch)
    assert model.evaluate(parameters, batch)["loss"] == pytest.approx(loss, rel=1e-6)


@each_model
def test_evaluations_merge_by_a_weighted_mean(kind: str) -> None:
    model, batch = MODELS[kind](l2=0.3), example()
    parameters = random_parameters(model)
    whole = model.evaluate(parameters, batch)
    parts = [batch.take(np.arange(7)), batch.take(np.arange(7, 40))]
    assert whole.keys() == {"loss", "mse" if kind == "linear" else "accuracy"}
    for name, value in whole.items():
        merged = sum(len(part) * model.evaluate(parameters, part)[name] for part in parts) / 40
        assert merged == pytest.approx(value, rel=1e-5)


@each_model
@pytest.mark.parametrize("scale", [1e4, 1e15, 1e30])
def test_extreme_logits_stay_finite(kind: str, scale: float) -> None:
    model, batch = MODELS[kind](), example()
    parameters = {name: value * np.float32(scale) for name, value in random_parameters(model).items()}
    gradients, loss = model.gradients(parameters, batch)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert all(np.isfinite(value) for value in model.evaluate(parameters, batch).values())


@each_model
def test_an_empty_batch_is_refused(kind: str) -> None:
    model = MODELS[kind]()
    with pytest.raises(ValueError, match="no rows"):
        model.gradients(model.parameters(), example(0))
    with pytest.raises(ValueError, match="no rows"):
        model.evaluate(model.parameters(), example(0))


@each_model
@pytest.mark.parametrize("l2", [-1.0, float("nan"), float("inf"), True, "x"])
def test_a_bad_l2_is_refused(kind: str, l2: object) -> None:
    with pytest.raises(ValueError, match="l2 is"):
        MODELS[kind](l2=l2)
