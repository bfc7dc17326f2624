"""Which model is trained how, on which data, and beside what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.models_data import Data
from benchmarks.models_references import (
    Reference,
    alternating_least_squares,
    factorization_machine,
    fitted,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared: `of` the labels and the predictions of the test rows."""

    name: str
    of: Callable[[Array, Array], float]
    more_is_better: bool


def _r2(y: Array, z: Array) -> float:
    return 1 - float(np.square(y - z).mean() / y.var())


ACCURACY = Measure("accuracy", lambda y, z: float((y == z).mean()), True)
R2 = Measure("R²", _r2, True)
RMSE = Measure("RMSE", lambda y, z: float(np.sqrt(np.square(y - z).mean())), False)
INERTIA = Measure("inertia", lambda _, distances: float(distances.mean()), False)


def pinball(level: float) -> Measure:
    """Return the loss of a quantile."""
    return Measure(
        "pinball", lambda y, z: float(np.maximum(level * (y - z), (level - 1) * (y - z)).mean()), False
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One model. `settings` are [model], `optimizer` [optimizer] as `key=value`; `rate` falls as a cosine."""

    kind: str
    data: str
    measure: Measure
    reference_name: str
    reference: Reference
    settings: tuple[str, ...] = ()
    rate: float | None = 0.1
    optimizer: tuple[str, ...] = ()
    epochs: int = 60
    batch_size: int = 32
    hashed: bool = False

    @property
    def label(self) -> str:
        """The kind, and what else is special."""
        return f"{self.kind}, hashed" if self.hashed else self.kind


def _sklearn(module: str, name: str, settings: Callable[[Data], dict[str, Any]]) -> Reference:
    def make(data: Data) -> Any:
        from importlib import import_module

        return getattr(import_module(f"sklearn.{module}"), name)(**settings(data))

    return fitted(make)


def _strength(l2: float) -> Callable[[Data], dict[str, Any]]:
    """Return scikit-learn's C for a penalty beside the mean of the losses."""
    return lambda data: {"C": 1 / (l2 * len(data.y)), "max_iter": 100_000}


def _huber() -> Reference:
    """Its loss is ours where `delta` is 1.35 of its own scale, which is 0.4603 on these rows."""
    return _sklearn("linear_model", "HuberRegressor", lambda _: {"alpha": 0.0, "epsilon": 1.35})


def _online_pa(eta0: float) -> Callable[[Data], dict[str, Any]]:
    return lambda _: {"penalty": None, "learning_rate": "pa1", "eta0": eta0, "random_state": 0}


_ADAM = ("name=adam", "lr=0.003")
_OWN = None  # a model with a rule of its own
_LEAST_SQUARES = _sklearn("linear_model", "LinearRegression", lambda _: {})
_PERCEPTRON = _sklearn("linear_model", "Perceptron", lambda _: {"random_state": 0})

CASES: tuple[Case, ...] = (
    Case("linear", "diabetes", R2, "LinearRegression", _LEAST_SQUARES,
         epochs=200),
    Case("ridge", "diabetes", R2, "Ridge",
         _sklearn("linear_model", "Ridge", lambda data: {"alpha": 0.1 * len(data.y)}), ("l2=0.1",)),
    Case("lasso", "diabetes", R2, "Lasso", _sklearn("linear_model", "Lasso", lambda _: {"alpha": 0.1}),
         ("l1=0.1",), _OWN),
    Case("elastic-net", "diabetes", R2, "ElasticNet",
         _sklearn("linear_model", "ElasticNet", lambda _: {"alpha": 0.2}), ("l1=0.1", "l2=0.1"), _OWN),
    Case("linear-exact", "diabetes", R2, "LinearRegression",
         _LEAST_SQUARES, rate=_OWN, epochs=1),
    Case("huber", "diabetes", R2, "HuberRegressor", _huber(), ("delta=0.6214",), 0.3, epochs=200),
    Case("quantile", "diabetes", pinball(0.5), "QuantileRegressor",
         _sklearn("linear_model", "QuantileRegressor", lambda _: {"quantile": 0.5, "alpha": 0.0}),
         ("quantile=0.5",), 0.3, epochs=100),
    Case("logistic", "breast-cancer", ACCURACY, "LogisticRegression",
         _sklearn("linear_model", "LogisticRegression", _strength(0.01)), ("l2=0.01",)),
    Case("softmax", "digits", ACCURACY, "LogisticRegression",
         _sklearn("linear_model", "LogisticRegression", _strength(0.01)), ("l2=0.01",), 0.3, epochs=40),
    Case("softmax", "wine", ACCURACY, "LogisticRegression",
         _sklearn("linear_model", "LogisticRegression", _strength(0.01)), ("l2=0.01",)),
    Case("perceptron", "digits", ACCURACY, "Perceptron",
         _PERCEPTRON, epochs=20),
    Case("averaged-perceptron", "digits", ACCURACY, "Perceptron",
         _PERCEPTRON, rate=_OWN, epochs=20),
    Case("passive-aggressive", "digits", ACCURACY, "SGDClassifier (PA-I)",
         _sklearn("linear_model", "SGDClassifier", _online_pa(0.01)), ("c=0.01",), _OWN, epochs=10),
    Case("svm", "breast-cancer", ACCURACY, "LinearSVC (hinge)",
         _sklearn("svm", "LinearSVC", lambda data: _strength(0.01)(data) | {"loss": "hinge"}), ("l2=0.01",)),
    Case("svm", "digits", ACCURACY, "LinearSVC (squared)", _sklearn("svm", "LinearSVC", _strength(0.01)),
         ("l2=0.01", 'loss="squared-hinge"'), 0.02, epochs=40),
    Case("fm", "phishing", ACCURACY, "L-BFGS over all pairs", factorization_machine(4, 0.02, 0.1),
         ("rank=4", "l2=0.02", "std=0.1"), _OWN, _ADAM),
    Case("mlp", "digits", ACCURACY, "MLPClassifier",
         _sklearn("neural_network", "MLPClassifier",
                  lambda _: {"hidden_layer_sizes": (64,), "random_state": 0, "max_iter": 500}),
         ("hidden=[64]",), _OWN, _ADAM, epochs=40),
    Case("kmeans", "digits", INERTIA, "KMeans, same start", lambda _: np.empty(0), ("clusters=10",), _OWN,
         epochs=10),
    Case("logistic", "values", ACCURACY, "LogisticRegression",
         _sklearn("linear_model", "LogisticRegression", _strength(0.001)), ("l2=0.001",), hashed=True),
    Case("svm", "values", ACCURACY, "LinearSVC (squared)", _sklearn("svm", "LinearSVC", _strength(0.01)),
         ("l2=0.01", 'loss="squared-hinge"'), 0.03, hashed=True),
    Case("fm", "values", ACCURACY, "L-BFGS over all pairs", factorization_machine(4, 0.02, 0.1),
         ("rank=4", "l2=0.02", "std=0.1"), _OWN, _ADAM, hashed=True),
    Case("mf", "ratings", RMSE, "alternating least squares", alternating_least_squares(4, 0.05, 0.1),
         ("rank=4", "l2=0.05", "std=0.1"), 0.02, ("name=adam",),
         epochs=40, batch_size=128, hashed=True),
)  # fmt: skip
