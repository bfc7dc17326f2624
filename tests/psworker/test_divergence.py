import math
from collections.abc import Iterable

import numpy as np
import pytest

from psworker.divergence import LossWatch


def first_alarm(losses: Iterable[float], above: float = 10.0, examples: int = 50) -> tuple[int, str] | None:
    watch = LossWatch(above, examples)
    for step, loss in enumerate(losses):
        found = watch.look(loss)
        if found:
            return step, found
    return None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("above", [0.0, 10.0])
def test_a_loss_that_is_not_finite_is_told_at_once(loss: float, above: float) -> None:
    assert first_alarm([1.0, loss], above) == (1, f"the loss is {loss}")


def test_a_mean_far_above_its_best_is_told() -> None:
    falling = [1.0 / (1 + step / 20) for step in range(400)]
    found = first_alarm([*falling, *[5.0 * 1.5**step for step in range(40)]])
    assert found is not None
    assert 400 < found[0] < 410
    assert "risen to" in found[1]
    assert first_alarm([*falling, *[5.0 * 1.5**step for step in range(40)]], above=0.0) is None


def test_what_rises_slowly_but_stays_below_is_not() -> None:
    assert first_alarm([*[1.0] * 200, *[9.0] * 2000]) is None
    assert first_alarm([*[1.0] * 200, *[11.0] * 2000]) is not None


def test_noise_around_an_excellent_fit_is_no_divergence() -> None:
    """A thousand times the best is nothing where that is next to nothing: it was worse at the beginning."""
    assert first_alarm([*[1.0] * 200, *[1e-12] * 3000, *[1e-6] * 1000]) is None


def test_a_single_outlier_is_no_divergence() -> None:
    assert first_alarm([*[1.0] * 300, 500.0, *[1.0] * 300]) is None


def test_losses_below_zero_have_a_limit_as_well() -> None:
    assert first_alarm([*[-5.0] * 300, *[20.0] * 1000]) is None
    assert first_alarm([*[-5.0] * 300, *[60.0] * 1000]) is not None


def test_losses_of_single_examples_are_given_longer() -> None:
    """A click is rare: the first hundred examples may have none."""
    clicks = np.random.default_rng(0).random(20_000) < 0.002
    losses = np.where(clicks, 6.0, 0.002)
    losses[:500] = 0.002
    assert first_alarm(losses, examples=1) is None
    assert first_alarm(losses, examples=50) is not None


def test_the_beginning_is_not_judged() -> None:
    assert first_alarm([0.01, *[1.0] * 300]) is None
