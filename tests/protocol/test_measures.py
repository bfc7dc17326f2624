import math

import pytest

from protocol.measures import derived


def test_what_begins_with_a_tilde_is_not_shown_and_nothing_comes_of_half_the_ingredients() -> None:
    shown = derived({"loss": 0.5, "~y": 1.0, "~yy": 2.0, "mae": 2.0, "~other": 1.0})
    assert list(shown.items()) == [("loss", 0.5), ("mae", 2.0)]
    assert derived({}) == {}


def test_rmse_and_r2_by_hand() -> None:
    shown = derived({"mse": 4.0, "~y": 3.0, "~yy": 25.0})  # a variance of 16
    assert shown == {"mse": 4.0, "rmse": 2.0, "r2": 0.75}
    assert derived({"mse": 4.0, "~y": 5.0, "~yy": 25.0}) == {"mse": 4.0, "rmse": 2.0}


def test_f1_by_hand() -> None:
    means = {"~tp.0": 0.2, "~fp.0": 0.1, "~fn.0": 0.1, "~tp.1": 0.0, "~fp.1": 0.1, "~fn.1": 0.1}
    nobody = {"~tp.2": 0.0, "~fp.2": 0.0, "~fn.2": 0.0}
    assert derived(means | nobody)["f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_auc_by_hand() -> None:
    means = {"~pos.3": 0.25, "~neg.3": 0.25, "~neg.9": 0.25, "~pos.12": 0.25}
    # Of four pairs two are in order, one is a tie, one is the wrong way round.
    assert derived(means) == {"auc": pytest.approx((2 + 0.5) / 4)}
    assert derived({"~pos.3": 0.25, "~pos.9": 0.25}) == {}


def test_what_is_not_finite_stays_so() -> None:
    shown = derived({"loss": math.nan, "mse": math.inf, "~y": 0.0, "~yy": 1.0})
    assert math.isnan(shown["loss"])
    assert shown["rmse"] == math.inf
    assert shown["r2"] == -math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e308, -1e308, 0.0, 5e-324])
def test_nothing_is_raised_whatever_a_peer_says(value: float) -> None:
    names = ("mse", "~y", "~yy", "~tp.0", "~fp.0", "~fn.0", "~tp.x", "~pos.3", "~neg.2", "~neg.900", "~")
    for name in names:
        means = dict.fromkeys(names, 1.0) | {name: value}
        assert all(isinstance(shown, float) for shown in derived(means).values())
    assert all(isinstance(shown, float) for shown in derived(dict.fromkeys(names, value)).values())
