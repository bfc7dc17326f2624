import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.backoff import Backoff


class Longest(random.Random):
    """A source of randomness that always draws the highest value."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Shortest(random.Random):
    """A source of randomness that always draws the lowest value."""

    def uniform(self, a: float, b: float) -> float:
        return a


def test_the_longest_pauses_double_up_to_two_seconds() -> None:
    backoff = Backoff(Longest())
    assert [backoff.pause(60.0) for _ in range(9)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_a_pause_may_be_as_short_as_nothing_so_that_many_spread_over_all_of_the_time() -> None:
    backoff = Backoff(Shortest())
    assert [backoff.pause(60.0) for _ in range(9)] == [0.0] * 9


def test_pauses_are_spread_evenly_up_to_the_longest() -> None:
    rng = random.Random(1)
    found = []
    for _ in range(4000):
        backoff = Backoff(rng)
        found.append([backoff.pause(60.0) for _ in range(8)])
    for number, longest in enumerate([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]):
        quarters = [0] * 4
        for pauses in found:
            quarters[int(4 * pauses[number] / longest)] += 1
        assert min(quarters) > 850


@given(st.integers(), st.lists(st.floats(-10.0, 100.0), max_size=40))
def test_a_pause_is_never_longer_than_what_is_left_nor_below_nothing(seed: int, left: list[float]) -> None:
    backoff = Backoff(random.Random(seed))
    for most in left:
        pause = backoff.pause(most)
        assert 0.0 <= pause <= min(max(most, 0.0), 2.0)


def test_a_seed_repeats_the_pauses() -> None:
    one, other = Backoff(random.Random(5)), Backoff(random.Random(5))
    assert [one.pause(9.0) for _ in range(20)] == [other.pause(9.0) for _ in range(20)]


def test_those_that_begin_at_the_same_time_do_not_come_back_at_the_same_time() -> None:
    assert len({Backoff().pause(9.0) for _ in range(100)}) > 90
