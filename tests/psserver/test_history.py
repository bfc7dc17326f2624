"""Curves: means over stretches of time, of the last minutes or of all the time."""

import math
from collections.abc import Iterable

import pytest

from protocol.messages import Heartbeat
from psserver.history import POINTS, JobHistory, Recent, Whole
from psserver.membership import FailureSettings, Membership


def noted(cells: Recent | Whole, measured: Iterable[tuple[float, float]]) -> Recent | Whole:
    for now, value in measured:
        cells.note(now, value)
    return cells


@pytest.mark.parametrize("kind", [Recent, Whole])
def test_nothing_was_measured(kind: type[Recent | Whole]) -> None:
    curve = kind(1.0).curve(5.0)
    assert (curve.every, curve.values) == (0.0, ())


@pytest.mark.parametrize("kind", [Recent, Whole])
def test_each_stretch_has_the_mean_of_what_was_measured_in_it(kind: type[Recent | Whole]) -> None:
    curve = noted(kind(1.0), [(10.0, 1.0), (10.5, 3.0), (11.0, 5.0), (13.9, 7.0)]).curve(20.0)
    assert curve.values == (2.0, 5.0, None, 7.0)
    assert (curve.every, curve.ago) == (1.0, 6.0)


def test_a_stretch_that_has_just_begun_is_not_ago() -> None:
    assert noted(Recent(1.0), [(10.0, 1.0)]).curve(10.1).ago == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_gap(value: float) -> None:
    curve = noted(Whole(1.0), [(0.0, 1.0), (1.0, value), (2.0, 3.0)]).curve(3.0)
    assert curve.values == (1.0, None, 3.0)


def test_a_sum_that_overflows_is_a_gap() -> None:
    assert noted(Whole(1.0), [(0.0, 1e308), (0.1, 1e308)]).curve(1.0).values == (None,)


def test_figures_are_as_exact_as_anybody_can_see() -> None:
    assert noted(Whole(1.0), [(0.0, 1 / 3)]).curve(1.0).values == (0.333333,)


def test_of_the_last_minutes_the_first_are_forgotten() -> None:
    curve = noted(Recent(1.0, most=4), [(float(i), float(i)) for i in range(10)]).curve(10.0)
    assert curve.values == (6.0, 7.0, 8.0, 9.0)
    assert (curve.every, curve.ago) == (1.0, 0.0)


def test_after_a_long_pause_the_last_minutes_are_a_gap() -> None:
    curve = noted(Recent(1.0, most=4), [(0.0, 1.0), (1.0, 2.0), (1000.5, 3.0)]).curve(1001.0)
    assert curve.values == (None, None, None, 3.0)
    assert curve.ago == 0.0


def test_all_of_the_time_is_kept_in_longer_stretches() -> None:
    curve = noted(Whole(1.0, most=4), [(float(i), float(i)) for i in range(9)]).curve(9.0)
    assert curve.values == (1.5, 5.5, 8.0)
    assert (curve.every, curve.ago) == (4.0, 0.0)  # the last stretch is not over


def test_all_of_the_time_with_a_long_pause_in_it() -> None:
    curve = noted(Whole(1.0, most=4), [(0.0, 1.0), (1.0, 3.0), (1e6, 5.0)]).curve(1e6)
    assert curve.values[0] == 2.0
    assert curve.values[-1] == 5.0
    assert set(curve.values[1:-1]) <= {None}
    assert len(curve.values) <= 4


@pytest.mark.parametrize("kind", [Recent, Whole])
def test_memory_does_not_grow(kind: type[Recent | Whole]) -> None:
    cells = kind(0.1)
    for number in range(10 * POINTS):
        cells.note(number * 0.1, 1.0)
        assert len(cells.curve(number * 0.1).values) <= POINTS


@pytest.mark.parametrize("kind", [Recent, Whole])
def test_a_clock_that_goes_back_measures_now(kind: type[Recent | Whole]) -> None:
    assert noted(kind(1.0), [(10.0, 1.0), (11.0, 2.0), (9.0, 4.0)]).curve(12.0).values == (1.0, 3.0)


# --- of a job


def workers(*beats: tuple[int, float | None]) -> Membership:
    """Return workers that have each sent two heartbeats, a second apart."""
    members = Membership(len(beats), FailureSettings())
    for number, (speed, loss) in enumerate(beats):
        worker = members.join(f"w{number}", f"token-{number}", 0.0)
        members.tell(worker, 0.0)
        members.heartbeat(worker, Heartbeat(0, 0, loss), 0.0)
        members.heartbeat(worker, Heartbeat(1, speed, loss), 1.0)
    return members


def test_a_job_s_loss_is_a_mean_and_its_speed_a_sum() -> None:
    history = JobHistory(1.0)
    history.note(1.0, workers((100, 0.5), (300, 1.5), (50, None)).live())
    status = history.status(1.0)
    assert status.loss.values == status.recent_loss.values == (1.0,)
    assert status.speed.values == status.recent_speed.values == (450.0,)


def test_without_any_loss_there_is_a_speed() -> None:
    history = JobHistory(1.0)
    history.note(1.0, workers((100, None)).live())
    assert history.status(1.0).loss.values == (None,)
    assert history.status(1.0).speed.values == (100.0,)


def test_while_nobody_works_nothing_goes_on() -> None:
    history = JobHistory(1.0)
    history.note(1.0, workers((100, 0.5)).live())
    history.note(60.0, [])
    status = history.status(60.0)
    assert (status.recent_speed.values, status.recent_speed.ago) == ((100.0,), 58.0)
