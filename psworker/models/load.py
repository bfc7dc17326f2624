"""From the [model] section of a job to a model: built in, or the user's own class."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from psworker.errors import JobError
from psworker.job import ModelSettings, nearest
from psworker.models.averaged_perceptron import AveragedPerceptron
from psworker.models.fm import fm
from psworker.models.huber import HuberRegression
from psworker.models.kmeans import kmeans
from psworker.models.lasso import ElasticNet, lasso
from psworker.models.linear import LinearRegression, ridge
from psworker.models.linear_exact import ExactLinearRegression
from psworker.models.logistic import LogisticRegression
from psworker.models.mf import MatrixFactorization
from psworker.models.mlp import mlp
from psworker.models.model import HashedModel, Model
from psworker.models.passive_aggressive import PassiveAggressive
from psworker.models.perceptron import Perceptron
from psworker.models.quantile import QuantileRegression
from psworker.models.softmax import SoftmaxRegression
from psworker.models.svm import SupportVectorMachine

KINDS: Mapping[str, Callable[..., Model]] = {
    "averaged-perceptron": AveragedPerceptron,
    "elastic-net": ElasticNet,
    "fm": fm,
    "huber": HuberRegression,
    "kmeans": kmeans,
    "lasso": lasso,
    "linear": LinearRegression,
    "linear-exact": ExactLinearRegression,
    "logistic": LogisticRegression,
    "mf": MatrixFactorization,
    "mlp": mlp,
    "passive-aggressive": PassiveAggressive,
    "perceptron": Perceptron,
    "quantile": QuantileRegression,
    "ridge": ridge,
    "softmax": SoftmaxRegression,
    "svm": SupportVectorMachine,
}
"""The built-in models by the name that [model] kind has for them."""


def build_model(settings: ModelSettings, *, features: int, classes: int | None, seed: int) -> Model:
    """Build the model that `settings` names.

    Its constructor gets the settings as keyword arguments, and those of `features`, `classes` and
    `seed` that its signature names; where the data does not know its classes, [model] classes says.
    With hashed features there are 0 of them, and it must be a `HashedModel`.
    "package.module:Class" is imported as `python -m` would, the current directory first.
    Raises JobError if there is no such model or the constructor does not take these settings.
    """
    constructor = _constructor(settings.kind)
    arguments = _arguments(constructor, settings, features=features, classes=classes, seed=seed)
    try:
        model = constructor(**arguments)
    except Exception as error:  # it may be anyone's code
        raise JobError(f"[model] {settings.kind}: {_said(error)}") from error
    for method in ("parameters", "gradients"):
        if not callable(getattr(model, method, None)):
            raise JobError(f"[model] {settings.kind} has no method {method}; a model needs it")
    if not features and not isinstance(model, HashedModel):
        raise JobError(
            f"[model] {settings.kind} needs to know how many features there are, and hashed data does not; "
            "take [data] hashed out, or another kind of model"
        )
    return model


def _constructor(kind: str) -> Callable[..., Model]:
    module_name, colon, class_name = kind.partition(":")
    if not colon:
        if kind not in KINDS:
            raise JobError(
                f'[model] kind = "{kind}" is no model{nearest(kind, [*KINDS, "package.module:Class"])}'
            )
        return KINDS[kind]
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise JobError(
            f'[model] kind = "{kind}": cannot import "{module_name}" from {directory} '
            f"or the installed packages: {_said(error)}"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise JobError(
            f'[model] kind = "{kind}": {module_name} has no class "{class_name}"'
            f"{nearest(class_name, classes)}"
        )
    return cast("Callable[..., Model]", found)


def _arguments(
    constructor: Callable[..., Model],
    settings: ModelSettings,
    *,
    features: int,
    classes: int | None,
    seed: int,
) -> dict[str, Any]:
    given = dict(settings.settings)
    for name, origin in (("features", "the data"), ("seed", "[job] seed")):
        if name in given:
            raise JobError(f"[model] {name} comes from {origin}; take it out of [model]")
    if classes is not None and given.get("classes", classes) != classes:
        raise JobError(
            f"[model] classes = {given['classes']}, but the data has {classes}; take it out of [model]"
        )
    try:
        named = inspect.signature(constructor).parameters
    except ValueError as error:
        raise JobError(f"[model] {settings.kind} cannot be used as a model: {error}") from error
    offered: dict[str, Any] = {"features": features, "seed": seed}
    if "classes" not in given:
        offered["classes"] = classes
    arguments = given | {name: value for name, value in offered.items() if name in named}
    _check_names(settings.kind, given, named)
    needed = named.get("classes")
    if needed and needed.default is inspect.Parameter.empty and arguments["classes"] is None:
        raise JobError(
            f"[model] {settings.kind} must know how many classes there are; set [model] classes, "
            "or list the labels in [data] classes"
        )
    return arguments


def _check_names(kind: str, given: Mapping[str, Any], named: Mapping[str, inspect.Parameter]) -> None:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values()):
        return
    for name in given:
        if name not in named:
            settable = (key.replace("_", "-") for key in named if key not in ("features", "seed"))
            key = name.replace("_", "-")
            raise JobError(f'[model] {kind} has no setting "{key}"{nearest(key, settable)}')


def _said(error: Exception) -> str:
    """Return what an error says; of those that are not meant to be read by users, what it is, too."""
    meant_for_users = isinstance(error, ValueError | ImportError) and str(error)
    return str(error) if meant_for_users else f"{type(error).__name__}: {error}"
