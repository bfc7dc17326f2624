from typing import Any

import numpy as np
import pytest
from river import drift

from psworker.online.page_hinkley import PageHinkley


def noisy(seed: int, *means: float) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(value) for value in np.concatenate([rng.normal(mean, 0.3, 2000) for mean in means])]


def ours(values: list[float], tolerance: float, threshold: float) -> list[int]:
    test = PageHinkley(tolerance, threshold)
    return [place for place, value in enumerate(values) if test.update(value)]


def rivers(values: list[float], tolerance: float, threshold: float) -> list[int]:
    test: Any = drift.PageHinkley(delta=tolerance, threshold=threshold, alpha=1.0, mode="up")
    found = []
    for place, value in enumerate(values):
        test.update(value)
        if test.drift_detected:
            found.append(place)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [(0.005, 50.0), (0.02, 20.0), (0.1, 5.0)])
@pytest.mark.parametrize("means", [(0.3, 0.6), (0.6, 0.3), (0.4, 0.4), (0.2, 0.5, 0.9)])
def test_it_finds_what_rivers_finds(
    seed: int, settings: tuple[float, float], means: tuple[float, ...]
) -> None:
    values = noisy(seed, *means)
    assert ours(values, *settings) == rivers(values, *settings)


def test_it_finds_a_rise_once() -> None:
    (place,) = ours(noisy(0, 0.3, 0.6), 0.02, 20.0)
    assert 2000 < place < 2200


def test_a_fall_is_no_alarm() -> None:
    assert not ours(noisy(0, 0.9, 0.3), 0.02, 20.0)


def test_the_first_numbers_are_no_alarm() -> None:
    test = PageHinkley(0.0, 0.1)
    assert not any(test.update(float(value)) for value in range(29))
    assert test.update(29.0) > 0
