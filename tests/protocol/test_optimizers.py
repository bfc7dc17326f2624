import dataclasses
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.fields import array_decoder, array_encoder
from protocol.optimizers import (
    DCSGD,
    FTRL,
    OPTIMIZERS,
    SCHEDULES,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Cosine,
    Descent,
    InverseSqrt,
    Momentum,
    Nesterov,
    Optimizer,
    OptimizerSpec,
    RMSProp,
    Schedule,
    ScheduleSpec,
    Setting,
    Step,
    optimizer_from_spec,
    spec_of,
)

positive = st.floats(0, exclude_min=True, allow_infinity=False)
not_negative = st.floats(0, allow_infinity=False)
not_zero = st.floats(1e-30, allow_infinity=False)
below_one = st.floats(0, 1, exclude_max=True)
up_to_one = st.floats(0, 1)
limits = st.none() | st.just(0) | positive
steps = st.integers(1, 1 << 53)
schedules: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(Step, every=steps, factor=up_to_one),
    st.builds(Cosine, steps=steps, floor=up_to_one),
    st.builds(InverseSqrt, steps=steps),
)

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "lr": positive | st.integers(1, 1000),
    "momentum": below_one,
    "decay": below_one,
    "beta1": below_one,
    "beta2": below_one,
    "initial": not_negative,
    "eps": not_zero,
    "beta": not_zero,
    "weight_decay": not_negative,
    "lam": not_negative,
    "l1": not_negative,
    "l2": not_negative,
    "clip_value": limits,
    "clip_norm": limits,
    "schedule": st.none() | schedules,
    "warmup": st.integers(0, 1 << 53),
    "scale_by_staleness": st.booleans(),
}
WITHOUT_ADD = [cls for cls in OPTIMIZERS.values() if cls is not Add]


def instances(cls: type[Optimizer]) -> st.SearchStrategy[Optimizer]:
    return st.builds(cls, **{field.name: SETTINGS[field.name] for field in dataclasses.fields(cls)})


optimizers = st.sampled_from(list(OPTIMIZERS.values())).flatmap(instances)


# --- on the wire


@given(optimizers)
def test_an_optimizer_arrives_as_it_was_written(optimizer: Optimizer) -> None:
    spec = spec_of(optimizer)
    plain = array_encoder(OptimizerSpec)(spec)
    assert array_decoder(OptimizerSpec)(plain, "optimizer") == spec
    assert optimizer_from_spec(spec) == optimizer
    assert spec_of(optimizer_from_spec(spec)) == spec


def test_add_has_no_settings() -> None:
    assert spec_of(Add()) == OptimizerSpec("add", ())
    assert optimizer_from_spec(spec_of(Add())) == Add()


@pytest.mark.parametrize(
    ("value", "example"),
    [("adam", "psworker.Adam()"), (Adagrad, "psworker.Adagrad()"), ("no such", "psworker.SGD()")],
)
def test_what_is_no_optimizer_is_refused_with_what_would_be_one(value: Any, example: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(example)) as caught:
        spec_of(value)
    assert caught.value.field == "optimizer"


def test_what_is_off_does_not_travel() -> None:
    assert spec_of(SGD(lr=1)) == OptimizerSpec("sgd", (Setting("lr", 1.0),))
    same = SGD(lr=1.0, l1=0, clip_norm=0, clip_value=None, warmup=0, scale_by_staleness=False)
    assert spec_of(same) == spec_of(SGD(lr=1))


def test_a_setting_has_the_name_and_the_place_that_it_has_on_the_wire() -> None:
    optimizer = Momentum(
        0.5, 0.75, clip_norm=2, warmup=3, scale_by_staleness=True, schedule=Cosine(100, floor=0.25)
    )
    assert spec_of(optimizer) == OptimizerSpec(
        "momentum",
        (
            Setting("lr", 0.5),
            Setting("momentum", 0.75),
            Setting("clip_norm", 2.0),
            Setting("warmup", 3.0),
            Setting("scale_by_staleness", 1.0),
        ),
        ScheduleSpec("cosine", (Setting("steps", 100.0), Setting("floor", 0.25))),
    )


def test_what_is_not_said_has_its_default() -> None:
    for name, cls in OPTIMIZERS.items():
        assert optimizer_from_spec(OptimizerSpec(name, ())) == cls()
    step = ScheduleSpec("step", (Setting("every", 3.0),))
    assert optimizer_from_spec(OptimizerSpec("sgd", (), step)) == SGD(schedule=Step(every=3))


def test_the_defaults() -> None:
    assert (SGD().lr, Momentum().momentum, Nesterov().momentum) == (0.01, 0.9, 0.9)
    assert Adagrad() == Adagrad(lr=0.01, initial=0.0, eps=1e-10)
    assert RMSProp() == RMSProp(lr=0.01, decay=0.99, eps=1e-8)
    assert Adam() == Adam(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8)
    assert AdamW() == AdamW(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
    assert FTRL() == FTRL(lr=0.1, beta=1.0, l1=0.0, l2=0.0)
    assert DCSGD() == DCSGD(lr=0.01, lam=0.04)


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        (OptimizerSpec("Sgd", ()), "optimizer", "Sgd"),
        (OptimizerSpec("__class__", ()), "optimizer", "__class__"),
        (OptimizerSpec("sgd", (Setting("momentum", 0.9),)), "optimizer", "momentum"),
        (OptimizerSpec("sgd", (Setting("lr", 0.1), Setting("name", 1.0))), "optimizer", "name"),
        (OptimizerSpec("sgd", (Setting("schedule", 0.1),)), "optimizer", "schedule"),
        (OptimizerSpec("add", (Setting("lr", 0.1),)), "optimizer", "lr"),
        (OptimizerSpec("sgd", (Setting("warmup", 0.5),)), "warmup", "0.5"),
        (OptimizerSpec("sgd", (Setting("warmup", math.inf),)), "warmup", "inf"),
        (OptimizerSpec("sgd", (Setting("scale_by_staleness", 2.0),)), "scale_by_staleness", "2.0"),
        (OptimizerSpec("sgd", (), ScheduleSpec("cosin", ())), "schedule", "cosin"),
        (OptimizerSpec("sgd", (), ScheduleSpec("cosine", (Setting("every", 1.0),))), "schedule", "every"),
        (OptimizerSpec("sgd", (), ScheduleSpec("cosine", ())), "steps", "(absent)"),
        (OptimizerSpec("sgd", (), ScheduleSpec("cosine", (Setting("steps", 0.0),))), "steps", "0"),
        (OptimizerSpec("add", (), ScheduleSpec("inverse-sqrt", ())), "schedule", "inverse-sqrt"),
    ],
)
def test_what_no_optimizer_has_is_refused(spec: OptimizerSpec, field: str, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        optimizer_from_spec(spec)
    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize("lr", [0.0, -1.0, math.inf, math.nan])
def test_a_peers_settings_are_checked_like_a_users(lr: float) -> None:
    with pytest.raises(BadRequest) as caught:
        optimizer_from_spec(OptimizerSpec("sgd", (Setting("lr", lr),)))
    assert caught.value.field == "lr"


# --- what a setting may be

NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, "0.1", True, [0.1], 1j]


def refused(cls: Any, field: str, value: object, **others: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        cls(**{field: value}, **others)
    assert caught.value.field == field
    return caught.value.message


@pytest.mark.parametrize("cls", WITHOUT_ADD)
@pytest.mark.parametrize("lr", [0, 0.0, -0.0, -1, None, *NO_NUMBERS])
def test_a_learning_rate_is_a_finite_number_above_zero(cls: type[Optimizer], lr: object) -> None:
    assert refused(cls, "lr", lr) == "a learning rate is a finite number above 0"


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (Momentum, "momentum"),
        (Nesterov, "momentum"),
        (RMSProp, "decay"),
        (Adam, "beta1"),
        (Adam, "beta2"),
        (AdamW, "beta1"),
        (AdamW, "beta2"),
    ],
)
@pytest.mark.parametrize("value", [1, 1.0, 1.5, -0.1, None, *NO_NUMBERS])
def test_what_is_left_after_a_step_is_less_than_one(cls: type[Optimizer], field: str, value: object) -> None:
    assert "from 0 up to, but not including, 1" in refused(cls, field, value)


@pytest.mark.parametrize(
    ("cls", "field"),
    [(cls, "eps") for cls in (Adagrad, RMSProp, Adam, AdamW)] + [(FTRL, "beta")],
)
@pytest.mark.parametrize("value", [0, -1, 1e-50, None, *NO_NUMBERS])
def test_what_prevents_a_division_by_zero_is_not_zero(
    cls: type[Optimizer], field: str, value: object
) -> None:
    assert "1e-30 or more" in refused(cls, field, value)


@pytest.mark.parametrize(
    ("cls", "field"),
    [(Adagrad, "initial"), (AdamW, "weight_decay"), (DCSGD, "lam"), (SGD, "l1"), (SGD, "l2"), (FTRL, "l1")],
)
@pytest.mark.parametrize("value", [-1e-9, None, *NO_NUMBERS])
def test_strengths_are_not_negative(cls: type[Optimizer], field: str, value: object) -> None:
    assert "0 or more" in refused(cls, field, value)


@pytest.mark.parametrize("field", ["clip_value", "clip_norm"])
def test_a_limit_is_a_number_above_zero_or_none(field: str) -> None:
    sgd: Any = SGD
    for off in (None, 0, 0.0):
        assert sgd(**{field: off}) == SGD()
    for value in (-1, *NO_NUMBERS):
        assert "0 or None for no limit" in refused(SGD, field, value)


def test_steps_are_whole_numbers() -> None:
    for value in (-1, 1.0, (1 << 53) + 1, True, "3", None):
        assert "whole number from 0" in refused(SGD, "warmup", value)
    for value in (0, -1, 1.0, (1 << 53) + 1, True, "3", None):
        assert "whole number from 1" in refused(Step, "every", value)
        assert "whole number from 1" in refused(Cosine, "steps", value)
        assert "whole number from 1" in refused(InverseSqrt, "steps", value)


def test_a_schedule_takes_parts_of_the_learning_rate() -> None:
    for value in (-0.1, 1.1, None, *NO_NUMBERS):
        assert "from 0 to 1" in refused(Step, "factor", value, every=1)
        assert "from 0 to 1" in refused(Cosine, "floor", value, steps=1)


def test_a_truth_is_true_or_false_and_a_schedule_is_one() -> None:
    for value in (1, 0, None, "yes"):
        assert "true or false" in refused(SGD, "scale_by_staleness", value)
    for wrong in ("cosine", Cosine, 0.1, True):
        assert "Step, Cosine, InverseSqrt" in refused(SGD, "schedule", wrong)


def test_every_setting_has_its_check_and_every_name_its_class() -> None:
    assert {name: cls.name for name, cls in OPTIMIZERS.items()} == {name: name for name in OPTIMIZERS}
    assert {name: cls.name for name, cls in SCHEDULES.items()} == {name: name for name in SCHEDULES}
    assert all(issubclass(cls, Descent) for cls in WITHOUT_ADD)
