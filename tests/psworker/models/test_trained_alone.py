"""Each model trained by the servers' rules, beside scikit-learn's own estimator on the same rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import datasets, linear_model, neural_network, svm
from sklearn.metrics import accuracy_score, mean_pinball_loss, r2_score
from sklearn.model_selection import train_test_split

from protocol.optimizers import SGD, Adam, Cosine, Optimizer
from psworker.data import Batch
from psworker.job import ModelSettings
from psworker.models import PredictingModel, build_model
from tests.psworker.models.alone import trained

Array = npt.NDArray[Any]
MAY_DIFFER = 0.01


def split(name: str) -> tuple[Batch, Batch]:
    """Training and test rows, the columns (and numbers to predict) scaled by those of the training rows."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    continuous = name == "diabetes"
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.3, random_state=0, stratify=None if continuous else y
    )
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    deviation[deviation == 0] = 1
    if continuous:
        y_test = (y_test - y_train.mean()) / y_train.std()
        y_train = (y_train - y_train.mean()) / y_train.std()
    dtype = np.float32 if continuous else np.int64
    return (
        Batch(((x_train - mean) / deviation).astype(np.float32), y_train.astype(dtype)),
        Batch(((x_test - mean) / deviation).astype(np.float32), y_test.astype(dtype)),
    )


def falling(lr: float, rows: int, epochs: int) -> Optimizer:
    return SGD(lr=lr, schedule=Cosine(steps=epochs * -(-rows // 32)))


def compare(
    kind: str, data: str, reference: Any, metric: Callable[[Array, Array], float], **settings: Any
) -> tuple[float, float]:
    """What the metric says of our model and of the reference, on the rows that neither has seen."""
    train, test = split(data)
    lr, epochs = settings.pop("lr", 0.1), settings.pop("epochs", 60)
    optimizer = settings.pop("optimizer", falling(lr, len(train), epochs))
    classes = None if data == "diabetes" else int(train.y.max()) + 1
    model = build_model(
        ModelSettings(kind, tuple(sorted(settings.items()))),
        features=train.x.shape[1],
        classes=classes,
        seed=0,
    )
    model, parameters = trained(model, train, optimizer, epochs=epochs)
    assert isinstance(model, PredictingModel)
    reference.fit(train.x.astype(np.float64), train.y)
    ours = metric(test.y, model.predict(parameters, test))
    return ours, metric(test.y, reference.predict(test.x.astype(np.float64)))


@pytest.mark.parametrize(
    ("kind", "reference", "settings"),
    [
        ("linear", linear_model.LinearRegression(), {"epochs": 200}),
        ("ridge", linear_model.Ridge(alpha=0.1 * 309), {"l2": 0.1}),
        ("linear-exact", linear_model.LinearRegression(), {"epochs": 1}),
        ("lasso", linear_model.Lasso(alpha=0.1), {"l1": 0.1}),
        ("elastic-net", linear_model.ElasticNet(alpha=0.2), {"l1": 0.1, "l2": 0.1}),
        ("mlp",
         neural_network.MLPRegressor(hidden_layer_sizes=(), alpha=0.0, max_iter=500, tol=0.0, random_state=0),
         {"hidden": (), "optimizer": Adam(lr=0.01)}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_regressions(kind: str, reference: Any, settings: dict[str, Any]) -> None:
    ours, theirs = compare(kind, "diabetes", reference, r2_score, **settings)
    assert ours >= theirs * (1 - MAY_DIFFER)


def test_huber_with_scikit_learns_own_scale() -> None:
    train, _ = split("diabetes")
    reference = linear_model.HuberRegressor(alpha=0.0).fit(train.x.astype(np.float64), train.y)
    delta = 1.35 * float(reference.scale_)
    ours, theirs = compare("huber", "diabetes", reference, r2_score, delta=delta, epochs=200)
    assert ours >= theirs * (1 - MAY_DIFFER)


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_quantiles(level: float) -> None:
    reference = linear_model.QuantileRegressor(quantile=level, alpha=0.0)
    ours, theirs = compare(
        "quantile", "diabetes", reference, lambda y, z: float(mean_pinball_loss(y, z, alpha=level)),
        quantile=level, epochs=300, lr=0.3,
    )  # fmt: skip
    assert ours <= theirs * (1 + MAY_DIFFER)


@pytest.mark.parametrize(
    ("kind", "data", "reference", "settings"),
    [
        ("logistic", "breast_cancer", linear_model.LogisticRegression(C=1 / (0.01 * 398)), {"l2": 0.01}),
        ("softmax", "digits", linear_model.LogisticRegression(C=1 / (0.01 * 1257)), {"l2": 0.01}),
        ("softmax", "wine", linear_model.LogisticRegression(C=1 / (0.01 * 124)), {"l2": 0.01}),
        ("perceptron", "digits", linear_model.Perceptron(random_state=0), {"epochs": 20}),
        ("averaged-perceptron", "digits", linear_model.Perceptron(random_state=0), {"epochs": 20}),
        ("svm", "breast_cancer", svm.LinearSVC(C=1 / (0.01 * 398), loss="hinge", max_iter=100_000),
         {"l2": 0.01}),
        ("svm", "digits", svm.LinearSVC(C=1 / (0.01 * 1257), max_iter=100_000),
         {"l2": 0.01, "loss": "squared-hinge", "lr": 0.02}),
        ("passive-aggressive", "digits",
         linear_model.SGDClassifier(penalty=None, learning_rate="pa1", eta0=0.01, random_state=0),
         {"c": 0.01, "epochs": 10}),
        ("mlp", "digits", neural_network.MLPClassifier((32,), random_state=0, max_iter=20),
         {"hidden": (32,), "optimizer": Adam(lr=0.001), "epochs": 20}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_classifiers(kind: str, data: str, reference: Any, settings: dict[str, Any]) -> None:
    ours, theirs = compare(kind, data, reference, accuracy_score, **settings)
    assert ours >= theirs * (1 - MAY_DIFFER)
