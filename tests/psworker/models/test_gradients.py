"""What holds for every model that gives an example a score: losses, gradients, weights, hashed features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array

from psworker.data import Batch
from psworker.models import (
    EvaluatedModel,
    FactorizationClassifier,
    FactorizationMachine,
    HashedModel,
    HuberRegression,
    LinearRegression,
    LogisticRegression,
    NetworkClassifier,
    NetworkRegression,
    Perceptron,
    PredictingModel,
    ProbableModel,
    QuantileRegression,
    SoftmaxRegression,
    SupportVectorMachine,
)

FEATURES = 5

MODELS: dict[str, Callable[..., EvaluatedModel]] = {
    "linear": lambda **settings: LinearRegression(FEATURES, **settings),
    "huber": lambda **settings: HuberRegression(FEATURES, 0.7, **settings),
    "quantile": lambda **settings: QuantileRegression(FEATURES, 0.8, **settings),
    "logistic": lambda **settings: LogisticRegression(FEATURES, **settings),
    "softmax": lambda **settings: SoftmaxRegression(FEATURES, 2, **settings),
    "perceptron": lambda **settings: Perceptron(FEATURES, 2, **settings),
    "svm": lambda **settings: SupportVectorMachine(FEATURES, **settings),
    "svm of 3": lambda **settings: SupportVectorMachine(FEATURES, 3, **settings),
    "squared svm": lambda **settings: SupportVectorMachine(FEATURES, 3, loss="squared-hinge", **settings),
    "fm": lambda **settings: FactorizationMachine(FEATURES, 3, **settings),
    "fm of 2": lambda **settings: FactorizationClassifier(FEATURES, 2, 3, **settings),
    "mlp": lambda **settings: NetworkRegression(FEATURES, (4, 3), **settings),
    "mlp of 2": lambda **settings: NetworkClassifier(FEATURES, 2, (4,), "tanh", **settings),
}
REGRESSIONS = ("linear", "huber", "quantile", "fm", "mlp")
HASHED = [kind for kind in MODELS if "mlp" not in kind]
LINEAR = [kind for kind in HASHED if "fm" not in kind]
each_model = pytest.mark.parametrize("kind", MODELS)


def example(n: int = 40) -> Batch:
    """Rows of which each has about half of the features."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, FEATURES)) * (rng.random((n, FEATURES)) < 0.5)
    return Batch(x.astype(np.float32), (rng.random(n) < 0.5).astype(np.int64))


def weighted(n: int = 40) -> Batch:
    batch = example(n)
    return Batch(batch.x, batch.y, None, np.random.default_rng(3).integers(0, 4, n).astype(np.float32))


def hashed(batch: Batch) -> Batch:
    """The same rows as of hashed features, all of which occur."""
    return Batch(csr_array(batch.x), batch.y, np.arange(100, 100 + FEATURES, dtype=np.uint64), batch.weight)


def random_parameters(model: EvaluatedModel) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    parameters = {}
    for name, value in model.parameters().items():
        parameters[name] = rng.standard_normal(value.shape).astype(np.float32)
        parameters[name].flags.writeable = False
    return parameters


@each_model
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("batch", [example(), weighted()], ids=["rows", "weighted"])
def test_gradients_are_finite_differences_of_the_loss(kind: str, l2: float, batch: Batch) -> None:
    model = MODELS[kind](l2=l2)
    parameters = random_parameters(model)
    gradients, _ = model.gradients(parameters, batch)
    # In float64 throughout, so that the differences are exact to many more digits than float32.
    wide = Batch(batch.x.astype(np.float64), batch.y, None, batch.weight)
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
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-4, atol=2e-5)


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


@pytest.mark.parametrize("kind", HASHED)
@pytest.mark.parametrize("batch", [example(), weighted()], ids=["rows", "weighted"])
def test_hashed_features_have_the_gradients_of_dense_ones(kind: str, batch: Batch) -> None:
    model = MODELS[kind](l2=0.3)
    assert isinstance(model, HashedModel)
    assert isinstance(model, PredictingModel)
    parameters = random_parameters(model)
    dense, loss = model.gradients(parameters, batch)
    sparse, same_loss = model.gradients(parameters, hashed(batch))
    assert same_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in dense.items():
        assert sparse[name].dtype == np.float32
        assert sparse[name].flags.c_contiguous
        np.testing.assert_allclose(sparse[name], gradient, rtol=1e-4, atol=1e-6)
    predicted = model.predict(parameters, batch)
    np.testing.assert_allclose(model.predict(parameters, hashed(batch)), predicted, rtol=1e-4)


@pytest.mark.parametrize("kind", HASHED)
def test_of_hashed_features_only_those_of_the_rows_are_needed(kind: str) -> None:
    model = MODELS[kind]()
    assert isinstance(model, HashedModel)
    parameters = random_parameters(model)
    few = hashed(example()).take(np.array([3, 4]))
    assert few.keys is not None
    assert 0 < len(few.keys) < FEATURES
    used = few.keys.astype(np.int64) - 100
    pulled = {name: value[used] if name in model.per_feature else value for name, value in parameters.items()}
    dense, loss = model.gradients(parameters, example().take(np.array([3, 4])))
    sparse, same_loss = model.gradients(pulled, few)
    assert same_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in sparse.items():
        expected = dense[name][used] if name in model.per_feature else dense[name]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", HASHED)
def test_tables_have_a_row_a_feature(kind: str) -> None:
    model = MODELS[kind]()
    assert isinstance(model, HashedModel)
    for name, value in model.parameters().items():
        assert (value.shape[:1] == (FEATURES,)) == (name in model.per_feature)
    assert set(model.initial) <= set(model.per_feature)


@each_model
def test_a_row_of_weight_3_is_three_rows(kind: str) -> None:
    model, batch = MODELS[kind](l2=0.3), weighted()
    assert batch.weight is not None
    repeated = example().take(np.repeat(np.arange(40), batch.weight.astype(np.intp)))
    parameters = random_parameters(model)
    gradients, loss = model.gradients(parameters, batch)
    expected, expected_loss = model.gradients(parameters, repeated)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-3, atol=1e-5)
    measures = model.evaluate(parameters, batch)
    assert measures == pytest.approx(model.evaluate(parameters, repeated), rel=1e-5, abs=1e-7)


@each_model
def test_rows_without_any_weight_change_nothing(kind: str) -> None:
    model, batch = MODELS[kind](), example()
    nothing = Batch(batch.x, batch.y, None, np.zeros(40, np.float32))
    gradients, loss = model.gradients(random_parameters(model), nothing)
    assert loss == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


@each_model
def test_the_initial_values_are_the_same_on_every_call(kind: str) -> None:
    first, second = MODELS[kind]().parameters(), MODELS[kind]().parameters()
    assert first.keys() == second.keys()
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
    model, batch = MODELS[kind](), weighted()  # without a penalty, which is none of the rows'
    parameters = random_parameters(model)
    whole = model.evaluate(parameters, batch)
    parts = [batch.take(np.arange(7)), batch.take(np.arange(7, 40))]
    shown = {name for name in whole if not name.startswith("~")}
    assert shown - {"log-loss"} == {"loss", *(["mse", "mae"] if kind in REGRESSIONS else ["accuracy"])}
    for name, value in whole.items():
        merged = sum(part.total * model.evaluate(parameters, part)[name] for part in parts) / batch.total
        assert merged == pytest.approx(value, rel=1e-5, abs=1e-9)


@each_model
def test_predictions_are_what_is_measured_and_do_not_look_at_labels(kind: str) -> None:
    model, batch = MODELS[kind](), example()
    assert isinstance(model, PredictingModel)
    parameters = random_parameters(model)
    unknown = Batch(batch.x, np.full(40, np.nan, np.float32))
    predicted = model.predict(parameters, unknown)
    measures = model.evaluate(parameters, batch)
    if kind in REGRESSIONS:
        assert predicted.dtype == np.float32
        assert np.square(predicted - batch.y).mean() == pytest.approx(measures["mse"], rel=1e-5)
    else:
        assert predicted.dtype == np.int64
        assert (predicted == batch.y).mean() == pytest.approx(measures["accuracy"])
    assert len(model.predict(parameters, example(0))) == 0


@pytest.mark.parametrize("kind", ["logistic", "softmax", "fm of 2", "mlp of 2"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_probabilities_sum_to_one_and_make_the_log_loss(kind: str, scale: float) -> None:
    model, batch = MODELS[kind](l2=0.3), example()
    assert isinstance(model, ProbableModel)
    parameters = {name: value * np.float32(scale) for name, value in random_parameters(model).items()}
    found = model.probabilities(parameters, batch)
    assert found.shape == (40, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.argmax(axis=1), model.predict(parameters, batch))
    if scale == 1.0:
        likelihood = np.log(found[np.arange(40), batch.y].astype(np.float64))
        assert model.evaluate(parameters, batch)["log-loss"] == pytest.approx(-likelihood.mean(), rel=1e-3)


def test_models_that_know_no_probabilities_do_not_say_any() -> None:
    for kind in (*REGRESSIONS, "perceptron", "svm"):
        assert not isinstance(MODELS[kind](), ProbableModel)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("scale", [1e4, 1e15, 1e30])
def test_extreme_scores_stay_finite(kind: str, scale: float) -> None:
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
