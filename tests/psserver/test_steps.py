"""Synchronous steps on one shard, with every order of events that a network and threads may bring about."""

import itertools
import math
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import BadRequest, Fenced, NotFinite, OutOfOrder
from protocol.messages import Ended, Pulled, Pushed
from psserver.store import arithmetic, dense
from psserver.store.arithmetic import INLINE
from tests.psserver.lone_shard import JOB, Listener, LoneShard, lone_shard

Array = npt.NDArray[Any]

SMALL, LARGE = 16, INLINE // 4 + 1000  # float32: below and above what is computed in threads
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE])


def slot(number: int, size: int = SMALL, value: float = 1.0) -> Array:
    gradient = np.zeros(size, np.float32)
    gradient[number] = value
    return gradient


def slots(shard: LoneShard, count: int, name: str = "w") -> list[float]:
    values = shard.values(name)
    assert not values[count:].any()
    return [float(value) for value in values[:count]]


def is_a(listener: Listener, kind: type) -> bool:
    return isinstance(listener.answer, kind)


# --- whose gradients are in a step


@SIZES
async def test_a_step_is_the_weighted_mean_of_those_that_were_decided_to_be_in_it(size: int) -> None:
    async with lone_shard(w=size) as shard:
        shard.follow(0, 0, 1, 2)
        ends = [shard.end(worker, 0, w=slot(worker, size), weight=worker + 1.0) for worker in range(3)]
        await shard.rest()
        assert shard.ended() == Ended(JOB, 0, (0, 1, 2), ())
        shard.decide(0, 2, commit=False)  # in whatever pieces it is told
        await shard.rest()
        assert slots(shard, 3) == [0, 0, 0]
        assert not any(end.answers for end in ends)
        shard.decide(0, 0, 1, commit=True)
        await shard.rest()
        np.testing.assert_allclose(slots(shard, 3), [1 / 6, 2 / 6, 3 / 6], rtol=1e-6)
        for end in ends:
            assert end.clock is None
            np.testing.assert_array_equal(end.values[0][0], shard.values("w"))
        assert shard.shard.jobs[JOB].updates == 1


async def test_nothing_of_a_worker_is_in_a_step_before_it_was_decided() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0, 1)
        shard.end(0, 0, w=slot(0))
        late = shard.end(1, 0, w=slot(1))
        await shard.rest()
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert slots(shard, 2) == [1, 0]
        assert (late.clock, shard.dropped) == (1, 1)
        shard.end(0, 1, w=slot(2))
        shard.end(1, 1, w=slot(3))
        await shard.rest()
        shard.decide(1, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 4) == [1, 0, 0.5, 0.5]


async def test_pushes_of_a_step_and_its_end_are_decided_upon_together() -> None:
    async with lone_shard(w=SMALL, v=SMALL) as shard:
        shard.follow(0, 0, 1)
        first = shard.push(0, 0, w=slot(0))
        second = shard.push(1, 0, v=slot(1))
        await shard.rest()
        assert all(isinstance(push.answer, Pushed) for push in (first, second))
        assert shard.ended() == Ended(JOB, 0, (), ())
        shard.end(0, 0, v=slot(0))
        await shard.rest()
        shard.decide(0, 0, commit=True)  # worker 1 has not ended the step: nothing of it is in it
        await shard.rest()
        assert (slots(shard, 1), slots(shard, 1, "v")) == ([1], [1])
        assert shard.dropped == 1


@SIZES
async def test_who_dies_before_the_decision_is_left_out_and_who_dies_after_it_is_not(size: int) -> None:
    async with lone_shard(w=size) as shard:
        shard.follow(0, 0, 1, 2)
        ends = [shard.end(worker, 0, w=slot(worker, size)) for worker in range(3)]
        await shard.rest()
        shard.decide(0, 1, commit=False)
        shard.follow(0, 0)
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert slots(shard, 3) == [0.5, 0.5, 0]
        assert ends[0].clock is None
        assert is_a(ends[1], Fenced)
        assert is_a(ends[2], Fenced)


async def test_a_decision_that_comes_again_counts_once() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0, 1)
        shard.end(0, 0, w=slot(0))
        shard.end(1, 0, w=slot(1))
        await shard.rest()
        for _ in range(2):
            shard.decide(0, 0, commit=False)
            await shard.rest()
        for _ in range(3):
            shard.decide(0, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 2) == [0.5, 0.5]
        shard.decide(0, 0, 1, commit=True)
        shard.decide(7, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 2) == [0.5, 0.5]
        end = shard.end(0, 1, w=slot(2))
        await shard.rest()
        assert not end.answers, "step 1 is open"


async def test_the_former_self_of_a_worker_may_be_in_the_step_before_it() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0, 1)
        dead = shard.end(1, 0, w=slot(1))
        await shard.rest()
        shard.decide(0, 1, commit=False)
        shard.follow(0, 0)
        shard.incarnations[1], shard.clocks[1] = 2, 1
        shard.follow(0, 0, 1)
        again, pull = shard.end(1, 1, w=slot(3)), shard.pull(1, "w")
        shard.end(0, 0, w=slot(0))
        await shard.rest()
        assert is_a(dead, Fenced)
        assert not pull.answers, "what it would read is about to change"
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert slots(shard, 2) == [0.5, 0.5]
        np.testing.assert_array_equal(pull.values[0][0], shard.values("w"))
        shard.end(0, 1, w=slot(2))
        await shard.rest()
        shard.decide(1, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 4) == [0.5, 0.5, 0.5, 0.5]
        assert again.clock is None


async def test_a_death_while_its_gradient_is_being_added_leaves_it_out() -> None:
    async with lone_shard(w=LARGE) as shard:
        shard.follow(0, 0, 1)
        dying = shard.end(1, 0, w=slot(1, LARGE))
        shard.follow(0, 0)
        end = shard.end(0, 0, w=slot(0, LARGE))
        await shard.rest()
        assert is_a(dying, Fenced)
        assert shard.ended() == Ended(JOB, 0, (0,), ())
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert slots(shard, 2) == [1, 0]
        assert end.clock is None


async def test_idle_workers_are_told_apart_and_not_counted_as_dropped() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0, 1)
        shard.end(0, 0, weight=0.0)
        shard.end(1, 0, w=slot(1))
        await shard.rest()
        assert shard.ended() == Ended(JOB, 0, (0, 1), (0,))
        shard.decide(0, 1, commit=True)
        idle = shard.end(0, 0, weight=0.0)
        await shard.rest()
        assert isinstance(idle.answer, BadRequest), "it has ended this step already"
        late = shard.end(0, 0, weight=0.0)
        await shard.rest()
        assert (late.clock, shard.dropped) == (1, 0)
        assert slots(shard, 2) == [0, 1]


# --- who is late, early or wrong


@SIZES
async def test_a_gradient_of_a_step_that_is_over_is_dropped_and_its_worker_told_the_open_one(
    size: int,
) -> None:
    async with lone_shard(w=size) as shard:
        shard.follow(0, 0, 1)
        for step in range(3):
            shard.end(0, step, w=slot(step, size))
            await shard.rest()
            shard.decide(step, 0, commit=True)
            await shard.rest()
        push, end = shard.push(1, 0, w=slot(8, size)), shard.end(1, 0, w=slot(9, size))
        await shard.rest()
        assert isinstance(push.answer, Pushed)
        assert end.clock == 3
        assert slots(shard, 3) == [1, 1, 1]
        pull = shard.pull(1, "w")
        assert pull.clock is None, "it is in the open step now, and may read"


async def test_one_that_is_still_adding_when_the_step_is_over_is_late() -> None:
    async with lone_shard(w=LARGE) as shard:
        shard.follow(0, 0, 1)
        shard.end(0, 0, w=slot(0, LARGE))
        await shard.rest()
        late = shard.end(1, 0, w=slot(1, LARGE))
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert (late.clock, shard.dropped) == (1, 1)
        assert slots(shard, 2) == [1, 0]


async def test_of_two_ends_of_a_step_at_once_one_is_refused_and_none_forgotten() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0)
        first, second = shard.end(0, 0, w=slot(0)), shard.end(0, 0, w=slot(1))
        push = shard.push(0, 0, w=slot(2))
        await shard.rest()
        assert isinstance(second.answer, BadRequest)
        assert second.answer.field == "step"
        assert isinstance(push.answer, BadRequest)
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert first.clock is None
        assert slots(shard, 2) == [1, 0]


@pytest.mark.parametrize("step", [2, 2**62])
async def test_a_step_that_cannot_be_yet_is_refused_and_uses_its_number_up(step: int) -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0)
        refused = shard.end(0, step, w=slot(0))
        assert isinstance(refused.answer, BadRequest)
        assert (refused.answer.field, refused.answer.value) == ("step", str(step))
        again = shard.end(0, 0, seq=1, w=slot(0))
        assert isinstance(again.answer, BadRequest), "its number has been refused"
        end = shard.end(0, 0, w=slot(0))
        await shard.rest()
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert end.clock is None
        assert slots(shard, 1) == [1]


@SIZES
@pytest.mark.parametrize("bad", [math.nan, math.inf])
async def test_a_gradient_that_is_not_finite_ends_no_step(size: int, bad: float) -> None:
    async with lone_shard(w=size, v=size) as shard:
        shard.follow(0, 0)
        push = shard.push(0, 0, v=slot(1, size), w=slot(0, size, bad))
        end = shard.end(0, 0, v=slot(1, size), w=slot(size - 1, size, bad))
        await shard.rest()
        assert is_a(push, NotFinite)
        assert is_a(end, NotFinite)
        assert shard.ended() == Ended(JOB, 0, (), ())
        right = shard.end(0, 0, v=slot(2, size))
        await shard.rest()
        shard.decide(0, 0, commit=True)
        await shard.rest()
        assert right.clock is None
        assert shard.values("v")[:3].tolist() == [0, 0, 1], "not even of the tensor that was finite"


@SIZES
async def test_a_mean_that_cannot_be_applied_is_told_to_all_and_the_step_is_over(size: int) -> None:
    async with lone_shard(w=size, v=size) as shard:
        shard.follow(0, 0, 1)
        much = slot(0, size, 1.5e38)
        for step, error in enumerate((None, None, NotFinite)):  # the third time it is too much
            ends = [shard.end(worker, step, v=slot(step, size), w=much) for worker in (0, 1)]
            await shard.rest()
            shard.decide(step, 0, 1, commit=True)
            await shard.rest()
            assert [is_a(end, error or Pulled) for end in ends] == [True, True]
        assert slots(shard, 3, "v") == [1, 1, 0], "all tensors of a step or none"
        ends = [shard.end(worker, 3, v=slot(3, size)) for worker in (0, 1)]
        await shard.rest()
        shard.decide(3, 0, 1, commit=True)
        await shard.rest()
        assert [end.clock for end in ends] == [None, None]
        assert slots(shard, 4, "v") == [1, 1, 0, 1]


async def test_no_two_threads_add_to_the_same_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushes of one worker that arrive at once: an addition that overtakes another loses it."""
    active: list[Array] = []
    overlaps: list[str] = []
    lock = threading.Lock()
    accumulate = arithmetic.accumulate

    def watched(total: Array, gradient: Array, out: Array, ratio: float) -> bool:
        with lock:
            overlaps.extend("overlap" for other in active if np.shares_memory(out, other))
            active.append(out)
        time.sleep(0.002)  # long enough for another to come
        done = accumulate(total, gradient, out, ratio)
        with lock:
            active[:] = [other for other in active if other is not out]
        return done

    monkeypatch.setattr(dense, "accumulate", watched)
    async with lone_shard(w=LARGE) as shard:
        shard.follow(0, 0)
        for number in range(4):
            shard.push(0, 0, w=slot(number, LARGE))
        shard.end(0, 0, w=slot(4, LARGE))
        await shard.rest()
        shard.decide(0, 0, commit=True)
        await shard.rest()
        np.testing.assert_allclose(slots(shard, 5), [0.2] * 5, rtol=1e-6)
        assert not overlaps


# --- retries


async def test_a_retry_takes_the_place_of_one_that_waits() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0, 1)
        first = shard.end(0, 0, w=slot(0))
        await shard.rest()
        older = shard.end(0, 0, seq=1, opened=-1.0, w=slot(0))
        newer = shard.end(0, 0, seq=1, opened=2.0, w=slot(0))
        shard.end(1, 0, w=slot(1))
        await shard.rest()
        shard.decide(0, 0, 1, commit=True)
        await shard.rest()
        assert not first.answers
        assert not older.answers
        assert newer.clock is None
        assert slots(shard, 2) == [0.5, 0.5]
        after = shard.end(0, 0, seq=1, opened=3.0, w=slot(0))
        np.testing.assert_array_equal(after.values[0][0], shard.values("w"))
        assert slots(shard, 2) == [0.5, 0.5]
        assert shard.metrics.duplicates == 3
        assert is_a(shard.end(0, 1, seq=3, w=slot(2)), OutOfOrder)


# --- turning the dial


@SIZES
@pytest.mark.parametrize("staleness", [1, math.inf])
@pytest.mark.parametrize("decided", [(), (0,), (0, 1)])
async def test_what_waits_for_a_step_is_applied_once_when_steps_are_no_longer_kept(
    size: int, staleness: float, decided: tuple[int, ...]
) -> None:
    async with lone_shard(w=size) as shard:
        shard.follow(0, 0, 1, 2)
        ends = [shard.end(worker, 0, w=slot(worker, size)) for worker in (0, 1)]
        await shard.rest()
        shard.decide(0, *decided, commit=False)
        shard.follow(staleness, 0, 1, 2, since=1)
        ends.append(shard.end(2, 0, w=slot(2, size)))
        await shard.rest()
        assert [end.clock for end in ends] == [None] * 3
        share = 1 / max(1, len(decided))
        assert slots(shard, 3) == [share if worker in decided else 1 for worker in range(3)]


@SIZES
@pytest.mark.parametrize("staleness", [2, math.inf])
async def test_a_push_that_has_just_come_when_the_dial_is_turned_is_not_late(
    size: int, staleness: float
) -> None:
    async with lone_shard(w=size) as shard:
        shard.follow(0, 0, 1)
        ends = [shard.end(0, 0, w=slot(0, size)), shard.push(1, 0, w=slot(1, size))]
        shard.follow(staleness, 0, 1, since=1)
        ends.append(shard.end(1, 0, w=slot(2, size)))
        await shard.rest()
        assert slots(shard, 3) == [1, 1, 1]
        assert shard.dropped == 0
        assert all(isinstance(end.answer, Pulled | Pushed) for end in ends)


@SIZES
@pytest.mark.parametrize("staleness", [2, math.inf])
async def test_a_step_that_is_being_applied_when_the_dial_is_turned_counts_once(
    size: int, staleness: float
) -> None:
    async with lone_shard(w=size, v=size) as shard:
        shard.follow(0, 0, 1)
        ends = [shard.end(worker, 0, w=slot(worker, size), v=slot(worker, size)) for worker in (0, 1)]
        await shard.rest()
        shard.decide(0, 0, commit=False)
        shard.decide(0, 1, commit=True)
        shard.follow(staleness, 0, 1, since=2)  # in one read from the socket
        await shard.rest()
        assert (slots(shard, 2), slots(shard, 2, "v")) == ([0.5, 0.5], [0.5, 0.5])
        assert [end.clock for end in ends] == [None, None]
        shard.follow(0, 0, 1, since=5)
        ends = [shard.end(worker, 5, w=slot(2 + worker, size)) for worker in (0, 1)]
        await shard.rest()
        assert shard.ended() == Ended(JOB, 5, (0, 1), ())
        shard.decide(5, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 4) == [0.5] * 4
        assert [end.clock for end in ends] == [None, None]


async def test_an_end_whose_push_is_still_being_added_is_answered_when_the_dial_is_turned() -> None:
    async with lone_shard(w=LARGE, v=SMALL) as shard:
        shard.follow(0, 0, 1)
        pushes = [shard.push(0, 0, w=slot(number, LARGE)) for number in range(3)]
        end = shard.end(0, 0, v=slot(0))
        shard.follow(math.inf, 0, 1, since=1)
        await shard.rest()
        assert end.clock is None
        assert all(isinstance(push.answer, Pushed) for push in pushes)
        assert slots(shard, 1, "v") == [1]
        assert all(value > 0 for value in slots(shard, 3)), "alone or as a mean, but each of them"


@pytest.mark.parametrize("before", [1, math.inf])
async def test_what_was_begun_before_steps_were_kept_is_applied_at_once(before: float) -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(before, 0, 1)
        shard.end(0, 0, w=slot(0))
        shard.follow(0, 0, 1, since=2)
        below = [shard.end(1, 0, w=slot(1)), shard.end(1, 1, w=slot(2)), shard.end(0, 1, w=slot(3))]
        assert [end.clock for end in below] == [None] * 3
        assert slots(shard, 4) == [1] * 4
        shard.end(0, 2, w=slot(4))
        shard.end(1, 2, w=slot(5))
        await shard.rest()
        shard.decide(2, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 6) == [1, 1, 1, 1, 0.5, 0.5]


async def test_who_has_ended_the_first_step_before_the_news_came_is_not_waited_for() -> None:
    """The shard hears of it late: a worker has ended there, at once, what is a step elsewhere."""
    async with lone_shard(w=SMALL) as shard:
        shard.follow(math.inf, 0, 1)
        for step in range(3):
            shard.end(0, step, w=slot(step))
        shard.follow(0, 0, 1, since=2)
        assert shard.ended() == Ended(JOB, 2, (0,), ())
        other = shard.end(1, 2, w=slot(3))
        await shard.rest()
        shard.decide(2, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 4) == [1, 1, 1, 1]
        assert other.clock is None


async def test_a_shard_that_was_away_while_the_dial_went_there_and_back_keeps_nobody_waiting() -> None:
    async with lone_shard(w=SMALL) as shard:
        shard.follow(0, 0, 1)
        ends = [shard.end(worker, 0, w=slot(worker)) for worker in (0, 1)]
        await shard.rest()
        shard.epoch += 1  # one that it missed, with another staleness
        shard.follow(0, 0, 1, since=4)
        await shard.rest()
        assert [end.clock for end in ends] == [None, None]
        assert slots(shard, 2) == [1, 1]
        for worker in (0, 1):
            shard.end(worker, 4, w=slot(2 + worker))
        await shard.rest()
        shard.decide(4, 0, 1, commit=True)
        await shard.rest()
        assert slots(shard, 4) == [1, 1, 0.5, 0.5]


async def test_nothing_is_kept_of_steps_that_are_over() -> None:
    dial = itertools.cycle([0.0, 1.0, 0.0, math.inf])
    async with lone_shard(w=SMALL) as shard:
        clock, since = 0, 0
        shard.follow(next(dial), 0, 1)
        for _ in range(40):
            for _ in range(2):
                for worker in (0, 1):
                    shard.push(worker, clock, w=slot(worker))
                    shard.end(worker, clock, w=slot(worker))
                await shard.rest()
                shard.decide(clock, 0, 1, commit=True)
                await shard.rest()
                clock += 1
            shard.end(0, clock, w=slot(2))
            since = clock + 1
            shard.follow(next(dial), 0, 1, since=since)
            clock = since
        await shard.rest()
        assert not shard.shard._steps[JOB]._shares
        assert not shard.shard.jobs[JOB].readers
        assert clock >= 40
