from collections.abc import Callable

import pytest

from benchmarks.systems.closed_loop import seconds_per_operation


def clock_that_an_operation_moves(seconds: float) -> tuple[Callable[[], float], Callable[[], None]]:
    now = 0.0

    def operation() -> None:
        nonlocal now
        now += seconds

    return (lambda: now), operation


@pytest.mark.parametrize("budget", [0.0, 1.0, 100.0])
def test_mean_is_what_one_operation_takes(budget: float) -> None:
    clock, operation = clock_that_an_operation_moves(0.25)
    assert seconds_per_operation(operation, budget, clock) == 0.25


def test_slow_operation_is_timed_at_least_twice_after_the_warm_up() -> None:
    calls = 0

    def operation() -> None:
        nonlocal calls
        calls += 1

    seconds_per_operation(operation, 0.0)
    assert calls == 3
