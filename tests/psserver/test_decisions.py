from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.messages import Decide, Ended
from psserver.decisions import StepDecisions
from tests.psserver.saved_states import assert_damage_is_refused, through_json


def report(
    decisions: StepDecisions, shard: int, *workers: int, idle: Iterable[int] = (), now: float = 0.0
) -> None:
    decisions.ended(shard, Ended("job", decisions.step, workers, tuple(idle)), set(workers), now)


def decide(decisions: StepDecisions, live: Iterable[int], backup: int = 0) -> Decide | None:
    return decisions.decide("job", live, backup)


def test_a_step_is_over_when_all_have_ended_it() -> None:
    decisions = StepDecisions(1)
    assert decide(decisions, [0, 1]) is None
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (0,), commit=False)
    assert decide(decisions, [0, 1]) is None
    assert decisions.waiting_for([0, 1]) == {1}
    report(decisions, 0, 0, 1)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (1,), commit=True)
    assert (decisions.step, decisions.waiting_for([0, 1])) == (1, {0, 1})
    assert decide(decisions, [0, 1]) is None


def test_a_worker_is_in_a_step_when_it_has_ended_it_on_every_shard() -> None:
    decisions = StepDecisions(3)
    report(decisions, 0, 0)
    report(decisions, 2, 0)
    assert decide(decisions, [0]) is None
    report(decisions, 1, 0)
    assert decide(decisions, [0]) == Decide("job", 0, (0,), commit=True)


def test_what_is_said_of_another_step_is_ignored() -> None:
    decisions = StepDecisions(1)
    decisions.begin_at(3)
    for step in (0, 2, 4):
        decisions.ended(0, Ended("job", step, (0,), ()), {0}, 0.0)
    assert decide(decisions, [0]) is None
    assert decisions.since is None


def test_a_step_waits_for_nobody_who_is_dead() -> None:
    decisions = StepDecisions(2)
    for shard in range(2):
        report(decisions, shard, 0)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (0,), commit=False)
    assert decide(decisions, [0]) == Decide("job", 0, (), commit=True)


def test_who_dies_with_its_gradient_on_some_shards_only_is_left_out() -> None:
    decisions = StepDecisions(2)
    report(decisions, 0, 0, 1)
    report(decisions, 1, 1)
    assert decide(decisions, [1]) == Decide("job", 0, (1,), commit=True)


def test_who_dies_after_it_was_let_in_is_in_the_step() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (0,), commit=False)
    assert decide(decisions, [1]) is None
    report(decisions, 0, 0, 1)
    assert decide(decisions, [1]) == Decide("job", 0, (1,), commit=True)


def test_what_a_former_self_had_ended_counts_for_no_later_incarnation() -> None:
    """Worker 0 dies with its gradient on shard 0 alone, comes back, and ends the step on shard 1 first."""
    decisions = StepDecisions(2)
    report(decisions, 0, 0)
    assert decide(decisions, [1]) is None  # dead
    assert decisions.first_step(0) == 0
    report(decisions, 1, 0)
    assert decide(decisions, [0, 1]) is None
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (0,), commit=False)


def test_what_is_said_of_a_worker_that_not_all_shards_know_is_of_its_former_self() -> None:
    """The report was under way when worker 0 was declared dead, and arrives when it has joined again."""
    decisions = StepDecisions(1)
    decisions.ended(0, Ended("job", 0, (0, 1), (0,)), {1}, 0.0)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (1,), commit=False)
    assert decisions.first_step(0) == 0


def test_a_shard_may_take_back_what_it_said_of_one_who_is_out() -> None:
    decisions = StepDecisions(2)
    report(decisions, 0, 0)  # under way when the worker was declared dead; it has joined again since
    report(decisions, 0)
    report(decisions, 1, 0)
    assert decide(decisions, [0, 1]) is None


def test_who_comes_back_into_a_step_that_has_its_gradient_begins_with_the_next() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0)
    decide(decisions, [0, 1])
    assert (decisions.first_step(0), decisions.first_step(1), decisions.first_step(7)) == (1, 0, 0)


def test_a_step_of_which_nobody_is_part_is_not_over() -> None:
    decisions = StepDecisions(1)
    assert decide(decisions, []) is None
    assert decide(decisions, [0], backup=1) is None
    report(decisions, 0, 0)
    assert decide(decisions, []) is None
    assert decisions.step == 0


# --- backup workers


def test_the_first_n_of_m_make_a_step() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 2)
    assert decide(decisions, [0, 1, 2, 3], backup=2) == Decide("job", 0, (2,), commit=False)
    report(decisions, 0, 2, 0)
    assert decide(decisions, [0, 1, 2, 3], backup=2) == Decide("job", 0, (0,), commit=True)


def test_at_least_one_of_those_who_work_is_waited_for() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 9)
    decide(decisions, [0, 1, 9], backup=5)
    decisions = StepDecisions(1)
    report(decisions, 0, 9, idle=[9])
    assert decide(decisions, [0, 9], backup=5) == Decide("job", 0, (9,), commit=False)
    report(decisions, 0, 9, 0, idle=[9])
    assert decide(decisions, [0, 9], backup=5) == Decide("job", 0, (0,), commit=True)


def test_the_last_words_of_a_dead_worker_are_not_a_step_of_the_others() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1, 2], backup=1) == Decide("job", 0, (0,), commit=False)
    assert decide(decisions, [1, 2], backup=5) is None


def test_those_with_nothing_to_do_outvote_nobody() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0, 1, 2, idle=[0, 1, 2])
    assert decide(decisions, range(5), backup=1) == Decide("job", 0, (0, 1, 2), commit=False)
    report(decisions, 0, 0, 1, 2, 3, idle=[0, 1, 2])
    assert decide(decisions, range(5), backup=1) == Decide("job", 0, (3,), commit=True)


def test_a_step_in_which_nobody_has_work_is_over() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0, 1, idle=[0, 1])
    assert decide(decisions, [0, 1]) == Decide("job", 0, (0, 1), commit=True)


def test_who_is_idle_on_one_shard_only_is_not_idle() -> None:
    decisions = StepDecisions(2)
    report(decisions, 0, 0, idle=[0])
    report(decisions, 1, 0)
    assert decide(decisions, [0, 1], backup=1) == Decide("job", 0, (0,), commit=True)


def test_backup_workers_may_be_set_while_a_step_waits() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1]) == Decide("job", 0, (0,), commit=False)
    assert decide(decisions, [0, 1], backup=1) == Decide("job", 0, (), commit=True)


# --- since when


def test_it_is_known_since_when_somebody_waits() -> None:
    decisions = StepDecisions(2)
    assert decisions.since is None
    report(decisions, 0, 0, now=1.0)
    report(decisions, 1, 0, now=2.0)
    assert decide(decisions, [0, 1]) is not None
    assert decisions.since == 1.0
    report(decisions, 0, 0, 1, now=3.0)
    report(decisions, 1, 0, 1, now=3.0)
    assert decide(decisions, [0, 1]) is not None
    assert decisions.since is None


@pytest.mark.parametrize("shards", [1, 2])
def test_nobody_keeps_the_dead_waiting(shards: int) -> None:
    decisions = StepDecisions(shards)
    report(decisions, 0, 0, now=1.0)
    decide(decisions, [0, 1])
    decide(decisions, [1])
    assert decisions.since is None
    report(decisions, 0, 0, 2, now=5.0)
    decide(decisions, [1, 2])
    assert decisions.since == 5.0


# --- turning the dial, and shards that were away


def test_a_step_is_opened_at_a_later_number_only() -> None:
    decisions = StepDecisions(1)
    decisions.begin_at(5)
    assert decisions.step == 5
    report(decisions, 0, 0)
    decisions.begin_at(5)
    decisions.begin_at(3)
    assert decide(decisions, [0]) == Decide("job", 5, (0,), commit=True)


def test_a_shard_that_was_away_is_told_all_of_this_step_and_the_last() -> None:
    decisions = StepDecisions(1)
    assert decisions.again("job") == [Decide("job", 0, (), commit=False)]
    for worker in (1, 2):
        report(decisions, 0, worker)
        assert decide(decisions, [worker]) is not None
    report(decisions, 0, 3)
    assert decide(decisions, [3, 4]) is not None
    assert decisions.again("job") == [
        Decide("job", 1, (2,), commit=True),
        Decide("job", 2, (3,), commit=False),
    ]


def test_a_step_that_the_dial_cut_short_is_told_as_not_over() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 1)
    assert decide(decisions, [1]) is not None
    report(decisions, 0, 1)
    assert decide(decisions, [1, 2]) is not None
    decisions.begin_at(9)
    assert decisions.again("job") == [
        Decide("job", 0, (1,), commit=True),
        Decide("job", 1, (1,), commit=False),
        Decide("job", 9, (), commit=False),
    ]


# --- after a restart


def restarted(decisions: StepDecisions, shards: int) -> StepDecisions:
    again = StepDecisions.restored(through_json(decisions.state()), shards)
    assert again.state() == decisions.state()
    assert again.again("job") == decisions.again("job")
    return again


def test_after_a_restart_all_that_was_decided_is_still_so() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 1)
    assert decide(decisions, [1]) is not None
    report(decisions, 0, 2, 3)
    assert decide(decisions, [2, 3, 4]) is not None
    decisions = restarted(decisions, 1)
    assert (decisions.step, decisions.since, decisions.ended_by()) == (1, None, 2)
    assert (decisions.first_step(2), decisions.first_step(4)) == (2, 1)
    assert decide(decisions, [2, 3, 4]) is None
    report(decisions, 0, 2, 3, 4)
    assert decide(decisions, [2, 3, 4]) == Decide("job", 1, (4,), commit=True)


def test_a_step_that_the_dial_cut_short_is_told_after_a_restart() -> None:
    decisions = StepDecisions(2)
    for shard in (0, 1):
        report(decisions, shard, 1)
    assert decide(decisions, [1, 2]) is not None
    decisions.begin_at(9)
    assert len(restarted(decisions, 2).again("job")) == 2


def test_until_the_shards_have_reported_again_nobody_idle_outvotes_who_works() -> None:
    """Worker 0 has nothing to do: known before the restart, and after it when both shards have said so."""
    decisions = StepDecisions(2)
    for shard in (0, 1):
        report(decisions, shard, 0, idle=[0])
    assert decide(decisions, [0, 1], backup=1) == Decide("job", 0, (0,), commit=False)
    decisions = restarted(decisions, 2)
    assert decide(decisions, [0, 1], backup=1) is None
    report(decisions, 0, 0, idle=[0])
    assert decide(decisions, [0, 1], backup=1) is None
    report(decisions, 1, 0, idle=[0])
    assert decide(decisions, [0, 1], backup=1) is None
    for shard in (0, 1):
        report(decisions, shard, 0, 1, idle=[0])
    assert decide(decisions, [0, 1], backup=1) == Decide("job", 0, (1,), commit=True)


def test_after_a_restart_a_step_waits_for_nobody_who_has_died_meanwhile() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1]) is not None
    decisions = restarted(decisions, 1)
    report(decisions, 0, 0)
    assert decide(decisions, [0]) == Decide("job", 0, (), commit=True)


def test_a_lone_shard_may_know_more_than_was_decided_when_all_was_saved() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 0)
    assert decide(decisions, [0, 1]) is not None
    decisions = restarted(decisions, 1)
    decisions.resume(4, [1])
    assert (decisions.step, decisions.waiting_for([0, 1])) == (4, {0})
    assert decide(decisions, [1]) is None  # whether it had nothing to do is not known yet
    report(decisions, 0, 1)
    assert decide(decisions, [0, 1]) is None
    report(decisions, 0, 0, 1)
    assert decide(decisions, [0, 1]) == Decide("job", 4, (0,), commit=True)


def test_a_state_that_is_not_whole_is_refused_by_name() -> None:
    decisions = StepDecisions(1)
    report(decisions, 0, 1)
    assert decide(decisions, [1]) is not None
    report(decisions, 0, 1)
    assert decide(decisions, [1, 2]) is not None
    state = through_json(decisions.state())
    assert_damage_is_refused(state, lambda one: StepDecisions.restored(one, 1).state(), at_least=150)
    with pytest.raises(BadRequest, match="not whole") as caught:
        StepDecisions.restored({**state, "step": 0}, 1)
    assert caught.value.field == "before"


# --- anything, in any order


class Self(NamedTuple):
    """One incarnation of a worker."""

    worker: int
    incarnation: int


@dataclass(slots=True)
class Told:
    """An epoch: who is live."""

    live: dict[int, int]


@dataclass(slots=True)
class Shares:
    """What a shard has of one step: who has ended it, whether for nothing, and who was let in."""

    ended: dict[Self, bool] = field(default_factory=dict)
    included: set[Self] = field(default_factory=set)


class FakeShard:
    """What a shard does by its rules, with queues where the network is."""

    def __init__(self) -> None:
        self.step = 0
        self.live: dict[int, int] = {}
        self.shares: dict[int, Shares] = {}
        self.told: deque[Told | Decide] = deque()
        self.tells: deque[Ended] = deque()
        self.means: list[set[Self]] = []  # whose gradients were in each step
        self.is_told_again = False

    def end(self, one: Self, step: int, idle: bool) -> None:
        if step >= self.step and self.live.get(one.worker) == one.incarnation:
            self.shares.setdefault(step, Shares()).ended[one] = idle
            self.report()

    def report(self) -> None:
        ended = self.shares.get(self.step, Shares()).ended
        idle = tuple(one.worker for one, nothing in ended.items() if nothing)
        self.tells.append(Ended("job", self.step, tuple(one.worker for one in ended), idle))

    def hear(self) -> None:
        message = self.told.popleft()
        if isinstance(message, Told):
            self.live = message.live
            for shares in self.shares.values():
                for one in list(shares.ended):
                    if self.live.get(one.worker) != one.incarnation and one not in shares.included:
                        del shares.ended[one]
            self.report()
            return
        if message.step != self.step:
            assert self.is_told_again  # what it knows
            return
        shares = self.shares.setdefault(self.step, Shares())
        shares.included |= {one for one in shares.ended if one.worker in message.workers}
        if message.commit:
            self.means.append({one for one in shares.included if not shares.ended[one]})
            del self.shares[self.step]
            self.step += 1
            self.report()


class Job:
    """A synchronous job of fake shards, whose workers die and come back, around the real decisions."""

    def __init__(self, shards: int, backup: int) -> None:
        self.decisions = StepDecisions(shards)
        self.shards = [FakeShard() for _ in range(shards)]
        self.backup = backup
        self.live: dict[int, int] = {}
        self.incarnations: dict[int, int] = {}
        self.steps: dict[Self, int] = {}  # the step that each is in
        self.working: dict[Self, set[int]] = {}  # shards on which a worker has yet to end its step
        self.idle: dict[Self, bool] = {}
        self.decided: list[set[int]] = [set()]  # by step
        self.open: set[Self] = set()  # who is in the open step

    def join(self, worker: int) -> None:
        if worker in self.live:
            return
        self.live[worker] = self.incarnations[worker] = self.incarnations.get(worker, 0) + 1
        first = self.decisions.first_step(worker)
        self.announce()
        for number, shard in enumerate(self.shards):  # it is told so when every shard has said that it knows
            while shard.told:
                shard.hear()
            self.deliver(number)
        self.begin(Self(worker, self.live[worker]), first)

    def begin(self, one: Self, step: int) -> None:
        self.steps[one] = step
        self.working[one] = set(range(len(self.shards)))

    def die(self, worker: int) -> None:
        if worker in self.live:
            del self.live[worker]
            self.decide()
            self.announce()

    def restart(self) -> None:
        """The coordinator is started anew: what was on the wire is lost, and told again."""
        self.decisions = restarted(self.decisions, len(self.shards))
        for shard in self.shards:
            shard.tells.clear()
            shard.told = deque([*self.decisions.again("job"), Told(dict(self.live))])
            shard.is_told_again = True

    def announce(self) -> None:
        for shard in self.shards:
            shard.told.append(Told(dict(self.live)))

    def end(self, worker: int, shard: int, idle: bool) -> None:
        """A message of a worker, which may be dead by now, arrives at a shard."""
        one = Self(worker, self.incarnations.get(worker, 0))
        left = self.working.get(one, set())
        if shard in left:
            if len(left) == len(self.shards):
                self.idle[one] = idle
            left.discard(shard)
            self.shards[shard].end(one, self.steps[one], self.idle[one])

    def advance(self) -> None:
        """Workers whose step is over on every shard go on to the next."""
        opened = min(shard.step for shard in self.shards)
        for worker, incarnation in self.live.items():
            one = Self(worker, incarnation)
            if not self.working.get(one, {0}) and self.steps[one] < opened:
                self.begin(one, opened)

    def deliver(self, shard: int) -> None:
        """All that a shard has said reaches the coordinator."""
        while self.shards[shard].tells:
            known = {worker for worker, again in self.live.items() if Self(worker, again) in self.working}
            self.decisions.ended(shard, self.shards[shard].tells.popleft(), known, 0.0)
            self.decide()

    def decide(self) -> None:
        step = self.decisions.step
        decision = decide(self.decisions, self.live, self.backup)
        if decision is None:
            return
        assert decision.step == step == len(self.decided) - 1  # no step is decided twice, or left out
        assert not set(decision.workers) & self.decided[-1]
        for worker in decision.workers:
            one = Self(worker, self.live[worker])
            assert all(one in shard.shares[step].ended for shard in self.shards)
            self.open.add(one)
        self.decided[-1] |= set(decision.workers)
        if decision.commit:
            self.check_over(step)
            self.decided.append(set())
            self.open = set()
        for shard in self.shards:
            shard.told.append(decision)

    def check_over(self, step: int) -> None:
        """No more are missing than may be, of those that have work."""
        assert self.open
        idle = {one.worker for one in self.open if self.idle[one]}
        working = set(self.live) - idle
        missing = working - self.decided[-1]
        assert len(missing) <= self.backup
        assert not working or len(missing) < len(working)

    def settle(self) -> None:
        """Everything that is on the wire arrives."""
        while any(shard.told or shard.tells for shard in self.shards):
            for number, shard in enumerate(self.shards):
                while shard.told:
                    shard.hear()
                self.deliver(number)

    def all_end(self) -> None:
        for worker in self.live:
            for shard in range(len(self.shards)):
                self.end(worker, shard, idle=False)

    def happens(self, event: str, worker: int, number: int) -> None:
        shard = number % len(self.shards)
        if event in ("end", "idle"):
            self.end(worker, shard, idle=event == "idle")
        elif event == "hear" and self.shards[shard].told:
            self.shards[shard].hear()
        elif event == "tell":
            self.deliver(shard)
        elif event == "advance":
            self.advance()
        elif event == "restart":
            self.restart()
        elif event == "join":
            self.join(worker)
        elif event == "die":
            self.die(worker)


WORKERS, SHARDS = st.integers(0, 3), st.integers(0, 2)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["end", "end", "idle"]), WORKERS, SHARDS),
        st.tuples(st.sampled_from(["end", "end", "end", "hear", "tell", "advance"]), WORKERS, SHARDS),
        st.tuples(st.sampled_from(["join", "die", "restart"]), WORKERS, SHARDS),
    ),
    max_size=100,
)


@given(shards=st.integers(1, 3), backup=st.integers(0, 3), events=EVENTS)
def test_any_history_makes_every_step_once_and_the_same_on_every_shard(
    shards: int, backup: int, events: list[tuple[str, int, int]]
) -> None:
    """Workers end steps shard by shard, die, come back; messages take their time; the coordinator is started
    anew. Then the live go on."""
    job = Job(shards, backup)
    for worker in range(3):
        job.join(worker)
    for event, worker, number in events:
        job.happens(event, worker, number)
        assert job.decisions.waiting_for(job.live) == set(job.live) - job.decided[-1]
    job.settle()
    for _ in range(3):
        before = job.decisions.step
        job.advance()
        job.all_end()
        job.settle()
        assert not job.live or job.decisions.step > before
    assert job.decisions.step == len(job.decided) - 1
    assert all(shard.step == job.decisions.step for shard in job.shards)
    assert all(shard.means == job.shards[0].means for shard in job.shards)
