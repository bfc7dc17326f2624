import sys
from pathlib import Path

import pytest

from psworker.errors import JobError
from psworker.job import ModelSettings, Value
from psworker.models import (
    KINDS,
    EvaluatedModel,
    FactorizationMachine,
    HashedModel,
    KMeans,
    LinearRegression,
    LogisticRegression,
    Model,
    NetworkClassifier,
    Perceptron,
    PredictingModel,
    SoftmaxRegression,
    build_model,
)


def build(kind: str, data_classes: int | None = None, /, **settings: Value) -> Model:
    model = ModelSettings(kind, tuple(sorted(settings.items())))
    return build_model(model, features=4, classes=data_classes, seed=9)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of models in the current directory; its name."""
    (tmp_path / "own_models.py").write_text(
        """
class Small:
    def __init__(self, features, depth=1):
        self.arguments = (features, depth)
    def parameters(self): return {}
    def gradients(self, parameters, batch): return {}, 0.0

class Anything(Small):
    def __init__(self, *, seed, classes=None, **others):
        self.arguments = (seed, classes, others)

class Stubborn(Small):
    def __init__(self, features): raise KeyError("nope")

class NoGradients:
    def parameters(self): return {}

def function(): return Small(1)
"""
    )
    (tmp_path / "broken_models.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


def test_the_built_in_kinds() -> None:
    assert build("linear", l2=0.5) == LinearRegression(4, l2=0.5)
    assert build("logistic", 2) == LogisticRegression(4, 2)
    assert build("softmax", 10) == SoftmaxRegression(4, 10)
    assert build("perceptron", classes=3) == Perceptron(4, 3)
    assert build("softmax", 3, classes=3) == SoftmaxRegression(4, 3)


def test_a_class_of_the_users_own(module: str) -> None:
    assert build(f"{module}:Small", depth=3).arguments == (4, 3)  # type: ignore[attr-defined]
    built = build(f"{module}:Anything", 2, x=1)
    assert built.arguments == (9, 2, {"x": 1})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sofmax", {}, 'kind = "sofmax" is no model; did you mean "softmax"?'),
        ("zzz", {}, "known: averaged-perceptron, elastic-net, fm, huber, kmeans, "),
        ("linear", {"l3": 1}, '[model] linear has no setting "l3"; known: l2'),
        ("linear", {"classes": 2}, '[model] linear has no setting "classes"'),
        ("linear", {"features": 2}, "[model] features comes from the data"),
        ("linear", {"seed": 2}, "[model] seed comes from [job] seed"),
        ("linear", {"l2": -1}, "[model] linear: l2 is -1"),
        ("softmax", {}, "set [model] classes, or list the labels in [data] classes"),
        ("softmax", {"classes": 1}, "classes is 1"),
        ("perceptron", {}, "must know how many classes"),
        ("averaged-perceptron", {}, "averaged-perceptron must know how many classes"),
        ("svm", {"loss": "log"}, "loss is 'log'; expected one of hinge, squared-hinge"),
        ("huber", {"delta": 0}, "delta is 0; expected a finite number above 0"),
        ("quantile", {"quantile": 1.5}, "quantile is 1.5; expected a number between 0 and 1"),
        ("lasso", {"l2": 1}, 'lasso has no setting "l2"; known: l1, lr'),
        ("kmeans", {"first": 1}, 'kmeans has no setting "first"'),
        ("fm", {"classes": 3}, "a factorization machine has 2"),
        ("own_models:Small", {"dept": 1}, 'has no setting "dept"; did you mean "depth"?'),
        ("own_models:Smal", {}, 'own_models has no class "Smal"; did you mean "Small"?'),
        ("own_models:function", {}, 'has no class "function"'),
        ("own_models:", {}, 'has no class ""'),
        ("own_models:Stubborn", {}, "own_models:Stubborn: KeyError: 'nope'"),
        ("own_models:NoGradients", {}, "own_models:NoGradients has no method gradients"),
        ("broken_models:X", {}, 'cannot import "broken_models" from'),
        ("missing_models:X", {}, "No module named 'missing_models'"),
        (":X", {}, 'cannot import ""'),
        ("builtins:type", {}, "cannot be used as a model"),
    ],
)
def test_a_model_that_cannot_be_built(
    module: str, kind: str, settings: dict[str, Value], message: str
) -> None:
    with pytest.raises(JobError) as caught:
        build(kind, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_built_evaluated_and_asked(kind: str) -> None:
    model = build(kind, 2 if kind not in ("mf", "linear") else None)
    assert isinstance(model, EvaluatedModel)
    assert isinstance(model, PredictingModel)
    assert type(model).__doc__


def test_settings_that_are_lists() -> None:
    assert build("mlp", 3, hidden=(8, 4), activation="tanh") == NetworkClassifier(
        4, 3, (8, 4), "tanh", seed=9
    )
    with pytest.raises(JobError, match="hidden is 8; expected a list"):
        build("mlp", 3, hidden=8)


def test_seeds_are_the_jobs() -> None:
    assert build("fm") == FactorizationMachine(4, seed=9)
    assert build("kmeans", clusters=3) == KMeans(4, 3, seed=9)


@pytest.mark.parametrize("kind", ["mlp", "linear-exact", "kmeans"])
def test_models_that_need_dense_data_say_so(kind: str) -> None:
    model = ModelSettings(kind)
    with pytest.raises(
        JobError, match=rf"\[model\] {kind} .* hashed data does not; take \[data\] hashed out"
    ):
        build_model(model, features=0, classes=2, seed=0)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"mlp", "linear-exact", "kmeans"}))
def test_all_others_take_hashed_features(kind: str) -> None:
    model = build_model(ModelSettings(kind), features=0, classes=2 if kind != "mf" else None, seed=0)
    assert isinstance(model, HashedModel)
    assert all(len(model.parameters()[name]) == 0 for name in model.per_feature)


def test_classes_of_job_and_data_must_agree() -> None:
    with pytest.raises(JobError, match=r"classes = 3, but the data has 10"):
        build("softmax", 10, classes=3)


def test_logistic_regression_on_data_of_more_classes() -> None:
    with pytest.raises(JobError, match="logistic regression has 2"):
        build("logistic", 10)
