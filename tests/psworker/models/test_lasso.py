import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import ElasticNet as Reference

from protocol.optimizers import SGD
from psworker.data import Batch
from psworker.models import ElasticNet, HashedModel
from psworker.models.lasso import lasso
from tests.psworker.models.alone import Alone, trained

TRUTH = np.array([1.0, 0.0, -0.5, 0.0, 0.0, 0.25, 0.0, 0.0])


def example(rows: int = 400) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, len(TRUTH))).astype(np.float32)
    y = x @ TRUTH + 0.3 + rng.normal(0, 0.5, rows)
    return Batch(x, y.astype(np.float32))


@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_the_weights_are_scikit_learns_and_their_zeros_are_zeros(l2: float) -> None:
    batch, model = example(), ElasticNet(len(TRUTH), l1=0.1, l2=l2)
    _, parameters = trained(model, batch, SGD(), epochs=100)
    found = model.weights(parameters)
    reference = Reference(alpha=0.1 + l2, l1_ratio=0.1 / (0.1 + l2)).fit(batch.x.astype(np.float64), batch.y)
    np.testing.assert_array_equal(found["w"] == 0, reference.coef_ == 0)
    assert (found["w"] == 0).sum() >= 4
    np.testing.assert_allclose(found["w"], reference.coef_, atol=0.005)
    assert found["b"][0] == pytest.approx(reference.intercept_, abs=0.03)


def test_weights_are_the_minimum_that_the_paper_says() -> None:
    """Three mini-batches by hand, the minimum by a search over all values of each weight by itself."""
    model, alone = (
        ElasticNet(2, l1=0.05, l2=0.1, lr=0.5),
        Alone(ElasticNet(2, l1=0.05, l2=0.1, lr=0.5), SGD()),
    )
    batch, rounds = example(), []
    for number in range(3):
        part = batch.take(np.arange(20 * number, 20 * number + 20))
        part = Batch(np.ascontiguousarray(part.x[:, [0, 2]]), part.y)
        weights = model.weights(alone.values)
        residual = part.x @ weights["w"] + weights["b"] - part.y
        rounds.append((part.x.T @ residual / 20, weights["w"]))
        alone.apply(model.gradients(alone.values, part)[0])
    grid = np.linspace(-2, 2, 400001)
    found = model.weights(alone.values)["w"]
    for j in range(2):
        objective, squares = 3 * (0.05 * abs(grid) + 0.05 * grid**2), 0.0
        for g, w in rounds:
            rate = (np.sqrt(squares + g[j] ** 2) - np.sqrt(squares)) / 0.5
            squares += g[j] ** 2
            objective += g[j] * grid + rate / 2 * (grid - w[j]) ** 2
        assert found[j] == pytest.approx(grid[objective.argmin()], abs=1e-4)
    assert (found != 0).all()


def test_sums_are_the_same_in_whatever_order_they_are_added() -> None:
    """Two workers that compute at the same weights: what follows is the minimum of both their terms."""
    batch, model = example(), lasso(len(TRUTH), l1=0.01)
    start = trained(model, batch, SGD(), epochs=1)[1]
    added = [model.gradients(start, batch.take(np.arange(i, i + 20)))[0] for i in (0, 20)]
    both = {name: start[name] + added[0][name] + added[1][name] for name in start}
    found, before = model.weights(both), model.weights(start)
    for name, of in (("w", ""), ("b", "b")):
        s = both[f"s{of}"]
        mean = -np.sign(both[f"z{of}"]) * np.maximum(
            abs(both[f"z{of}"]) - (both["t"] * 0.01 if not of else 0), 0
        )
        np.testing.assert_allclose(found[name] * s, mean, rtol=1e-5, atol=1e-6)
        assert abs(found[name] - before[name]).max() < 0.3


def test_the_loss_has_both_penalties() -> None:
    batch, model = example(), ElasticNet(len(TRUTH), l1=0.1, l2=0.4)
    _, sums = trained(model, batch, SGD(), epochs=3)
    weights = model.weights(sums)
    residual = batch.x @ weights["w"] + weights["b"] - batch.y
    penalty = 0.1 * abs(weights["w"]).sum() + 0.2 * np.square(weights["w"]).sum()
    added, loss = model.gradients(sums, batch)
    assert loss == pytest.approx(np.square(residual).mean() / 2 + penalty, rel=1e-5)
    assert model.evaluate(sums, batch)["loss"] == pytest.approx(loss)
    assert added["t"].tolist() == [1.0]
    assert {value.dtype for value in added.values()} == {np.dtype(np.float64)}


def test_hashed_features_add_what_dense_ones_do() -> None:
    batch, model = example(), ElasticNet(len(TRUTH))
    assert isinstance(model, HashedModel)
    rng = np.random.default_rng(1)
    sums: dict[str, npt.NDArray[np.float64]] = {
        name: np.abs(rng.standard_normal(value.shape)) for name, value in model.parameters().items()
    }
    sparse = Batch(csr_array(batch.x), batch.y, np.arange(len(TRUTH), dtype=np.uint64))
    dense, _ = model.gradients(sums, batch)
    found, _ = model.gradients(sums, sparse)
    for name, value in dense.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("l1", -1.0), ("l2", float("nan")), ("lr", 0.0), ("lr", "x")])
def test_a_bad_setting_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        ElasticNet(3, **{name: value})  # type: ignore[arg-type]
