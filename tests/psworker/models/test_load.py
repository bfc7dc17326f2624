import sys
from pathlib import Path

import pytest

from psworker.errors import JobError
from psworker.job import ModelSettings, Value
from psworker.models import (
    LinearRegression,
    LogisticRegression,
    Model,
    Perceptron,
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
        ("zzz", {}, "known: linear, logistic, package.module:Class, perceptron, softmax"),
        ("linear", {"l3": 1}, '[model] linear has no setting "l3"; known: l2'),
        ("linear", {"classes": 2}, '[model] linear has no setting "classes"'),
        ("linear", {"features": 2}, "[model] features comes from the data"),
        ("linear", {"seed": 2}, "[model] seed comes from [job] seed"),
        ("linear", {"l2": -1}, "[model] linear: ValueError: l2 is -1"),
        ("softmax", {}, "set [model] classes, or list the labels in [data] classes"),
        ("softmax", {"classes": 1}, "classes is 1"),
        ("perceptron", {}, "must know how many classes"),
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


def test_classes_of_job_and_data_must_agree() -> None:
    with pytest.raises(JobError, match=r"classes = 3, but the data has 10"):
        build("softmax", 10, classes=3)


def test_logistic_regression_on_data_of_more_classes() -> None:
    with pytest.raises(JobError, match="logistic regression has 2"):
        build("logistic", 10)
