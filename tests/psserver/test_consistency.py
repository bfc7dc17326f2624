import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.messages import Epoch, Member
from psserver.consistency import Clocks
from tests.psserver.saved_states import assert_damage_is_refused, through_json


def epoch(staleness: float, begins: Mapping[int, int], *, since: int = 0, again: int = 1) -> Epoch:
    """An epoch of workers 0, 1, ... that began at these steps, all in their incarnation ``again``."""
    members = tuple(Member(worker, again, f"w{worker}", clock) for worker, clock in begins.items())
    return Epoch("job", 1, staleness, since, members)


def clocks_of(staleness: float, *workers: int) -> Clocks:
    clocks = Clocks()
    clocks.follow(epoch(staleness, dict.fromkeys(workers, 0)))
    return clocks


def end_steps(clocks: Clocks, worker: int, count: int) -> None:
    for _ in range(count):
        clocks.ended(worker, clocks.clock(worker))


def test_a_clock_counts_the_steps_that_were_ended() -> None:
    clocks = clocks_of(math.inf, 0, 1)
    end_steps(clocks, 0, 3)
    assert [clocks.clock(worker) for worker in (0, 1)] == [3, 0]
    assert (clocks.slowest, clocks.furthest, clocks.lead(0), clocks.lead(1)) == (0, 3, 3, 0)


def test_ending_a_step_again_changes_nothing() -> None:
    clocks = clocks_of(2, 0, 1)
    end_steps(clocks, 0, 2)
    clocks.ended(0, 0)
    clocks.ended(0, 1)
    assert (clocks.clock(0), clocks.slowest, clocks.furthest) == (2, 0, 2)
    end_steps(clocks, 1, 2)
    assert clocks.slowest == 2


@pytest.mark.parametrize("k", [1, 2, 7])
def test_a_worker_may_be_k_steps_ahead_and_no_more(k: int) -> None:
    clocks = clocks_of(k, 0, 1)
    for _ in range(k):
        end_steps(clocks, 0, 1)
        assert clocks.may_read(0)
    end_steps(clocks, 0, 1)
    assert not clocks.may_read(0)
    assert clocks.may_read(1)
    assert clocks.behind(clocks.clock(0)) == ("w1",)
    end_steps(clocks, 1, 1)
    assert clocks.may_read(0)
    assert clocks.behind(clocks.clock(0)) == ()


def test_nobody_waits_in_an_asynchronous_job() -> None:
    clocks = clocks_of(math.inf, 0, 1)
    end_steps(clocks, 0, 1000)
    assert clocks.may_read(0)
    assert clocks.behind(1000) == ()


@pytest.mark.parametrize("back", [False, True])
def test_a_worker_that_is_out_is_waited_for_no_longer(back: bool) -> None:
    clocks = clocks_of(1, 0, 1, 2)
    end_steps(clocks, 0, 2)
    end_steps(clocks, 2, 1)
    assert not clocks.may_read(0)
    clocks.follow(epoch(1, {0: 0, 2: 0}))
    assert clocks.may_read(0)
    if back:
        members = (Member(0, 1, "w0", 0), Member(1, 2, "w1", 2), Member(2, 1, "w2", 0))
        clocks.follow(Epoch("job", 3, 1, 0, members))
        assert clocks.may_read(0)
        assert (clocks.clock(1), clocks.slowest) == (2, 1)  # not where its former self was


def test_a_new_incarnation_begins_at_its_own_clock_also_if_the_death_was_not_heard_of() -> None:
    clocks = clocks_of(1, 0, 1)
    end_steps(clocks, 0, 5)
    clocks.follow(epoch(1, {0: 3, 1: 3}, again=2))
    assert [clocks.clock(worker) for worker in (0, 1)] == [3, 3]


def test_an_epoch_takes_no_step_from_those_who_stay() -> None:
    clocks = clocks_of(3, 0, 1)
    end_steps(clocks, 0, 2)
    clocks.follow(epoch(3, {0: 0, 1: 0, 2: 2}))
    assert [clocks.clock(worker) for worker in (0, 1, 2)] == [2, 0, 2]


def test_turning_the_dial_brings_everybody_to_one_step() -> None:
    clocks = clocks_of(math.inf, 0, 1)
    end_steps(clocks, 0, 40)
    clocks.follow(epoch(1, {0: 0, 1: 0}, since=41))
    assert [clocks.clock(worker) for worker in (0, 1)] == [41, 41]
    clocks.ended(1, 7)  # of the former regime
    assert clocks.clock(1) == 41
    end_steps(clocks, 0, 1)
    assert clocks.may_read(0)
    end_steps(clocks, 0, 1)
    assert not clocks.may_read(0)


def test_a_smaller_staleness_holds_those_who_are_ahead_until_the_others_come() -> None:
    clocks = clocks_of(5, 0, 1)
    end_steps(clocks, 0, 5)
    clocks.follow(epoch(2, {0: 0, 1: 0}))
    assert not clocks.may_read(0)
    end_steps(clocks, 1, 3)
    assert clocks.may_read(0)


def test_a_step_is_in_lockstep_from_the_turn_of_the_dial_on() -> None:
    clocks = clocks_of(0, 0)
    assert clocks.in_lockstep(0)
    clocks.follow(epoch(0, {0: 0}, since=4))
    assert [clocks.in_lockstep(step) for step in (3, 4, 5)] == [False, True, True]
    clocks.follow(epoch(1, {0: 0}, since=6))
    assert not clocks.in_lockstep(6)


def test_who_is_ahead_of_a_step_is_known() -> None:
    clocks = clocks_of(math.inf, 0, 1, 2)
    end_steps(clocks, 0, 3)
    end_steps(clocks, 1, 2)
    assert [clocks.ahead_of(step) for step in (-1, 1, 2, 3)] == [[0, 1, 2], [0, 1], [0], []]


def test_without_workers_there_is_nobody_to_wait_for() -> None:
    clocks = clocks_of(1, 0)
    end_steps(clocks, 0, 3)
    clocks.follow(epoch(1, {}))
    assert (clocks.slowest, clocks.furthest, clocks.behind(9)) == (0, 3, ())
    clocks.follow(epoch(1, {4: 7}))
    assert (clocks.slowest, clocks.furthest) == (7, 7)


# --- after a restart


def restarted(clocks: Clocks) -> Clocks:
    again = Clocks.restored(through_json(clocks.state()))
    assert again.state() == clocks.state()
    return again


@pytest.mark.parametrize("staleness", [0, 1, 7, math.inf])
def test_after_a_restart_everybody_is_where_it_was(staleness: float) -> None:
    clocks = Clocks()
    clocks.follow(epoch(staleness, {2: 5, 0: 4}, since=3))
    end_steps(clocks, 0, 4)
    again = restarted(clocks)
    assert (again.staleness, again.since, again.slowest, again.furthest) == (staleness, 3, 5, 8)
    assert [(one.worker, one.name, one.incarnation) for one in again.members.values()] == [
        (2, "w2", 1),
        (0, "w0", 1),
    ]
    for one in (clocks, again):
        one.follow(epoch(staleness, {0: 4, 1: 8}, since=3))
        end_steps(one, 1, 2)
    assert again.state() == clocks.state()
    again.follow(epoch(staleness, {0: 9}, since=3, again=2))
    assert again.clock(0) == 9


def test_clocks_without_workers_are_restored_too() -> None:
    clocks = clocks_of(1, 0)
    end_steps(clocks, 0, 3)
    clocks.follow(epoch(1, {}))
    assert (restarted(clocks).slowest, restarted(clocks).furthest) == (0, 3)
    assert restarted(Clocks()).staleness == math.inf


def test_a_state_that_is_not_whole_is_refused_by_name() -> None:
    clocks = Clocks()
    clocks.follow(epoch(2, {0: 5, 1: 4}, since=3))
    state = through_json(clocks.state())
    assert_damage_is_refused(state, lambda one: Clocks.restored(one).state(), at_least=200)
    twice = {**state, "members": [state["members"][0]] * 2}
    for wrong, field in (
        ({**state, "staleness": "1.5"}, "staleness"),
        ({**state, "since": 5}, "since"),
        ({**state, "furthest": 4}, "furthest"),
        (twice, "members"),
    ):
        with pytest.raises(BadRequest, match="not whole") as caught:
            Clocks.restored(wrong)
        assert caught.value.field == field


class Job:
    """Workers that go on only when they may, beside the clocks that say so."""

    def __init__(self, staleness: float) -> None:
        self.staleness = staleness
        self.since = 0
        self.incarnations = 0
        self.furthest = 0
        self.live: dict[int, tuple[int, int]] = {}  # incarnation and first step, by worker
        self.at: dict[int, int] = {}  # the step that each is in
        self.clocks = Clocks()

    def follow(self) -> None:
        members = tuple(Member(w, again, f"w{w}", first) for w, (again, first) in self.live.items())
        self.clocks.follow(Epoch("job", 1, self.staleness, self.since, members))

    def joins(self, worker: int) -> None:
        """As the coordinator does it: who joins begins where the furthest ever was."""
        self.incarnations += 1
        first = max(self.since, self.clocks.furthest)
        self.live[worker] = (self.incarnations, first)
        self.at[worker] = first
        self.follow()

    def goes(self, worker: int) -> None:
        del self.live[worker], self.at[worker]
        self.follow()

    def set(self, staleness: float) -> None:
        if staleness != math.inf and self.staleness == math.inf:
            self.since = max(self.since, self.clocks.furthest) + 1
            self.at = {worker: max(step, self.since) for worker, step in self.at.items()}
        self.staleness = staleness
        self.follow()

    def ends(self, worker: int) -> None:
        if self.clocks.may_read(worker):
            self.clocks.ended(worker, self.at[worker])
            self.at[worker] += 1

    def agrees(self) -> None:
        clocks, at = self.clocks, self.at
        assert {worker: clocks.clock(worker) for worker in at} == at
        slowest = min(at.values(), default=0)
        self.furthest = max(self.furthest, self.since, *at.values(), 0)
        assert (clocks.slowest, clocks.furthest) == (slowest, self.furthest)
        for worker, step in at.items():
            assert clocks.lead(worker) == step - slowest
            assert clocks.may_read(worker) == all(step - other <= self.staleness for other in at.values())
            waits_for = [f"w{w}" for w, other in at.items() if other < step - self.staleness]
            assert sorted(clocks.behind(step)) == sorted(waits_for)
            assert clocks.may_read(worker) == (not waits_for)
        assert not at or any(clocks.may_read(worker) for worker in at)


WORKERS = st.integers(0, 3)
STALENESS = st.sampled_from([1, 1, 2, 5, math.inf])
EVENT = st.one_of(
    st.tuples(st.just("end"), WORKERS),
    st.tuples(st.just("end"), WORKERS),
    st.tuples(st.just("end"), WORKERS),
    st.tuples(st.sampled_from(["join", "go", "restart"]), WORKERS),
)


def happens(job: Job, event: str, worker: int) -> None:
    if event == "join":
        job.joins(worker)
    elif event == "restart":
        job.clocks = restarted(job.clocks)
    elif worker not in job.live:
        return
    elif event == "go":
        job.goes(worker)
    else:
        job.ends(worker)


@given(STALENESS, st.lists(EVENT, max_size=80))
def test_who_obeys_is_never_more_than_k_steps_ahead_of_anybody(
    staleness: float, events: list[tuple[str, int]]
) -> None:
    job = Job(staleness)
    for worker in range(3):
        job.joins(worker)
    for event, worker in events:
        happens(job, event, worker)
        job.agrees()
        at_work = [step for worker, step in job.at.items() if job.clocks.may_read(worker)]
        waiting = [step for worker, step in job.at.items() if not job.clocks.may_read(worker)]
        slowest = min(job.at.values(), default=0)
        assert all(step - slowest <= staleness for step in at_work)
        assert all(step - slowest == staleness + 1 for step in waiting)  # ended a step, begins no other


@given(
    st.lists(st.one_of(EVENT, EVENT, EVENT, EVENT, st.tuples(st.just("set"), STALENESS)), max_size=80),
)
def test_the_dial_may_be_turned_at_any_time(events: list[tuple[str, float]]) -> None:
    """The slowest is always the minimum, and whoever is slowest may always go on: nobody waits for ever."""
    job = Job(math.inf)
    for worker in range(3):
        job.joins(worker)
    for event, what in events:
        if event == "set":
            job.set(what)
        else:
            happens(job, event, int(what))
        job.agrees()
