import numpy as np
import pytest
from sklearn.linear_model import LinearRegression as Reference
from sklearn.linear_model import Ridge

from protocol.optimizers import SGD
from psworker.data import Batch
from psworker.models import ExactLinearRegression, HashedModel
from psworker.models.linear_exact import MAX_FEATURES
from tests.psworker.models.alone import Parameters, trained


def example(features: int = 6, rows: int = 300, offset: float = 100.0) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features)) * np.logspace(-3, 3, features) + offset
    y = x @ np.logspace(3, -3, features) + rng.standard_normal(rows)
    return Batch(x.astype(np.float32), y.astype(np.float32))


def solved(batch: Batch, l2: float = 0.0, epochs: int = 1) -> tuple[ExactLinearRegression, Parameters]:
    model = ExactLinearRegression(batch.x.shape[1], l2)
    return model, trained(model, batch, SGD(), epochs=epochs)[1]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_the_solution_is_scikit_learns(l2: float, epochs: int) -> None:
    batch = example()
    reference = Ridge(alpha=l2 * len(batch), solver="svd") if l2 else Reference()
    reference.fit(batch.x.astype(np.float64), batch.y)
    model, parameters = solved(batch, l2, epochs)
    found = model.weights(parameters)
    np.testing.assert_allclose(found["w"], reference.coef_, rtol=1e-4, atol=1e-6)
    assert found["b"][0] == pytest.approx(reference.intercept_, rel=1e-4)
    np.testing.assert_allclose(model.predict(parameters, batch), reference.predict(batch.x), rtol=1e-3)


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_columns_that_depend_on_others_are_no_trouble(constant: float) -> None:
    plain = example(offset=0.0)
    twice = np.column_stack([plain.x, plain.x[:, 2] * 2 - plain.x[:, 3], np.full(300, constant)])
    batch = Batch(np.ascontiguousarray(twice, np.float32), plain.y)
    model, parameters = solved(batch)
    reference = Reference().fit(plain.x.astype(np.float64), plain.y)
    np.testing.assert_allclose(
        model.predict(parameters, batch), reference.predict(plain.x), rtol=1e-3, atol=0.1
    )
    weights = model.weights(parameters)["w"]
    assert np.isfinite(weights).all()
    assert weights[-1] == 0.0


def test_fewer_rows_than_features_are_fitted_exactly() -> None:
    batch = example(20, 10, 0.0)
    model, parameters = solved(batch)
    np.testing.assert_allclose(model.predict(parameters, batch), batch.y, rtol=1e-2, atol=0.5)


def test_weights_count_as_repetitions() -> None:
    batch, weight = example(), np.random.default_rng(0).integers(0, 3, 300)
    repeated = batch.take(np.repeat(np.arange(300), weight))
    model, expected = solved(repeated)
    _, found = solved(Batch(batch.x, batch.y, None, weight.astype(np.float32)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    assert model.evaluate(found, batch) == pytest.approx(model.evaluate(expected, batch), rel=1e-3)


def test_before_the_first_row_everything_is_zero() -> None:
    batch, model = example(), ExactLinearRegression(6)
    assert not model.predict(model.parameters(), batch).any()
    _, loss = model.gradients(model.parameters(), batch)
    assert loss == pytest.approx(np.square(batch.y, dtype=np.float64).mean() / 2, rel=1e-5)


def test_it_is_for_dense_data_of_not_too_many_columns() -> None:
    assert not isinstance(ExactLinearRegression(MAX_FEATURES), HashedModel)
    with pytest.raises(ValueError, match=r'at most 1024 features, and the data has 1025; use kind = "ridge"'):
        ExactLinearRegression(MAX_FEATURES + 1)
