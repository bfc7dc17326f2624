import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.optimizers import SGD, Add, OptimizerSpec, Setting, optimizer_from_spec, spec_of


@given(st.floats(0, exclude_min=True, allow_infinity=False))
def test_sgd_arrives_as_it_was_written(lr: float) -> None:
    assert optimizer_from_spec(spec_of(SGD(lr=lr))) == SGD(lr=lr)


def test_add_arrives_as_it_was_written() -> None:
    assert spec_of(Add()) == OptimizerSpec("add", ())
    assert optimizer_from_spec(spec_of(Add())) == Add()


def test_a_setting_that_is_not_said_has_its_default() -> None:
    assert optimizer_from_spec(OptimizerSpec("sgd", ())) == SGD()


def test_a_whole_number_is_a_learning_rate() -> None:
    assert spec_of(SGD(lr=1)).settings == (Setting("lr", 1.0),)


@pytest.mark.parametrize(
    "lr", [0, 0.0, -0.0, -1, math.inf, -math.inf, math.nan, 10**400, "0.1", None, [0.1], 1j]
)
def test_a_learning_rate_is_a_finite_number_above_zero(lr: float) -> None:
    with pytest.raises(BadRequest, match="finite number above 0") as caught:
        SGD(lr=lr)
    assert caught.value.field == "lr"


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (OptimizerSpec("Sgd", ()), "Sgd"),
        (OptimizerSpec("__class__", ()), "__class__"),
        (OptimizerSpec("adam", (Setting("lr", 0.1),)), "adam"),
        (OptimizerSpec("sgd", (Setting("momentum", 0.9),)), "momentum"),
        (OptimizerSpec("sgd", (Setting("lr", 0.1), Setting("name", 1.0))), "name"),
        (OptimizerSpec("add", (Setting("lr", 0.1),)), "lr"),
    ],
)
def test_what_no_optimizer_has_is_refused(spec: OptimizerSpec, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        optimizer_from_spec(spec)
    assert (caught.value.field, caught.value.value) == ("optimizer", value)


@pytest.mark.parametrize("lr", [0.0, -1.0, math.inf, math.nan])
def test_a_peers_learning_rate_is_checked_like_a_users(lr: float) -> None:
    with pytest.raises(BadRequest) as caught:
        optimizer_from_spec(OptimizerSpec("sgd", (Setting("lr", lr),)))
    assert caught.value.field == "lr"
