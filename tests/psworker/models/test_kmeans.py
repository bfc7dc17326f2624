import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference
from sklearn.datasets import make_blobs

from protocol.optimizers import SGD
from psworker.data import Batch
from psworker.errors import DataError
from psworker.models import HashedModel, KMeans, PreparedModel
from psworker.models.kmeans import kmeans
from tests.psworker.models.alone import Alone, trained


def example() -> Batch:
    x, y = make_blobs(500, 3, centers=6, random_state=0)
    return Batch(x.astype(np.float32), y)


def test_the_inertia_is_scikit_learns_from_the_same_centres() -> None:
    batch = example()
    model, parameters = trained(kmeans(3, 6), batch, SGD(), epochs=10)
    assert isinstance(model, KMeans)
    reference = Reference(6, init=model.first, n_init=1).fit(batch.x.astype(np.float64))
    measures = model.evaluate(parameters, batch)
    assert measures["inertia"] == measures["loss"] == pytest.approx(reference.inertia_ / 500, rel=0.01)
    distances = np.linalg.norm(batch.x[:, None] - model.centres(parameters), axis=2)
    np.testing.assert_array_equal(model.predict(parameters, batch), distances.argmin(axis=1))


def test_a_row_moves_its_centre_by_one_part_in_the_count() -> None:
    """Sculley's algorithm 1, row by row."""
    batch = example()
    model = KMeans(3, 6).prepared(batch)
    assert model.first is not None
    centres, counts = model.first.copy(), np.ones(6)
    alone = Alone(model, SGD())
    for start in range(0, 500, 20):
        part = batch.take(np.arange(start, start + 20))
        nearest = np.linalg.norm(part.x[:, None] - centres, axis=2).argmin(axis=1)
        for row, centre in zip(part.x, nearest, strict=True):
            counts[centre] += 1
            centres[centre] += (row - centres[centre]) / counts[centre]
        alone.apply(model.gradients(alone.values, part)[0])
    np.testing.assert_allclose(model.centres(alone.values), centres, rtol=1e-6)
    np.testing.assert_array_equal(alone.values["counts"], counts)


def test_the_first_centres_are_rows_far_from_each_other_the_same_everywhere() -> None:
    batch, model = example(), kmeans(3, 6, seed=4)
    assert isinstance(model, PreparedModel)
    first = model.prepared(batch).parameters()
    assert all((batch.x == centre).all(axis=1).any() for centre in first["sums"])
    assert len(np.unique(batch.y[[(batch.x == c).all(axis=1).argmax() for c in first["sums"]]])) >= 5
    np.testing.assert_array_equal(kmeans(3, 6, seed=4).prepared(batch).parameters()["sums"], first["sums"])
    assert (kmeans(3, 6, seed=5).prepared(batch).parameters()["sums"] != first["sums"]).any()
    assert {name: value.shape for name, value in model.parameters().items()} == {
        name: value.shape for name, value in first.items()
    }


def test_weights_count_as_repetitions() -> None:
    batch, weight = example(), np.random.default_rng(0).integers(0, 3, 500)
    repeated = batch.take(np.repeat(np.arange(500), weight))
    model = KMeans(3, 6).prepared(batch)
    counted = Batch(batch.x, batch.y, None, weight.astype(np.float32))
    expected, loss = model.gradients(model.parameters(), repeated)
    found, same = model.gradients(model.parameters(), counted)
    assert same == pytest.approx(loss)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value)


def test_rows_without_weight_are_never_a_first_centre() -> None:
    batch = example()
    weight = (batch.y < 2).astype(np.float32)
    first = KMeans(3, 6).prepared(Batch(batch.x, batch.y, None, weight)).first
    assert first is not None
    assert all((batch.x[batch.y < 2] == centre).all(axis=1).any() for centre in first)


def test_too_few_different_rows_are_refused() -> None:
    batch = Batch(np.repeat(np.eye(3, dtype=np.float32), 10, axis=0), np.zeros(30, np.int64))
    assert KMeans(3, 3).prepared(batch).first is not None
    with pytest.raises(DataError, match=r"only 3 different rows .* 4 clusters .* chunk-rows"):
        KMeans(3, 4).prepared(batch)


def test_settings() -> None:
    assert not isinstance(KMeans(3), HashedModel)
    for clusters in (0, 2.5, True):
        with pytest.raises(ValueError, match="clusters is"):
            kmeans(3, clusters)  # type: ignore[arg-type]
