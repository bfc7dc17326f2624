import numpy as np
import pytest
from scipy.sparse import csr_array

from protocol.optimizers import SGD
from psworker.data import Batch
from psworker.models import AveragedPerceptron, HashedModel, OwnRule, Perceptron
from tests.psworker.models.alone import Alone


def example() -> Batch:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 4)).astype(np.float32)
    return Batch(x, (x[:, 0] + rng.standard_normal(60)).argsort().argsort() * 3 // 60)


def test_it_predicts_with_the_mean_of_the_weights_of_all_steps() -> None:
    batch, plain, averaged = example(), Perceptron(4, 3), AveragedPerceptron(4, 3)
    theirs, ours = Alone(plain, SGD(lr=1.0)), Alone(averaged, SGD(lr=0.3))  # it has a rule of its own
    assert isinstance(averaged, OwnRule)
    seen = {name: [value.astype(np.float64)] for name, value in theirs.values.items()}
    for row in range(len(batch)):
        one = batch.take(np.array([row]))
        theirs.apply(plain.gradients(theirs.values, one)[0])
        ours.apply(averaged.gradients(ours.values, one)[0])
        for name, value in theirs.values.items():
            seen[name].append(value.astype(np.float64))
    mean = {name: np.mean(values, axis=0).astype(np.float32) for name, values in seen.items()}
    assert ours.values["c"].tolist() == [61.0]
    assert abs(mean["w"]).max() > 0
    np.testing.assert_array_equal(averaged.predict(ours.values, batch), plain.predict(mean, batch))
    expected = plain.evaluate(mean, batch)
    assert averaged.evaluate(ours.values, batch) == pytest.approx(expected, rel=1e-4)
    assert (plain.predict(theirs.values, batch) != plain.predict(mean, batch)).any()


def test_hashed_features_have_the_gradients_of_dense_ones() -> None:
    batch, model = example(), AveragedPerceptron(4, 3)
    assert isinstance(model, HashedModel)
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.standard_normal(value.shape).astype(value.dtype)
        for name, value in model.parameters().items()
    }
    sparse = Batch(csr_array(batch.x), batch.y, np.arange(4, dtype=np.uint64))
    dense, loss = model.gradients(parameters, batch)
    found, same = model.gradients(parameters, sparse)
    assert same == pytest.approx(loss)
    for name, gradient in dense.items():
        assert found[name].dtype == parameters[name].dtype
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-6)
