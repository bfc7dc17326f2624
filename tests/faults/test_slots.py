from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.slots import Outcomes, slot_gradient, slot_violations, sum_violations, vacuous

SLOTS = 40
WHAT = ("acknowledged", "refused", "unknown")


@st.composite
def runs(draw: st.DrawFn) -> tuple[Outcomes, "np.typing.NDArray[np.float32]"]:
    """The outcomes of a run without faults, and the values that it leaves."""
    outcomes = Outcomes()
    values = np.zeros(SLOTS, np.float32)
    for number in range(SLOTS):
        said = draw(st.sampled_from((*WHAT, "none")))
        if said != "none":
            getattr(outcomes, said).add(number)
        if said == "acknowledged" or (said == "unknown" and draw(st.booleans())):
            values += slot_gradient(number, SLOTS)
    return outcomes, values


@given(runs())
def test_a_run_without_faults_has_no_violations(
    run: tuple[Outcomes, "np.typing.NDArray[np.float32]"],
) -> None:
    outcomes, values = run
    assert slot_violations({"a": values, "b": values.reshape(4, 10)}, outcomes) == []


@given(runs(), st.integers(0, SLOTS - 1), st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, np.nan, np.inf]))
def test_any_other_value_is_a_violation(
    run: tuple[Outcomes, "np.typing.NDArray[np.float32]"], number: int, value: float
) -> None:
    outcomes, values = run
    values[number] = value
    allowed = {0.0} if number not in outcomes.acknowledged else {1.0}
    allowed |= {1.0} if number in outcomes.unknown else set()
    found = slot_violations({"a": values, "b": np.where(np.arange(SLOTS) == number, value, values)}, outcomes)
    assert len(found) == (0 if value in allowed else 2)
    assert all(f"[{number}] is {np.float32(value)}" in text for text in found)


@pytest.mark.parametrize(
    ("said", "value", "text"),
    [
        ("acknowledged", 0, "w[3] is 0.0: acknowledged, and lost"),
        ("acknowledged", 2, "w[3] is 2.0: acknowledged, applied in part or twice"),
        ("refused", 1, "w[3] is 1.0: refused, and applied"),
        ("unknown", 2, "w[3] is 2.0: unknown, applied in part or twice"),
        ("none", 1, "w[3] is 1.0: never pushed, and applied"),
    ],
)
def test_a_violation_is_named(said: str, value: float, text: str) -> None:
    outcomes = Outcomes(**{said: {3}} if said != "none" else {})
    assert slot_violations({"w": slot_gradient(3, 5) * np.float32(value)}, outcomes) == [text]


def test_many_violations_are_counted() -> None:
    found = slot_violations({"w": np.ones(100, np.float64)}, Outcomes(acknowledged=set(range(50))))
    assert len(found) == 21
    assert found[-1] == "w: 30 more slots are wrong"


def test_books_that_are_kept_badly() -> None:
    with pytest.raises(ValueError, match=r"pushes \[2\] have more than one"):
        slot_violations({"w": np.zeros(3)}, Outcomes({1, 2}, {0}, {2}))
    with pytest.raises(ValueError, match=r"pushes \[-1, 3\] have no slot among 3"):
        slot_violations({"w": np.zeros(3)}, Outcomes({1}, {3}, {-1}))
    with pytest.raises(ValueError, match="number must be a slot from 0 to 4, not 5"):
        slot_gradient(5, 5)


def test_a_run_in_which_nothing_happened_is_vacuous() -> None:
    outcomes = Outcomes(acknowledged={0, 1}, unknown={2})
    least = {"cuts": 2, "kills": 1}
    assert vacuous(outcomes, {"cuts": 2, "kills": 3}, least_acknowledged=2, least_faults=least) == []
    assert vacuous(outcomes, {"cuts": 1}, least_acknowledged=3, least_faults=least) == [
        "2 pushes were acknowledged, less than 3",
        "1 cuts happened, less than 2",
        "0 kills happened, less than 1",
    ]


integers = st.lists(st.integers(1, 30), max_size=6)


@given(integers, integers, st.integers(-5, 200))
def test_sums_are_those_of_the_acknowledged_and_any_of_the_unknown(
    acknowledged: list[int], unknown: list[int], value: int
) -> None:
    sums = Counter(
        sum(acknowledged) + sum(some) for n in range(len(unknown) + 1) for some in combinations(unknown, n)
    )
    found = sum_violations({"w": np.full((2, 3), value, np.float32)}, acknowledged, unknown)
    assert (found == []) == (value in sums)
    assert sum_violations({"w": np.array(sorted(sums), np.int64)}, acknowledged, unknown) == []


def test_a_sum_that_is_wrong_is_named() -> None:
    assert sum_violations({"w": np.array([6, 6, 9.0])}, [1, 2, 3]) == ["w[2] is 9.0, not 6: off by 3.0"]
    (found,) = sum_violations({"w": np.array([6, np.nan])}, [1, 2, 3], [4])
    assert found == "w[1] is nan, not 6 with any of 1 unknown pushes: off by nan"
    assert len(sum_violations({"w": np.array([np.inf, 6.5, -6])}, [6])) == 3


def test_sums_that_prove_nothing() -> None:
    with pytest.raises(ValueError, match="pushed integers must be 1 or more, not 0"):
        sum_violations({"w": np.zeros(1)}, [1, 0])
    assert sum_violations({"w": np.full(1, 1 << 24, np.float32)}, [1 << 24]) == []
    with pytest.raises(ValueError, match=f"w: a sum of {(1 << 24) + 1} is not exact in float32"):
        sum_violations({"w": np.zeros(1, np.float32)}, [1 << 24], [1])
