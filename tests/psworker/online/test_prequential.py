import math

import numpy as np
import pytest

from psworker.online.prequential import Over, Prequential


def fed(window: int, forget: float, batches: list[tuple[dict[str, float], int]]) -> Prequential:
    found = Prequential(window, forget)
    for measures, examples in batches:
        found.add(measures, examples)
    return found


def test_the_whole_is_the_weighted_mean() -> None:
    found = fed(10, 0.9, [({"loss": 1.0, "accuracy": 0.0}, 3), ({"loss": 2.0, "accuracy": 1.0}, 1)])
    assert found.examples == 4
    assert found.means("whole") == {"loss": 1.25, "accuracy": 0.25}


def test_the_window_has_the_fewest_latest_mini_batches_that_fill_it() -> None:
    found = fed(4, 0.9, [({"loss": value}, 2) for value in (9.0, 1.0, 3.0)])
    assert found.means("window") == {"loss": 2.0}
    found.add({"loss": 5.0}, 3)
    assert found.means("window") == {"loss": pytest.approx((2 * 3.0 + 3 * 5.0) / 5)}


def test_single_examples_fade_as_gama_writes() -> None:
    losses = np.random.default_rng(0).random(50).tolist()
    found = fed(10, 0.9, [({"loss": loss}, 1) for loss in losses])
    s = n = 0.0
    for loss in losses:
        s, n = loss + 0.9 * s, 1 + 0.9 * n
    assert found.faded("loss") == pytest.approx(s / n, rel=1e-12)
    assert found.means("faded") == {"loss": pytest.approx(s / n, rel=1e-12)}


def test_a_mini_batch_fades_as_so_many_examples_of_its_mean() -> None:
    one_by_one = fed(10, 0.9, [({"loss": loss}, 1) for loss in (1.0,) * 3 + (2.0,) * 4])
    at_once = fed(10, 0.9, [({"loss": 1.0}, 3), ({"loss": 2.0}, 4)])
    assert at_once.faded("loss") == pytest.approx(one_by_one.faded("loss"), rel=1e-12)


def test_who_forgets_nothing_has_the_mean_of_all() -> None:
    found = fed(10, 1.0, [({"loss": 1.0}, 3), ({"loss": 2.0}, 1)])
    assert found.faded("loss") == 1.25


def test_a_stream_that_does_not_end_does_not_overflow() -> None:
    found = fed(10, 0.5, [({"loss": float(number % 2)}, 64) for number in range(1000)])
    assert found.faded("loss") == pytest.approx(1.0)
    found.add({"loss": 0.5}, 1)
    assert found.faded("loss") == pytest.approx(0.75)


@pytest.mark.parametrize("over", ["whole", "window", "faded"])
def test_ingredients_that_are_mostly_zero_are_means_too(over: Over) -> None:
    batches = [
        ({"loss": 0.0, "~pos.1": 0.0, "~pos.2": 0.5}, 2),
        ({"loss": 0.0, "~pos.1": 1.0, "~pos.2": 0.0}, 2),
    ]
    found = fed(10, 1.0, batches).means(over)
    assert found == {"loss": 0.0, "~pos.1": 0.5, "~pos.2": 0.25}


def test_before_the_first_example_there_is_nothing() -> None:
    found = Prequential(10, 0.9)
    assert found.means("whole") == found.means("window") == found.means("faded") == {}
    assert found.faded("loss") is None


def test_what_is_not_a_number_is_told() -> None:
    assert math.isnan(fed(10, 0.9, [({"loss": math.nan}, 1)]).means("window")["loss"])


def test_measures_beyond_the_limit_are_left_out() -> None:
    found = fed(1, 0.9, [({f"m{number}": 1.0 for number in range(5000)}, 1)])
    assert len(found.means("whole")) == 2048
