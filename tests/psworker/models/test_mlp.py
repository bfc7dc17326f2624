import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier, MLPRegressor

from psworker.data import Batch
from psworker.models import HashedModel, NetworkClassifier, NetworkRegression, PredictingModel, ProbableModel
from psworker.models.mlp import mlp


def example() -> Batch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5)).astype(np.float32)
    return Batch(x, (x[:, 0] * x[:, 1]).argsort().argsort() * 3 // 80)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_probabilities_are_scikit_learns_of_the_same_parameters(activation: str) -> None:
    batch, model = example(), mlp(5, 3, [7, 4], activation)
    assert isinstance(model, ProbableModel)
    reference = MLPClassifier((7, 4), activation=activation, max_iter=5)
    with pytest.warns(UserWarning, match="converged"):
        reference.fit(batch.x, batch.y)
    parameters = {f"w{number}": value for number, value in enumerate(reference.coefs_)}
    parameters |= {f"b{number}": value for number, value in enumerate(reference.intercepts_)}
    assert {name: value.shape for name, value in model.parameters().items()} == {
        name: value.shape for name, value in parameters.items()
    }
    np.testing.assert_allclose(
        model.probabilities(parameters, batch), reference.predict_proba(batch.x), rtol=1e-4, atol=1e-6
    )


def test_numbers_are_scikit_learns_of_the_same_parameters() -> None:
    batch, model = example(), mlp(5, None, [7])
    assert isinstance(model, PredictingModel)
    reference = MLPRegressor(hidden_layer_sizes=(7,), max_iter=5)
    with pytest.warns(UserWarning, match="converged"):
        reference.fit(batch.x, batch.y)
    parameters = {f"w{number}": value for number, value in enumerate(reference.coefs_)}
    parameters |= {f"b{number}": value for number, value in enumerate(reference.intercepts_)}
    np.testing.assert_allclose(
        model.predict(parameters, batch), reference.predict(batch.x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("tanh", 1.0)])
def test_weights_begin_with_deviates_that_keep_the_size_of_signals(activation: str, gain: float) -> None:
    model = NetworkRegression(100, (400,), activation, seed=3)
    first = model.parameters()
    assert first["w0"].var() == pytest.approx(gain / 100, rel=0.05)
    assert first["w1"].var() == pytest.approx(gain / 400, rel=0.2)
    assert not first["b0"].any()
    other = NetworkRegression(100, (400,), activation, seed=4).parameters()
    assert (first["w0"] != other["w0"]).any()


def test_without_hidden_layers_it_is_softmax_regression() -> None:
    assert mlp(5, 3, []).parameters().keys() == {"w0", "b0"}


def test_the_data_says_which_kind_it_is() -> None:
    assert mlp(5, None, [4]) == NetworkRegression(5, (4,))
    assert mlp(5, 3, (4, 2), "tanh") == NetworkClassifier(5, 3, (4, 2), "tanh")
    assert not isinstance(mlp(5), HashedModel)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hidden": 64}, r"hidden is 64; expected a list"),
        ({"hidden": [0]}, "hidden is 0"),
        ({"hidden": ["x"]}, "hidden is 'x'"),
        ({"activation": "selu"}, "expected one of relu, tanh"),
        ({"classes": 1}, "classes is 1"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mlp(5, **settings)  # type: ignore[arg-type]
