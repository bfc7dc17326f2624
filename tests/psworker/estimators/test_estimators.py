import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs, make_classification
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from protocol.credentials import Access
from protocol.errors import Unauthenticated
from protocol.optimizers import SGD, Momentum
from psctl import LocalCluster
from psworker.client import connect
from psworker.estimators import Classifier, KMeans, MatrixFactorization, Regressor, own_cluster
from psworker.estimators.passes import drop, is_flat
from tests.cluster import Elsewhere, cluster_in_thread


@pytest.fixture(scope="module")
def cluster() -> Iterator[Elsewhere]:
    with cluster_in_thread(shards=2) as elsewhere:
        yield elsewhere


def numbers(rows: int = 200) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    return x, x @ [2.0, -1.0, 0.5] + 3 + rng.normal(scale=0.1, size=rows)


def classes(count: int = 3) -> tuple[Any, Any]:
    x, y = make_classification(300, 6, n_informative=4, n_classes=count, random_state=0)
    return x, np.array(["ant", "bee", "cat"])[y]


def test_linear_regression_is_that_of_scikit_learn(cluster: Elsewhere) -> None:
    x, y = numbers()
    reference = LinearRegression().fit(x, y)
    for kind, settings in (
        ("linear", {"optimizer": "adagrad", "lr": 0.5}),
        ("linear-exact", {"max_iter": 1}),
    ):
        found = Regressor(kind, cluster=cluster.address, random_state=0, **settings).fit(x, y)
        np.testing.assert_allclose(found.coef_, reference.coef_, atol=0.02)
        assert found.intercept_ == pytest.approx(reference.intercept_, abs=0.02)
        assert found.score(x, y) == pytest.approx(reference.score(x, y), abs=1e-3)
    np.testing.assert_allclose(found.coef_, reference.coef_, rtol=1e-5)  # of the last, which is exact


def test_digits(cluster: Elsewhere) -> None:
    x, y = load_digits(return_X_y=True)
    settings: dict[str, Any] = {"cluster": cluster.address, "random_state": 0, "lr": 0.02, "max_iter": 10}
    found = Classifier(**settings).fit(x[:1200] / 16, y[:1200])
    assert found.score(x[1200:] / 16, y[1200:]) > 0.88
    assert found.loss_curve_[-1] < found.loss_curve_[0] / 3
    assert found.n_iter_ == len(found.loss_curve_) == 10


def test_two_workers_are_one_with_both_mini_batches(cluster: Elsewhere) -> None:
    x, y = classes()
    coefs = [
        Classifier(
            cluster=cluster.address, workers=workers, batch_size=60 // workers, optimizer=SGD(lr=0.5),
            lr=None, max_iter=10, random_state=1,
        ).fit(x, y).coef_
        for workers in (1, 2, 3)
    ]  # fmt: skip
    assert np.abs(coefs[0]).max() > 0.1
    np.testing.assert_allclose(coefs[1], coefs[0], atol=1e-5)
    np.testing.assert_allclose(coefs[2], coefs[0], atol=1e-5)


@pytest.mark.parametrize("staleness", [2, np.inf])
def test_workers_that_do_not_wait_for_each_other(cluster: Elsewhere, staleness: float) -> None:
    x, y = numbers()
    found = Regressor(cluster=cluster.address, workers=3, staleness=staleness, lr=0.1, batch_size=16).fit(
        x, y
    )
    assert found.score(x, y) > 0.98


@pytest.mark.parametrize(
    "kind", ["averaged-perceptron", "mlp", "passive-aggressive", "perceptron", "softmax", "svm", "fm"]
)
def test_what_each_kind_can_do(cluster: Elsewhere, kind: str) -> None:
    x, y = classes(2 if kind == "fm" else 3)
    found = Classifier(kind, cluster=cluster.address, lr=0.05, max_iter=20, random_state=0).fit(x, y)
    labels = found.predict(x)
    assert (labels == y).mean() > 0.55
    if hasattr(found, "decision_function"):
        scores = found.decision_function(x)
        expected = scores.argmax(axis=1) if scores.ndim == 2 else (scores > 0).astype(int)
        np.testing.assert_array_equal(found.classes_[expected], labels)
        if hasattr(found, "coef_"):
            np.testing.assert_allclose((x @ found.coef_.T + found.intercept_), scores, rtol=1e-4, atol=1e-5)
    assert hasattr(found, "predict_proba") == (kind in {"mlp", "softmax", "fm"})
    if hasattr(found, "predict_proba"):
        chances = found.predict_proba(x)
        np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(found.classes_[chances.argmax(axis=1)], labels)


def test_of_two_classes_there_is_one_score(cluster: Elsewhere) -> None:
    x, y = classes(2)
    for kind in ("logistic", "softmax"):
        found = Classifier(kind, cluster=cluster.address, max_iter=5, random_state=0).fit(x, y)
        assert found.coef_.shape == (1, 6)
        assert found.intercept_.shape == (1,)
        np.testing.assert_array_equal(found.decision_function(x) > 0, found.predict(x) == "bee")


def test_k_means(cluster: Elsewhere) -> None:
    x, y = make_blobs(300, centers=[[0, 0], [5, 5], [0, 9]], random_state=0)
    found = KMeans(3, cluster=cluster.address, random_state=0).fit(x)
    centres = np.array([x[y == number].mean(axis=0) for number in range(3)])
    order = ((found.cluster_centers_[:, np.newaxis] - centres) ** 2).sum(axis=2).argmin(axis=0)
    np.testing.assert_allclose(found.cluster_centers_[order], centres, atol=0.2)
    np.testing.assert_array_equal(found.labels_, found.predict(x))
    assert found.inertia_ == pytest.approx(((x - found.cluster_centers_[found.labels_]) ** 2).sum(), rel=1e-5)
    with pytest.raises(ValueError, match="has only 1 different rows"):
        KMeans(3, cluster=cluster.address).fit(np.ones((9, 2)))


def ratings() -> tuple[Any, Any]:
    """Of 30 users, 100 to 129, and 20 items, 7 to 26: half of all pairs, of one factor and biases."""
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.choice(600, 300, replace=False), 20)
    z = 3 + rng.normal(0, 0.5, 30)[user] + rng.normal(size=30)[user] * rng.normal(size=20)[item]
    return np.column_stack([100 + user, 7 + item]), z + rng.normal(0, 0.1, 300)


def test_matrix_factorization(cluster: Elsewhere) -> None:
    x, y = ratings()
    settings: dict[str, Any] = {"cluster": cluster.address, "lr": 0.05, "random_state": 0}
    found = MatrixFactorization(2, 0.01, **settings).fit(x[:250], y[:250])
    assert found.score(x[250:], y[250:]) > 0.8
    np.testing.assert_array_equal(found.users_, np.unique(x[:250, 0]))
    assert found.user_factors_.shape == (len(found.users_), 2)
    user, item = found.users_[3], found.items_[5]
    expected = found.intercept_ + found.user_biases_[3] + found.item_biases_[5]
    product = found.user_factors_[3].astype(float) @ found.item_factors_[5]
    predicted = found.predict([[user, item], [user, -1], [10**9, item], [0, 0]])
    np.testing.assert_allclose(
        predicted - found.intercept_,
        [
            expected - found.intercept_ + product,
            found.user_biases_[3],
            found.item_biases_[5],
            0,
        ],
        rtol=1e-4,
    )
    twice = MatrixFactorization(2, 0.01, **settings).fit(x[:250].astype(float), y[:250])
    np.testing.assert_allclose(twice.predict(x), found.predict(x), rtol=1e-3)


def test_ratings_of_new_users_and_items_come_later(cluster: Elsewhere) -> None:
    x, y = ratings()
    early = (x[:, 0] < 120) & (x[:, 1] < 20)
    found = MatrixFactorization(2, 0.01, cluster=cluster.address, lr=0.05, random_state=0, tol=None)
    found.set_params(max_iter=60).fit(x[early], y[early])
    before = found.predict(x[early])
    assert found.partial_fit(x[~early], y[~early]).n_iter_ == 61
    np.testing.assert_array_equal(found.users_, np.unique(x[:, 0]))
    assert np.corrcoef(before, found.predict(x[early]))[0, 1] > 0.9  # what was known is still there
    for _ in range(60):
        found.partial_fit(x, y)
    assert found.score(x, y) > 0.9


def test_new_users_and_a_training_that_fails_leave_a_model_that_fits(cluster: Elsewhere) -> None:
    x, y = ratings()
    early = (x[:, 0] < 120) & (x[:, 1] < 20)
    found = MatrixFactorization(2, 0.01, cluster=cluster.address, random_state=0).fit(x[early], y[early])
    before = found.predict(x[early])
    for settings in ({"batch_size": 0}, {"batch_size": 32, "optimizer": "sgd", "lr": 1e30}):
        with pytest.raises(ValueError, match=r"batch_size|diverged"):
            found.set_params(**settings).partial_fit(x, y)
        np.testing.assert_allclose(found.predict(x[early]), before)


@pytest.mark.parametrize(
    ("x", "message"),
    [([[1, 2, 3]], "X has 3 columns; expected two"), ([[1.5, 2.0]], "X has 1.5; ids are whole numbers")],
)
def test_what_are_no_ids_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixFactorization(cluster="127.0.0.1:1").fit(x, [1.0])


def test_partial_fit_goes_on_with_what_the_optimizer_knew(cluster: Elsewhere) -> None:
    x, y = numbers()
    settings: dict[str, Any] = {
        "cluster": cluster.address, "workers": 2, "batch_size": 100, "tol": None, "random_state": 0,
        "optimizer": Momentum(lr=0.05), "lr": None,
    }  # fmt: skip
    once = Regressor(max_iter=4, **settings).fit(x, y)
    step_by_step = Regressor(**settings)
    for _ in range(4):
        step_by_step.partial_fit(x, y)
    np.testing.assert_allclose(step_by_step.coef_, once.coef_, rtol=1e-4)
    copy = pickle.loads(pickle.dumps(step_by_step))  # which has no momentum, and is none of the other's
    copy.partial_fit(x, y)
    assert not np.allclose(copy.coef_, step_by_step.coef_)
    np.testing.assert_allclose(step_by_step.coef_, once.coef_, rtol=1e-4)
    step_by_step.set_params(workers=1).partial_fit(x, y)  # in another job, from the same values
    np.testing.assert_allclose(step_by_step.coef_, copy.coef_, atol=0.2)
    assert step_by_step.n_iter_ == 5


def test_a_classifier_that_learns_bit_by_bit(cluster: Elsewhere) -> None:
    x, y = classes()
    found = Classifier(cluster=cluster.address, random_state=0, lr=0.1)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        found.partial_fit(x, y)
    for begin in range(0, 300, 100):
        found.partial_fit(
            x[begin : begin + 100], y[begin : begin + 100], classes=["ant", "bee", "cat", "dog"]
        )
    assert found.coef_.shape == (4, 6)
    assert found.score(x, y) > 0.5
    with pytest.raises(ValueError, match="at first they were"):
        found.partial_fit(x, y, classes=["ant", "bee"])
    with pytest.raises(ValueError, match="none of classes_"):
        found.partial_fit(x, np.array(["emu"] * 300))


def test_weights_count_as_rows(cluster: Elsewhere) -> None:
    x, y = classes(2)
    settings: dict[str, Any] = {
        "cluster": cluster.address, "workers": 1, "batch_size": 10_000, "max_iter": 5, "random_state": 0,
    }  # fmt: skip
    twice = np.where(y == "bee", 2, 1)
    repeated = Classifier("logistic", **settings).fit(np.repeat(x, twice, axis=0), np.repeat(y, twice))
    weighted = Classifier("logistic", **settings).fit(x, y, sample_weight=twice)
    by_class = Classifier("logistic", class_weight={"bee": 2}, **settings).fit(x, y)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(by_class.coef_, weighted.coef_, rtol=1e-6)
    nothing = np.where(np.arange(len(y)) < 200, 1, 0)
    some = Classifier("logistic", **settings | {"batch_size": 50}).fit(x, y, sample_weight=nothing)
    assert some.score(x[:200], y[:200]) > 0.6


@pytest.mark.parametrize("kind", ["linear", "huber", "fm", "mlp", "lasso"])
def test_sparse_features_are_as_dense_ones(cluster: Elsewhere, kind: str) -> None:
    x, y = numbers()
    x[np.abs(x) < 1] = 0
    settings: dict[str, Any] = {"cluster": cluster.address, "max_iter": 5, "random_state": 0}
    dense = Regressor(kind, **settings).fit(x, y)
    sparse = Regressor(kind, **settings).fit(csr_array(x), y)
    np.testing.assert_allclose(sparse.predict(csr_array(x)), dense.predict(x), rtol=1e-3, atol=1e-4)


def test_the_same_each_time(cluster: Elsewhere) -> None:
    x, y = classes()
    first, second = (
        Classifier("mlp", cluster=cluster.address, max_iter=5, random_state=3).fit(x, y) for _ in range(2)
    )
    for name, value in first.parameters_.items():
        np.testing.assert_array_equal(second.parameters_[name], value)


def test_pipelines_searches_and_data_frames(cluster: Elsewhere) -> None:
    x, y = classes(2)
    frame = pd.DataFrame(x, columns=list("abcdef"))
    model = Classifier("logistic", cluster=cluster.address, max_iter=5, random_state=0)
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), model)
    search = GridSearchCV(
        pipeline, {"classifier__settings": [{"l2": 0.0}, {"l2": 10.0}], "classifier__lr": [0.1]}, cv=3
    ).fit(frame, y)
    assert search.best_params_["classifier__settings"] == {"l2": 0.0}
    found = search.best_estimator_[-1]
    assert list(found.feature_names_in_) == list("abcdef")
    assert clone(found).get_params() == found.get_params()


def test_a_local_cluster_is_not_copied_with_the_estimator() -> None:
    cluster = LocalCluster()
    cluster.address = "127.0.0.1:1"
    model = Regressor(cluster=cluster)
    assert clone(model).cluster is cluster
    assert pickle.loads(pickle.dumps(model)).cluster == "127.0.0.1:1"


def test_tokens(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(0o600)
    x, y = numbers()
    with cluster_in_thread(access=Access(token_file=token)) as cluster:
        found = Regressor(cluster=cluster.address, access=Access(token_file=token), max_iter=1)
        assert found.fit(x, y).n_iter_ == 1
        with pytest.raises(Unauthenticated):
            clone(found).set_params(access=None).fit(x, y)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Classifier("linear"), "kind='linear' predicts numbers; take a Regressor"),
        (Classifier("no-such"), r'kind = "no-such" is no model'),
        (Classifier(settings={"l3": 1}), 'softmax has no setting "l3"'),
        (Classifier("logistic"), "Only binary classification is supported"),
        (Classifier(optimizer="adams"), "optimizer='adams': expected one of sgd, "),
        (Classifier(workers=0), "workers=0: expected a whole number, at least 1"),
        (Classifier(batch_size=cast("Any", 0.5)), r"batch_size=0\.5: expected a whole number"),
    ],
)
def test_what_is_wrong_is_named(cluster: Elsewhere, estimator: Classifier, message: str) -> None:
    x, y = classes()
    with pytest.raises(ValueError, match=message):
        estimator.set_params(cluster=cluster.address).fit(x, y)


def test_a_classifier_is_no_regressor(cluster: Elsewhere) -> None:
    x, y = numbers()
    with pytest.raises(ValueError, match="kind='svm' predicts classes; take a Classifier"):
        Regressor("svm", cluster=cluster.address).fit(x, y)


def test_one_class_is_too_few(cluster: Elsewhere) -> None:
    with pytest.raises(ValueError, match="only one class, 1"):
        Classifier(cluster=cluster.address).fit([[1.0], [2.0]], [1, 1])


def test_divergence_is_said(cluster: Elsewhere) -> None:
    x, y = numbers()
    with pytest.raises(ValueError, match=r"training has diverged .* lower lr"):
        Regressor(cluster=cluster.address, optimizer="sgd", lr=1e30, max_iter=20, tol=None).fit(x, y)


def test_training_ends_when_it_brings_no_more() -> None:
    assert not is_flat([], 0.1, 2)
    assert not is_flat([1.0, 0.5, 0.45], 0.1, 2)
    assert is_flat([1.0, 0.5, 0.45, 0.41], 0.1, 2)
    assert not is_flat([1.0, 0.5, 0.45, 0.3], 0.1, 2)
    assert not is_flat([1.0] * 50, None, 2)
    assert not is_flat([0.0, 3.0, 2.0, 1.0], 0.1, 2)  # a perceptron's zeros have no loss


@pytest.mark.parametrize("make", [Regressor, lambda **how: KMeans(2, **how)])
def test_fits_leave_nothing_on_the_cluster(make: Callable[..., Any]) -> None:
    x, y = numbers()
    with cluster_in_thread(shards=2) as cluster:
        for _ in range(3):
            make(cluster=cluster.address, max_iter=2).fit(x, y)
        status = cluster.status()
        assert status.jobs == ()
        assert [shard.parameters_bytes for shard in status.shards] == [0, 0]
        assert all(not server._shard.jobs for server in cluster.cluster.servers)


def test_a_fit_that_fails_leaves_nothing_either(cluster: Elsewhere) -> None:
    before = {job.name for job in cluster.status().jobs}
    x, y = numbers()
    with pytest.raises(ValueError, match="training has diverged"):
        Regressor(cluster=cluster.address, optimizer="sgd", lr=1e30, max_iter=20, tol=None).fit(x, y)
    assert {job.name for job in cluster.status().jobs} == before


def test_one_job_is_kept_for_partial_fit_until_it_is_of_no_use(cluster: Elsewhere) -> None:
    def made() -> set[str]:
        return {job.name for job in cluster.status().jobs} - before

    before = {job.name for job in cluster.status().jobs}
    x, y = numbers()
    model = Regressor(cluster=cluster.address, max_iter=2)
    model.partial_fit(x, y)
    (first,) = made()
    model.partial_fit(x, y)
    assert made() == {first}
    model.set_params(workers=1).partial_fit(x, y)  # which needs another
    (second,) = made()
    assert second != first
    model.fit(x, y)
    assert made() == set()
    assert model.partial_fit(x, y).n_iter_ == 3  # from what was fitted, with a fresh optimizer
    assert len(made()) == 1
    model.fit(x, y)
    assert made() == set()


def test_a_job_that_cannot_be_dropped_is_told_of(
    cluster: Elsewhere, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = numbers()
    model = Regressor(cluster=cluster.address, max_iter=2).partial_fit(x, y)
    place, _ = model._job

    async def somebody_joins() -> None:
        async with connect(cluster.address, place.job):
            await asyncio.to_thread(drop, place)

    cluster.run(somebody_joins())
    assert f"job {place.job} at {cluster.address} could not be dropped: job=" in caplog.text
    model.fit(x, y)
    assert place.job not in {job.name for job in cluster.status().jobs}


@pytest.mark.xdist_group("estimators")
def test_without_a_cluster_there_is_one_until_much_has_gathered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_cluster._OwnServer()
    monkeypatch.setattr(own_cluster, "_server", server)
    x, y = numbers()
    model = Regressor(max_iter=1, optimizer="momentum")
    try:
        model.fit(x, y)
        first = server._cluster
        assert model.partial_fit(x, y).n_iter_ == 2
        assert server._cluster is first
        held = server._held
        assert model.partial_fit(x, y).n_iter_ == 3
        assert server._held == held, "the job that is kept is the same"
        monkeypatch.setattr(own_cluster, "_MOST", 0)
        model.partial_fit(x, y)
        assert server._cluster is None
        assert all(one.returncode is not None for one in first.servers)
        assert model.partial_fit(x, y).n_iter_ == 5  # on a server that knows nothing of it
        assert not [one for one in caplog.records if one.name == "psworker.estimators.passes"]
    finally:
        server.stop()
    assert not [one for one in threading.enumerate() if one.name == "asyncps"]
