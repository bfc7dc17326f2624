import math
from statistics import NormalDist, fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psserver.failure import FailureDetector

GENEROUS = 1e6  # a limit that no silence here comes near


def detector(interval: float = 1.0, dead_after: float = GENEROUS) -> FailureDetector:
    return FailureDetector(interval, dead_after, 0.0)


def beat_after(detector: FailureDetector, *intervals: float) -> None:
    for interval in intervals:
        detector.beat(detector.heard + interval)


def patience(detector: FailureDetector) -> float:
    """Seconds of silence that are death."""
    return detector.dead_at - detector.heard


def test_who_was_never_heard_of_is_dead_in_the_end() -> None:
    unheard = FailureDetector(1.0, 5.0, now=100.0)
    assert 100.0 + 1.0 < unheard.suspect_at < unheard.dead_at <= 105.0


def test_a_regular_peer_is_found_dead_sooner_than_an_irregular_one() -> None:
    regular, irregular = detector(), detector()
    beat_after(regular, *[1.0] * 50)
    beat_after(irregular, *[0.2, 1.8] * 25)
    assert patience(regular) < patience(irregular)


def test_a_slower_rhythm_than_agreed_is_learned() -> None:
    slow = detector()
    before = patience(slow)
    beat_after(slow, *[3.0] * 200)
    assert patience(slow) > 3.0
    assert patience(slow) > before


@pytest.mark.parametrize("intervals", [[], [10.0] * 3, [0.01, 400.0] * 60, [1.0] * 300])
def test_no_history_gives_more_than_the_limit(intervals: list[float]) -> None:
    one = detector(dead_after=5.0)
    beat_after(one, *intervals)
    assert patience(one) <= 5.0
    assert one.suspect_at < one.dead_at


def test_what_was_long_ago_is_forgotten() -> None:
    once_wild, always_calm = detector(), detector()
    beat_after(once_wild, *[0.1, 50.0] * 100, *[1.0] * 100)
    beat_after(always_calm, *[1.0] * 100)
    assert patience(once_wild) == pytest.approx(patience(always_calm), rel=1e-6)


@given(st.lists(st.floats(0.5, 1.5), max_size=150))
def test_a_peer_half_an_interval_late_is_never_suspected(intervals: list[float]) -> None:
    one = detector()
    for interval in intervals:
        assert one.heard + interval < one.suspect_at
        one.beat(one.heard + interval)


@given(st.lists(st.floats(0.0, 30.0), max_size=150), st.floats(0.01, 10.0))
def test_the_deadlines_are_those_of_phi_accrual(intervals: list[float], agreed: float) -> None:
    """Suspect at phi 3, dead at phi 8, of the last hundred intervals and the agreed one, taken as normal."""
    one = detector(agreed)
    beat_after(one, *intervals)
    observed = [agreed, *intervals[-100:]]
    normal = NormalDist(fmean(observed), max(pstdev(observed), 0.5 * agreed))
    suspect, dead = normal.inv_cdf(1 - 1e-3), normal.inv_cdf(1 - 1e-8)
    assert patience(one) == pytest.approx(dead, rel=0.01)
    assert one.suspect_at - one.heard == pytest.approx(min(suspect, 0.75 * dead), rel=0.01)


def test_the_silence_of_a_sleeping_listener_is_not_held_against_a_peer() -> None:
    one = detector(dead_after=5.0)
    beat_after(one, *[1.0] * 10)
    patient = patience(one)
    woken = one.heard + 1000.5
    one.excuse(1000.0, woken)
    assert woken < one.suspect_at < one.dead_at
    assert one.dead_at == pytest.approx(woken - 0.5 + patient)


def test_an_excuse_after_the_heartbeat_that_waited_gives_no_time_on_top() -> None:
    """What came during the sleep is read first: the peer was heard of now, and no later."""
    one = detector(dead_after=5.0)
    beat_after(one, *[1.0] * 10)
    woken = one.heard + 3600.0
    one.beat(woken)
    one.excuse(3600.0, woken)
    assert one.dead_at <= woken + 5.0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("beat"), st.floats(0.0, 100.0)),
            st.tuples(st.just("excuse"), st.floats(0.0, 100.0)),
        ),
        max_size=50,
    )
)
def test_whatever_happened_silence_from_now_on_is_death_within_the_limit(
    events: list[tuple[str, float]],
) -> None:
    one, now = detector(dead_after=5.0), 0.0
    for event, seconds in events:
        now += seconds
        if event == "beat":
            one.beat(now)
        else:
            one.excuse(seconds, now)
        assert math.isfinite(one.dead_at)
        assert one.heard <= now
        assert one.heard < one.suspect_at < one.dead_at <= now + 5.0
