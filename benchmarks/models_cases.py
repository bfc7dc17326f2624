"""Which model is trained on which data, beside what, and which settings are tried for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.models_data import Data
from benchmarks.models_references import (
    Reference,
    Settings,
    alternating_least_squares,
    factorization_machine,
    fitted,
)

Array = npt.NDArray[Any]
Axes = Mapping[str, tuple[float, ...]]
"""Values to try, by setting."""


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
    """One model on one data set.

    What is fixed: `settings` of [model], which name what is compared, and `optimizer`, as `key=value`; with
    `falls` the learning rate falls to zero as a cosine over all steps. What is tried on validation rows:
    `both`, settings of the reference and of [model]; `theirs`, of the reference alone; `ours`, by their
    names in a job (`optimizer.lr`). What is `convex` has one optimum, which the reference finds.
    """

    kind: str
    data: str
    measure: Measure
    reference_name: str
    reference: Reference
    settings: tuple[str, ...] = ()
    both: Axes = field(default_factory=dict)
    theirs: Axes = field(default_factory=dict)
    ours: Axes = field(default_factory=dict)
    optimizer: tuple[str, ...] = ("name=momentum",)
    falls: bool = True
    epochs: int = 50
    batch_size: int = 64
    hashed: bool = False
    convex: bool = True

    @property
    def label(self) -> str:
        """The kind, and what else is special."""
        said = [one.replace('"', "") for one in self.settings if one.startswith(("quantile=", "loss="))]
        return ", ".join([self.kind, *said, *(["hashed"] if self.hashed else [])])


def _sklearn(module: str, name: str, settings: Callable[[Data, Settings], dict[str, Any]]) -> Reference:
    def make(data: Data, tried: Settings) -> Any:
        from importlib import import_module

        return getattr(import_module(f"sklearn.{module}"), name)(**settings(data, tried))

    return fitted(make)


def _strength(data: Data, tried: Settings) -> dict[str, Any]:
    """Return scikit-learn's C for a penalty beside the mean of the losses."""
    return {"C": 1 / (tried["l2"] * len(data.y)), "max_iter": 100_000}


def _elastic(_: Data, tried: Settings) -> dict[str, Any]:
    l1, l2 = tried["l1"], tried["l2"]
    return {"alpha": l1 + l2, "l1_ratio": l1 / (l1 + l2)}


def _quantile(level: float, *, hashed: bool = False) -> Case:
    reference = _sklearn(
        "linear_model", "QuantileRegressor", lambda _data, _tried: {"quantile": level, "alpha": 0.0}
    )
    return Case("quantile", "diabetes", pinball(level), "QuantileRegressor", reference,
                (f"quantile={level}",), ours=_ADAM_RATES, optimizer=_ADAM, epochs=_ENOUGH_WITH_CORNERS,
                batch_size=78, hashed=hashed)  # fmt: skip


_RATES: Axes = {"optimizer.lr": (0.3, 0.1, 0.03)}
_SMALL_RATES: Axes = {"optimizer.lr": (0.03, 0.01, 0.003)}
_L2: Axes = {"l2": (0.01, 0.1, 0.001)}
_ADAM_RATES: Axes = {"optimizer.lr": (0.1, 0.03, 0.01)}
_FM_RATES: Axes = {"optimizer.lr": (0.003, 0.01, 0.03)}
"""Of factorization machines, which are not convex; but on these data L-BFGS ends at the same loss, to five
digits, from each of eight starts, so they count as what has one optimum."""
_ENOUGH = 300
_ENOUGH_WITH_CORNERS = 1000
"""Epochs after which little is left of what the training rows' loss is above its lowest.

The eigenvalues of the correlations between the diabetes' columns are from 4.2 to 0.009, so descent is slow
along the last of them; and gradients of a loss with corners do not grow smaller towards its lowest point.
"""

_ADAM = ("name=adam",)
_OWN: tuple[str, ...] = ()  # a model with a rule of its own
_LEAST_SQUARES = _sklearn("linear_model", "LinearRegression", lambda _data, _tried: {})
_PERCEPTRON = _sklearn("linear_model", "Perceptron", lambda _data, _tried: {"random_state": 0})
_LOGISTIC = _sklearn("linear_model", "LogisticRegression", _strength)
_SQUARED_SVC = _sklearn("svm", "LinearSVC", _strength)
_HUBER = _sklearn("linear_model", "HuberRegressor", lambda _data, _tried: {"alpha": 0.0, "epsilon": 1.35})
_HUBER_DELTA = ("delta=0.6214",)
"""Its loss is ours where `delta` is 1.35 of its own scale, which is 0.4603 on the training rows."""

CASES: tuple[Case, ...] = (
    Case("linear", "diabetes", R2, "LinearRegression", _LEAST_SQUARES,
         ours=_ADAM_RATES, optimizer=_ADAM, epochs=_ENOUGH, batch_size=78),
    Case("ridge", "diabetes", R2, "Ridge",
         _sklearn("linear_model", "Ridge", lambda data, tried: {"alpha": tried["l2"] * len(data.y)}),
         both=_L2, ours=_ADAM_RATES, optimizer=_ADAM, epochs=_ENOUGH, batch_size=78),
    Case("lasso", "diabetes", R2, "Lasso",
         _sklearn("linear_model", "Lasso", lambda _, tried: {"alpha": tried["l1"]}),
         both={"l1": (0.01, 0.03, 0.1)}, ours={"model.lr": (0.1, 0.3, 1.0)},
         optimizer=_OWN, falls=False, epochs=200, batch_size=78),
    Case("elastic-net", "diabetes", R2, "ElasticNet", _sklearn("linear_model", "ElasticNet", _elastic),
         both={"l1": (0.01, 0.03, 0.1), "l2": (0.01, 0.1)}, ours={"model.lr": (0.1, 0.3, 1.0)},
         optimizer=_OWN, falls=False, epochs=200, batch_size=78),
    Case("linear-exact", "diabetes", R2, "LinearRegression", _LEAST_SQUARES,
         optimizer=_OWN, falls=False, epochs=1),
    Case("huber", "diabetes", R2, "HuberRegressor", _HUBER, _HUBER_DELTA,
         ours=_ADAM_RATES, optimizer=_ADAM, epochs=_ENOUGH, batch_size=78),
    _quantile(0.5),
    _quantile(0.8),
    Case("logistic", "breast-cancer", ACCURACY, "LogisticRegression", _LOGISTIC,
         both=_L2, ours=_RATES, epochs=100, batch_size=50),
    Case("softmax", "digits", ACCURACY, "LogisticRegression", _LOGISTIC, both=_L2, ours=_RATES, epochs=40),
    Case("softmax", "wine", ACCURACY, "LogisticRegression", _LOGISTIC, both=_L2, ours=_RATES, epochs=100),
    Case("perceptron", "digits", ACCURACY, "Perceptron", _PERCEPTRON,
         optimizer=("name=sgd", "lr=1.0"), ours={"train.epochs": (10, 20, 30)}, convex=False),
    Case("averaged-perceptron", "digits", ACCURACY, "Perceptron", _PERCEPTRON,
         optimizer=_OWN, falls=False, ours={"train.epochs": (10, 20, 30)}, convex=False),
    Case("passive-aggressive", "digits", ACCURACY, "SGDClassifier (PA-I)",
         _sklearn("linear_model", "SGDClassifier",
                  lambda _, tried: {"penalty": None, "learning_rate": "pa1", "eta0": tried["c"],
                                    "random_state": 0}),
         both={"c": (0.001, 0.01, 0.1)}, optimizer=_OWN, falls=False, ours={"train.epochs": (5, 10, 20)},
         convex=False),
    Case("svm", "breast-cancer", ACCURACY, "LinearSVC (hinge)",
         _sklearn("svm", "LinearSVC", lambda data, tried: _strength(data, tried) | {"loss": "hinge"}),
         both=_L2, ours=_SMALL_RATES, epochs=100, batch_size=50),
    Case("svm", "digits", ACCURACY, "LinearSVC (squared)", _SQUARED_SVC, ('loss="squared-hinge"',),
         both=_L2, ours=_SMALL_RATES, epochs=50),
    Case("fm", "phishing", ACCURACY, "L-BFGS over all pairs", factorization_machine(4, 0.1),
         ("rank=4", "std=0.1"), both={"l2": (0.005, 0.02, 0.05)},
         ours=_FM_RATES, optimizer=_ADAM, epochs=100),
    Case("mlp", "digits", ACCURACY, "MLPClassifier",
         _sklearn("neural_network", "MLPClassifier",
                  lambda _, tried: {"hidden_layer_sizes": (64,), "random_state": 0, "max_iter": 500,
                                    **tried}),
         ("hidden=[64]",), theirs={"learning_rate_init": (0.001, 0.003, 0.01)},
         ours={"optimizer.lr": (0.001, 0.003, 0.01)}, optimizer=_ADAM, epochs=40, convex=False),
    Case("kmeans", "digits", INERTIA, "KMeans, same start", lambda *_: np.empty(0), ("clusters=10",),
         optimizer=_OWN, falls=False, epochs=20),
    Case("ridge", "diabetes", R2, "Ridge",
         _sklearn("linear_model", "Ridge", lambda data, tried: {"alpha": tried["l2"] * len(data.y)}),
         both=_L2, ours=_ADAM_RATES, optimizer=_ADAM, epochs=_ENOUGH, batch_size=78, hashed=True),
    Case("huber", "diabetes", R2, "HuberRegressor", _HUBER, _HUBER_DELTA,
         ours=_ADAM_RATES, optimizer=_ADAM, epochs=_ENOUGH, batch_size=78, hashed=True),
    _quantile(0.8, hashed=True),
    Case("logistic", "values", ACCURACY, "LogisticRegression", _LOGISTIC, both=_L2, ours=_RATES, hashed=True),
    Case("svm", "values", ACCURACY, "LinearSVC (squared)", _SQUARED_SVC, ('loss="squared-hinge"',),
         both=_L2, ours=_SMALL_RATES, hashed=True),
    Case("fm", "values", ACCURACY, "L-BFGS over all pairs", factorization_machine(4, 0.1),
         ("rank=4", "std=0.1"), both={"l2": (0.005, 0.02, 0.05)},
         ours=_FM_RATES, optimizer=_ADAM, epochs=100, hashed=True),
    Case("mf", "pixels", RMSE, "alternating least squares", alternating_least_squares(8, 0.1),
         ("rank=8", "std=0.1"), both={"l2": (0.01, 0.02, 0.05)},
         ours={"optimizer.lr": (0.01, 0.03)}, optimizer=_ADAM, epochs=40, batch_size=512, hashed=True,
         convex=False),
    Case("mf", "ratings", RMSE, "alternating least squares", alternating_least_squares(4, 0.1),
         ("rank=4", "std=0.1"), both={"l2": (0.02, 0.05, 0.1)},
         ours={"optimizer.lr": (0.01, 0.03)}, optimizer=_ADAM, epochs=40, batch_size=256, hashed=True,
         convex=False),
)  # fmt: skip
