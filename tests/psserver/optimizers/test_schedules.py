import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.optimizers import SGD, Add, Cosine, InverseSqrt, Schedule, Step
from psserver.optimizers.schedules import factor, rate

steps = st.integers(0, 1 << 53)
schedules = (
    st.builds(Step, every=st.integers(1, 1 << 53), factor=st.floats(0, 1))
    | st.builds(Cosine, steps=st.integers(1, 1 << 53), floor=st.floats(0, 1))
    | st.builds(InverseSqrt, steps=st.integers(1, 1 << 53))
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Step(every=2, factor=0.5), [1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4]),
        (Cosine(steps=4), [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2, 0, 0]),
        (Cosine(steps=2, floor=0.5), [1, 3 / 4, 1 / 2, 1 / 2]),
        (InverseSqrt(), [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2]),
        (InverseSqrt(steps=4), [1, math.sqrt(4 / 5), math.sqrt(4 / 6), math.sqrt(4 / 7)]),
    ],
)
def test_a_schedule_equals_its_equation(schedule: Schedule, expected: list[float]) -> None:
    assert [factor(schedule, s) for s in range(len(expected))] == pytest.approx(expected, abs=1e-15)
    rates = [rate(SGD(0.2, schedule=schedule), s) for s in range(len(expected))]
    assert rates == pytest.approx([0.2 * one for one in expected], abs=1e-15)


@given(schedule=schedules, s=steps)
def test_a_schedule_begins_at_one_and_never_rises(schedule: Schedule, s: int) -> None:
    assert factor(schedule, 0) == 1.0
    assert 0.0 <= factor(schedule, s + 1) <= factor(schedule, s) <= 1.0


def test_a_warm_up_rises_in_a_line_and_then_the_schedule_begins() -> None:
    optimizer = SGD(0.8, warmup=4, schedule=Step(every=1, factor=0.5))
    assert [rate(optimizer, step) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.4, 0.2])
    assert [rate(SGD(0.8, warmup=2), step) for step in range(4)] == pytest.approx([0.4, 0.8, 0.8, 0.8])


def test_with_as_much_warm_up_the_inverse_square_root_is_that_of_vaswani_et_al() -> None:
    optimizer = SGD(1.0, warmup=10, schedule=InverseSqrt(steps=10))
    expected = [min(step / 10, math.sqrt(10 / step)) for step in range(1, 100)]
    assert [rate(optimizer, step) for step in range(10)] == pytest.approx(expected[:10])
    assert [rate(optimizer, step) for step in range(10, 100)] == pytest.approx(expected[9:])


def test_without_a_schedule_the_rate_is_the_same_for_ever() -> None:
    assert {rate(SGD(0.3), step) for step in (0, 1, 1 << 60)} == {0.3}
    assert rate(Add(), 5) == 1.0
