import math
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from psctl.tune.engines import Grid
from psctl.tune.search import Trial, best_first, search
from psctl.tune.space import Choices, Settings

Told = list[tuple[Settings, float]]


class Watched(Grid):
    """A grid that remembers what it is told."""

    def __init__(self, count: int) -> None:
        super().__init__({"a.b": Choices(tuple(range(count)))})
        self.told: Told = []

    def tell(self, settings: Settings, value: float) -> None:
        self.told.append((settings, value))


def searched(
    engine: Watched,
    run: Callable[[int, Settings, threading.Event], Trial],
    *,
    measure: str = "loss",
    parallel: int = 1,
) -> list[Trial]:
    """Return the trials in the order in which they were over."""
    seen: list[Trial] = []
    search(engine, run, measure=measure, parallel=parallel, seen=seen.append, look=lambda: None)
    return seen


def trial(number: int, settings: Settings, stop: threading.Event) -> Trial:
    """Return a trial whose value is the square of its setting, 1 having diverged."""
    value = dict(settings)["a.b"]
    assert isinstance(value, int)
    return Trial.of(number, settings, (math.nan if value == 1 else value**2,), 0.5)


def test_a_trial_has_mean_and_deviation_of_its_folds() -> None:
    folds = Trial.of(3, (("a.b", 1),), (1.0, 2.0, 6.0), 2.0)
    assert folds.value == 3.0
    assert folds.deviation == pytest.approx(math.sqrt(7))
    once = Trial.of(3, (), (1.5,), 2.0)
    assert (once.value, once.deviation) == (1.5, None)
    diverged = Trial.of(3, (), (1.0, math.inf), 2.0)
    assert (diverged.value, diverged.deviation, diverged.folds) == (None, None, (1.0, math.inf))


@pytest.mark.parametrize(
    ("measure", "told", "order"),
    [("loss", [0, math.inf, 4, 9], [1, 3, 4, 2]), ("accuracy", [0, math.inf, -4, -9], [4, 3, 1, 2])],
)
def test_the_engine_is_told_losses_and_what_diverged_is_the_worst(
    measure: str, told: list[float], order: list[int]
) -> None:
    engine = Watched(4)
    trials = searched(engine, trial, measure=measure)
    assert [value for _, value in engine.told] == told
    assert [settings for settings, _ in engine.told] == [(("a.b", number),) for number in range(4)]
    assert [one.number for one in best_first(trials, measure)] == order


def test_of_equal_trials_the_first_is_the_best() -> None:
    one = Trial.of(1, (), (2.0,), 1.0)
    assert best_first([replace(one, number=2), one], "loss")[0].number == 1


def test_as_many_run_at_a_time_as_were_asked_for() -> None:
    together = threading.Barrier(3, timeout=30)

    def meets(number: int, settings: Settings, stop: threading.Event) -> Trial:
        together.wait()
        return trial(number, settings, stop)

    assert sorted(one.number for one in searched(Watched(6), meets, parallel=3)) == [1, 2, 3, 4, 5, 6]


def test_a_failure_ends_the_search_and_the_other_trials() -> None:
    stopped = threading.Event()

    def fails(number: int, settings: Settings, stop: threading.Event) -> Trial:
        if number == 1:
            raise OSError("no such program")
        assert stop.wait(30)
        stopped.set()
        raise RuntimeError("stopped, which nobody has to hear of")

    engine = Watched(4)
    with pytest.raises(OSError, match="no such program"):
        searched(engine, fails, parallel=2)
    assert stopped.is_set()
    assert engine.told == []
