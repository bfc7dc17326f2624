import math
from typing import Any

import numpy as np
import pytest
from river import drift

from psworker.online.adwin import Adwin


def bits(seed: int, *stretches: tuple[int, float]) -> list[float]:
    rng = np.random.default_rng(seed)
    parts = [rng.random(length) < share for length, share in stretches]
    return [float(value) for value in np.concatenate(parts)]


def ours(values: list[float], confidence: float = 0.002) -> list[int]:
    """Where a detector that is made anew after each detection, as river's is, finds a change."""
    found, adwin = [], Adwin(confidence)
    for place, value in enumerate(values):
        if adwin.update(value):
            found.append(place)
            adwin = Adwin(confidence)
    return found


def rivers(values: list[float], confidence: float = 0.002) -> list[int]:
    adwin: Any = drift.ADWIN(delta=confidence)  # type: ignore[no-untyped-call]
    found = []
    for place, value in enumerate(values):
        adwin.update(value)
        if adwin.drift_detected:
            found.append(place)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "shares", [(0.1, 0.3), (0.3, 0.1), (0.2, 0.25), (0.1, 0.9), (0.2, 0.2), (0.0, 1.0, 0.5)]
)
def test_it_finds_what_rivers_finds(seed: int, shares: tuple[float, ...]) -> None:
    values = bits(seed, *((3000, share) for share in shares))
    assert ours(values) == rivers(values)


@pytest.mark.parametrize("confidence", [1e-6, 0.05])
def test_the_confidence_is_rivers(confidence: float) -> None:
    values = bits(1, (2000, 0.2), (2000, 0.35))
    assert ours(values, confidence) == rivers(values, confidence)


def test_numbers_between_0_and_1_too() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.beta(2, 5, 2000), rng.beta(3, 4, 2000)]).tolist()
    assert ours(values) == rivers(values) != []


def test_a_change_says_in_which_direction_the_mean_went() -> None:
    for before, after, sign in ((0.1, 0.6, 1), (0.6, 0.1, -1)):
        adwin = Adwin(0.002)
        changes = [
            change for value in bits(3, (1000, before), (300, after)) if (change := adwin.update(value))
        ]
        assert changes
        assert math.copysign(1, changes[0]) == sign


def test_the_window_forgets_what_was_before_the_change() -> None:
    adwin = Adwin(0.002)
    for value in [0.0] * 5000 + [1.0] * 1000:
        adwin.update(value)
    assert adwin.width <= 1100
    assert adwin.mean > 0.95


def test_memory_grows_with_the_logarithm_of_the_width() -> None:
    adwin = Adwin(0.002)
    for value in bits(0, (20_000, 0.2)):
        adwin.update(value)
    assert adwin.width == 20_000
    assert sum(len(row.totals) for row in adwin._rows) < 6 * math.log2(20_000)
    assert adwin.mean == pytest.approx(np.mean(bits(0, (20_000, 0.2))))


def test_its_variance_is_that_of_its_window() -> None:
    values = bits(2, (1000, 0.3), (1000, 0.8))
    adwin = Adwin(0.002)
    for value in values:
        adwin.update(value)
    window = values[len(values) - adwin.width :]
    assert adwin.mean == pytest.approx(np.mean(window))
    assert adwin._deviation / adwin.width == pytest.approx(np.var(window), rel=1e-6)
