import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import SGDClassifier

from protocol.optimizers import SGD
from psworker.data import Batch
from psworker.models import HashedModel, PassiveAggressive
from tests.psworker.models.alone import Alone

Floats = npt.NDArray[np.float64]


def example(classes: int, rows: int = 600) -> Batch:
    rng = np.random.default_rng(classes)
    x = rng.standard_normal((rows, 4)).astype(np.float32)
    return Batch(x, (x[:, 0] + rng.standard_normal(rows)).argsort().argsort() * classes // rows)


def by_the_book(batch: Batch, classes: int, c: Floats) -> tuple[Floats, Floats]:
    """Crammer et al. 2006 row by row, with the bias as a feature that is 1; the weights, and the losses."""
    w = np.zeros((5, classes))
    losses = []
    for x, y, most in zip(batch.x, batch.y, c, strict=True):
        features = np.append(x.astype(np.float64), 1)
        z = features @ w
        rival = max((k for k in range(classes) if k != y), key=lambda k: z[k])
        losses.append(max(0.0, 1 - (z[y] - z[rival])))
        tau = min(most, losses[-1] / (2 * features @ features))
        w[:, y] += tau * features
        w[:, rival] -= tau * features
    return w, np.array(losses)


@pytest.mark.parametrize("batch_size", [1, 7, 600])
@pytest.mark.parametrize("c", [0.05, 10.0])
def test_one_worker_does_what_the_paper_says_whatever_its_batches(batch_size: int, c: float) -> None:
    batch, model = example(3), PassiveAggressive(4, 3, c=c)
    alone, losses = Alone(model, SGD(lr=0.3)), []
    for start in range(0, len(batch), batch_size):
        part = batch.take(np.arange(start, min(start + batch_size, len(batch))))
        gradients, loss = model.gradients(alone.values, part)
        alone.apply(gradients)
        losses.append(loss * len(part))
    w, expected = by_the_book(batch, 3, np.full(600, c))
    np.testing.assert_allclose(alone.values["w"], w[:4], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone.values["b"], w[4], rtol=1e-3, atol=1e-4)
    assert sum(losses) == pytest.approx(expected.sum(), rel=1e-4)


def test_two_classes_are_scikit_learns_with_twice_the_aggressiveness() -> None:
    batch, model = example(2), PassiveAggressive(5, 2, c=0.01)
    ones = np.ones((600, 1), np.float32)  # as scikit-learn does not count the bias in the length
    wide = Batch(np.hstack([batch.x, ones]), batch.y)
    reference = SGDClassifier(
        loss="hinge", penalty=None, learning_rate="pa1", eta0=0.02, shuffle=False, max_iter=1, tol=None,
        fit_intercept=False,
    )  # fmt: skip
    reference.fit(wide.x, wide.y)
    bookish, _ = by_the_book(batch, 2, np.full(600, 0.01))
    np.testing.assert_allclose(bookish[:, 1] - bookish[:, 0], reference.coef_[0], rtol=1e-3, atol=1e-5)
    assert isinstance(model, HashedModel)


def test_a_weight_multiplies_the_aggressiveness() -> None:
    batch = example(3)
    weight = np.random.default_rng(0).integers(0, 3, 600).astype(np.float32)
    model = PassiveAggressive(4, 3, c=0.02)
    gradients, _ = model.gradients(model.parameters(), Batch(batch.x, batch.y, None, weight))
    w, _ = by_the_book(batch, 3, 0.02 * weight.astype(np.float64))
    np.testing.assert_allclose(-gradients["w"], w[:4], rtol=1e-3, atol=1e-4)


def test_hashed_features_have_the_gradients_of_dense_ones() -> None:
    batch, model = example(3), PassiveAggressive(4, 3)
    sparse = Batch(csr_array(batch.x), batch.y, np.arange(4, dtype=np.uint64))
    dense, loss = model.gradients(model.parameters(), batch)
    found, same = model.gradients(model.parameters(), sparse)
    assert same == pytest.approx(loss, rel=1e-5)
    for name, gradient in dense.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), True, "x"])
def test_a_bad_c_is_refused(c: object) -> None:
    with pytest.raises(ValueError, match="c is"):
        PassiveAggressive(4, 2, c)  # type: ignore[arg-type]
