import numpy as np
import pytest
from scipy.sparse import csr_array

from protocol.tables import Normal
from psworker.data import Batch
from psworker.errors import DataError
from psworker.models import FactorizationClassifier, FactorizationMachine, HashedModel, MatrixFactorization
from psworker.models.fm import fm

USERS, ITEMS = 5, 4


def pairs(rows: int = 30) -> Batch:
    """Ratings of items by users, as rows with a one for each."""
    rng = np.random.default_rng(0)
    x = np.zeros((rows, USERS + ITEMS), np.float32)
    x[np.arange(rows), rng.integers(0, USERS, rows)] = 1
    x[np.arange(rows), USERS + rng.integers(0, ITEMS, rows)] = 1
    return Batch(x, rng.standard_normal(rows).astype(np.float32))


def parameters_of(model: FactorizationMachine | MatrixFactorization) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in model.parameters().items()
    }


def test_the_score_is_the_sum_over_all_pairs_of_features() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((10, 6)).astype(np.float32)
    model = FactorizationMachine(6, 3)
    parameters = parameters_of(model)
    w, v, b = parameters["w"], parameters["v"], parameters["b"]
    expected = [
        b[0] + sum(w[i] * row[i] for i in range(6))
        + sum(v[i] @ v[j] * row[i] * row[j] for i in range(6) for j in range(i + 1, 6))
        for row in x
    ]  # fmt: skip
    np.testing.assert_allclose(model.predict(parameters, Batch(x, x[:, 0])), expected, rtol=1e-4, atol=1e-4)


def test_of_a_user_and_an_item_it_is_matrix_factorization() -> None:
    batch, model = pairs(), MatrixFactorization(USERS + ITEMS, 3, l2=0.1)
    parameters = parameters_of(model)
    w, v, b = parameters["w"], parameters["v"], parameters["b"]
    user, item = batch.x.argmax(axis=1), USERS + batch.x[:, USERS:].argmax(axis=1)
    z = b[0] + w[user] + w[item] + (v[user] * v[item]).sum(axis=1)
    np.testing.assert_allclose(model.predict(parameters, batch), z, rtol=1e-4, atol=1e-5)
    held = w[user] ** 2 + w[item] ** 2 + (v[user] ** 2 + v[item] ** 2).sum(axis=1)
    expected = np.mean(0.5 * (z - batch.y) ** 2 + 0.05 * held)
    assert model.gradients(parameters, batch)[1] == pytest.approx(expected, rel=1e-5)


def test_the_penalty_does_not_depend_on_how_rows_are_cut() -> None:
    batch, model = pairs(), MatrixFactorization(USERS + ITEMS, 3, l2=0.5)
    parameters = parameters_of(model)
    whole, _ = model.gradients(parameters, batch)
    parts = [batch.take(np.arange(3 * i, 3 * i + 3)) for i in range(10)]
    for name, value in whole.items():
        mean = np.mean([model.gradients(parameters, part)[0][name] for part in parts], axis=0)
        np.testing.assert_allclose(value, mean, rtol=1e-3, atol=1e-5)


def test_hashed_pairs_have_the_gradients_of_dense_ones() -> None:
    batch, model = pairs(), MatrixFactorization(USERS + ITEMS, 3)
    assert isinstance(model, HashedModel)
    parameters = parameters_of(model)
    sparse = Batch(csr_array(batch.x), batch.y, np.arange(USERS + ITEMS, dtype=np.uint64))
    dense, _ = model.gradients(parameters, batch)
    found, _ = model.gradients(parameters, sparse)
    for name, value in dense.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("present", [0, 1, 3])
def test_rows_have_a_user_and_an_item(present: int) -> None:
    batch, model = pairs(), MatrixFactorization(USERS + ITEMS)
    batch.x[7] = 0
    batch.x[7, :present] = 1
    for rows in (batch, Batch(csr_array(batch.x), batch.y, np.arange(USERS + ITEMS, dtype=np.uint64))):
        with pytest.raises(DataError, match=f"a row has {present} features that are not 0, and mf takes two"):
            model.gradients(parameters_of(model), rows)
        with pytest.raises(DataError, match='kind = "fm"'):
            model.predict(parameters_of(model), rows)


def test_factors_begin_somewhere_else_than_zero() -> None:
    model = FactorizationMachine(50, 4, std=0.3, seed=1)
    first = model.parameters()
    assert first["v"].std() == pytest.approx(0.3, rel=0.2)
    np.testing.assert_array_equal(first["v"], FactorizationMachine(50, 4, std=0.3, seed=1).parameters()["v"])
    assert (first["v"] != FactorizationMachine(50, 4, std=0.3, seed=2).parameters()["v"]).any()
    assert model.initial == {"v": Normal(0.3)}


def test_the_data_says_which_kind_it_is() -> None:
    assert fm(4, None, rank=2) == FactorizationMachine(4, 2)
    assert fm(4, 2, rank=2) == FactorizationClassifier(4, 2, 2)
    with pytest.raises(ValueError, match="classes is 3; a factorization machine has 2"):
        fm(4, 3)


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("rank", 2.0), ("std", 0.0), ("l2", -1.0)])
def test_a_bad_setting_is_refused(name: str, value: object) -> None:
    for model in (FactorizationMachine, FactorizationClassifier, MatrixFactorization):
        with pytest.raises(ValueError, match=f"{name} is"):
            model(4, **{name: value})  # type: ignore[arg-type]
