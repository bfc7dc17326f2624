"""Several mini-batches in one push: against what they are by definition, on dense and on hashed features."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array

from protocol.optimizers import SGD, Adam, Add, Optimizer
from psworker.data import Batch
from psworker.errors import JobError
from psworker.job import TrainSettings
from psworker.models import LogisticRegression, Model
from psworker.pieces import accumulated, check_pieces, local_rate, stepped

ROWS, FEATURES, LR = 10, 6, 0.5
PER_FEATURE = frozenset({"w"})
KEYS = np.array([3, 5, 8, 13, 21, 34], np.uint64)


def batch(*, hashed: bool, weighted: bool) -> Batch:
    rng = np.random.default_rng(1)
    x = (rng.random((ROWS, FEATURES)) * (rng.random((ROWS, FEATURES)) < 0.4)).astype(np.float32)
    y = rng.integers(0, 2, ROWS)
    weight = rng.random(ROWS).astype(np.float32) if weighted else None
    if not hashed:
        return Batch(x, y, None, weight)
    return Batch(csr_array(x), y, KEYS, weight).take(np.arange(ROWS))  # with the keys that it has


def model(*, hashed: bool, l2: float = 0.0) -> LogisticRegression:
    return LogisticRegression(0 if hashed else FEATURES, l2=l2)


def parameters(batch_: Batch) -> dict[str, npt.NDArray[Any]]:
    rows = FEATURES if batch_.keys is None else len(batch_.keys)
    rng = np.random.default_rng(2)
    return {"w": rng.normal(size=rows).astype(np.float32), "b": np.array([0.3], np.float32)}


def per_feature(*, hashed: bool) -> frozenset[str]:
    return PER_FEATURE if hashed else frozenset()


EITHER = pytest.mark.parametrize("hashed", [False, True])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


@EITHER
@WEIGHTED
@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_accumulated_gradients_are_those_of_the_whole_batch(hashed: bool, weighted: bool, size: int) -> None:
    rows = batch(hashed=hashed, weighted=weighted)
    start = parameters(rows)
    expected, expected_loss = model(hashed=hashed).gradients(start, rows)
    found, loss = accumulated(model(hashed=hashed), start, rows, size, per_feature(hashed=hashed))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-7)


@EITHER
@WEIGHTED
@pytest.mark.parametrize("size", [1, 3, 10])
def test_local_steps_are_plain_sgd_on_a_copy(hashed: bool, weighted: bool, size: int) -> None:
    rows = batch(hashed=hashed, weighted=weighted)
    start = parameters(rows)
    sums, loss = stepped(model(hashed=hashed), start, rows, size, per_feature(hashed=hashed), lambda: LR)
    dense, dense_start = (
        batch(hashed=False, weighted=weighted),
        parameters(batch(hashed=False, weighted=False)),
    )
    where = slice(None) if rows.keys is None else np.searchsorted(KEYS, rows.keys)
    dense_start["w"][where] = start["w"]
    expected, losses, weights = dense_start, [], []
    for begin in range(0, ROWS, size):
        piece = dense.take(np.arange(begin, min(begin + size, ROWS)))
        gradients, own = model(hashed=False).gradients(expected, piece)
        expected = {name: value - np.float32(LR) * gradients[name] for name, value in expected.items()}
        losses.append(own)
        weights.append(piece.total)
    assert loss == pytest.approx(np.average(losses, weights=weights), rel=1e-6)
    np.testing.assert_allclose(start["w"] - LR * sums["w"], expected["w"][where], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(start["b"] - LR * sums["b"], expected["b"], rtol=1e-5)
    assert (start["b"] == parameters(rows)["b"]).all()  # the copy was stepped with


def test_local_steps_need_a_plain_sgd() -> None:
    plain = model(hashed=False)
    assert local_rate(plain, SGD(0.25)) == 0.25
    for optimizer, said in ((Adam(), '"sgd", and it is "adam"'), (SGD(0.1, l2=0.1), "lr and nothing else")):
        with pytest.raises(JobError, match=said):
            local_rate(plain, optimizer)


class Adding(LogisticRegression):
    optimizer: ClassVar[Optimizer] = Add()


@pytest.mark.parametrize(
    ("settings", "model_", "said"),
    [
        (TrainSettings(local_steps=2), Adding(3), "has its own rule"),
        (TrainSettings(accumulate=2), Adding(3), "pushes something else"),
        (TrainSettings(local_steps=2), LogisticRegression(3), '"adam"'),
    ],
)
def test_what_does_not_go_together_is_refused(settings: TrainSettings, model_: Model, said: str) -> None:
    with pytest.raises(JobError, match=said):
        check_pieces(settings, model_, Adam())
    check_pieces(TrainSettings(), model_, Adam())
