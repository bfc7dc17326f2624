import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from psctl.tune.space import Choices, Range, draw, ends, overrides, space_of
from psworker.job import load_job


@pytest.mark.parametrize(
    ("values", "dimension"),
    [
        ("16,64,256", Choices((16, 64, 256))),
        ("0, 1e-4", Choices((0, 1e-4))),
        ("sgd,adam", Choices(("sgd", "adam"))),
        ('"a,b",c', Choices(('"a', 'b"', "c"))),
        ("inf,0", Choices(("inf", 0))),
        ("true,false", Choices((True, False))),
        ("[64],[128, 64]", Choices(((64,), (128, 64)))),
        ("0.5", Choices((0.5,))),
        ("0.1..1", Range(0.1, 1.0)),
        ("-1..1", Range(-1.0, 1.0)),
        ("1e-4..1e-1:log", Range(1e-4, 1e-1, log=True)),
        ("1..8:int", Range(1, 8, whole=True)),
        ("1..1000:int:log", Range(1, 1000, log=True, whole=True)),
        ("0.01..1:log:5", Choices((0.01, 0.03162, 0.1, 0.3162, 1.0))),
        ("0..1:3", Choices((0.0, 0.5, 1.0))),
        ("1..3:int:9", Choices((1, 2, 3))),
    ],
)
def test_values(values: str, dimension: Choices | Range) -> None:
    assert space_of([f"train.x={values}"]) == {"train.x": dimension}


@pytest.mark.parametrize(
    ("tries", "problem"),
    [
        (["optimizer.lr"], "expected section.key=values"),
        (["lr=1"], "expected section.key=values"),
        (["optimizer.lr="], "a value is empty"),
        (["optimizer.lr=sgd,,adam"], "a value is empty"),
        (["optimizer.lr=1,1"], "a value is there twice"),
        (["optimizer.lr=1", "optimizer.lr=2"], "tried twice"),
        (["optimizer.lr=1..0.1"], "a range goes up"),
        (["optimizer.lr=1..1"], "a range goes up"),
        (["optimizer.lr=0..1:log"], "from above 0"),
        (["optimizer.lr=0..1e999"], "a range goes up"),
        (["optimizer.lr=0.5..2:int"], "whole numbers"),
        (["optimizer.lr=1..2:lin"], "after it :log, :int or a number"),
        (["optimizer.lr=1..2:log:log"], "after it :log, :int or a number"),
        (["optimizer.lr=1..2:3:4"], "after it :log, :int or a number"),
        (["optimizer.lr=1..2:1"], "from 2 to 1000 points"),
    ],
)
def test_what_cannot_be_read_is_named(tries: list[str], problem: str) -> None:
    with pytest.raises(BadRequest, match=problem) as refused:
        space_of(tries)
    assert refused.value.field == "--try"
    assert refused.value.value == tries[-1]


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_what_is_drawn_is_in_the_range_and_short(
    low: float, times: float, log: bool, whole: bool, seed: int
) -> None:
    low, high = (float(int(low) + 1), float(int(low * times) + 2)) if whole else (low, low * times)
    value: Any = draw(Range(low, high, log, whole), random.Random(seed))
    assert low <= value <= high
    assert isinstance(value, int) is whole
    assert whole or value in (low, high) or float(f"{value:.4g}") == value


def test_a_logarithm_is_drawn_evenly() -> None:
    randomness = random.Random(0)
    drawn: list[Any] = [draw(Range(1e-3, 1e3, log=True), randomness) for _ in range(2000)]
    assert 900 < sum(value < 1 for value in drawn) < 1100
    assert 250 < sum(value < 1e-2 for value in drawn) < 420  # a sixth


def test_all_choices_are_drawn() -> None:
    randomness = random.Random(0)
    assert {draw(Choices((1, 2, 3)), randomness) for _ in range(100)} == {1, 2, 3}
    assert {draw(Range(1, 3, whole=True), randomness) for _ in range(100)} == {1, 2, 3}


def test_the_ends_decide_whether_a_range_is_allowed() -> None:
    assert ends(Range(0.25, 4.0, log=True)) == (0.25, 4.0)
    assert ends(Range(1, 8, whole=True)) == (1, 8)
    assert ends(Choices(("a", "b"))) == ("a", "b")


def test_settings_come_back_as_they_were_given() -> None:
    settings = (
        ("optimizer.lr", 0.001), ("train.staleness", "inf"), ("model.hidden", (64, 32)), ("model.text", "1"),
        ("model.yes", True), ("data.target", 'a "b"'),
    )  # fmt: skip
    job = load_job(None, overrides(settings))
    assert dict(job.model.settings) == {"hidden": (64, 32), "text": "1", "yes": True}
    assert dict(job.optimizer.settings)["lr"] == 0.001
    assert job.data.target == 'a "b"'
