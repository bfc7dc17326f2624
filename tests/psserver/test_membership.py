import itertools
import math
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, Fenced
from protocol.messages import Empty, Heartbeat
from psserver.call import Call
from psserver.membership import FailureSettings, Membership, Worker
from tests.psserver.saved_states import assert_damage_is_refused, through_json

SETTINGS = FailureSettings(heartbeat=1.0, dead_after=5.0, hung_after=60.0)


def membership(needed: int = 1) -> Membership:
    return Membership(needed, SETTINGS)


_tokens = itertools.count()


def join(workers: Membership, name: str | None = None, now: float = 0.0, token: str | None = None) -> Worker:
    """Join, and be told so at once if the job has started."""
    worker = workers.join(name, token or f"token {next(_tokens)}", now)
    if workers.started:
        workers.tell(worker, now)
    return worker


def names(workers: Sequence[Worker]) -> list[str]:
    return [worker.name for worker in workers]


def states(workers: Membership) -> dict[str, str]:
    return {worker.name: worker.state for worker in workers}


def beat(workers: Membership, worker: Worker, now: float, clock: int = 0, examples: int = 0) -> None:
    workers.heartbeat(worker, Heartbeat(clock, examples), now)


def bury(workers: Membership, now: float, waited_for: Sequence[int] = ()) -> list[str]:
    """Return the names of those who are found dead."""
    return [death.worker.name for death in workers.bury(now, waited_for)]


def is_out(workers: Membership, worker: Worker) -> bool:
    try:
        workers.get(worker.id, worker.incarnation)
    except Fenced:
        return True
    return False


# --- who comes


def test_the_job_starts_when_enough_have_joined() -> None:
    workers = membership(2)
    first = join(workers)
    assert (first.state, workers.started) == ("waiting", False)
    assert (workers.members(), names(workers.waiting())) == ((), [first.name])
    second = join(workers)
    assert (first.state, second.state, workers.started) == ("training", "training", True)
    assert [(m.worker, m.incarnation) for m in workers.members()] == [(0, 1), (1, 1)]
    assert workers.waiting() == []


def test_whoever_comes_later_takes_part_at_once() -> None:
    workers = membership(1)
    join(workers, "a")
    late = join(workers, "late")
    late.begins = 7
    assert late.state == "training"
    assert [(m.name, m.clock) for m in workers.members()] == [("a", 0), ("late", 7)]


def test_each_change_is_a_new_epoch() -> None:
    workers = membership(1)
    a, b = join(workers), join(workers)
    assert workers.epoch == 2
    workers.leave(a, 3)
    assert workers.epoch == 3
    workers.disconnected(b, 0.0)
    assert workers.epoch == 3
    assert bury(workers, 10.0) == [b.name]
    assert workers.epoch == 4


@pytest.mark.parametrize("needed", [1, 2])
@pytest.mark.parametrize("suspect", [False, True])
def test_a_name_in_use_is_refused_and_changes_nothing(needed: int, suspect: bool) -> None:
    workers = membership(needed)
    a = join(workers, "a")
    if suspect:
        workers.disconnected(a, 0.0)
    before = workers.epoch, states(workers)
    with pytest.raises(BadRequest, match="--name") as caught:
        join(workers, "a")
    assert (caught.value.field, caught.value.value) == ("name", "a")
    assert (workers.epoch, states(workers)) == before


def test_given_names_do_not_clash_with_chosen_ones() -> None:
    workers = membership(1)
    assert [join(workers, name).name for name in ("worker-1", None, None)] == [
        "worker-1",
        "worker-2",
        "worker-3",
    ]


def test_coming_back_is_the_next_incarnation_of_the_same_worker() -> None:
    workers = membership(1)
    first, other = join(workers, "a"), join(workers, "b")
    workers.leave(first, 5)
    second = join(workers, "a")
    workers.disconnected(second, 0.0)
    assert bury(workers, SETTINGS.return_within) == ["a"]
    third = join(workers, "a")
    assert [(w.id, w.incarnation) for w in (first, second, third)] == [(0, 1), (0, 2), (0, 3)]
    assert (other.id, other.incarnation) == (1, 1)
    assert [is_out(workers, w) for w in (first, second, third)] == [True, True, False]
    assert [(m.name, m.incarnation) for m in workers.members()] == [("b", 1), ("a", 3)]


@pytest.mark.parametrize("needed", [1, 2])
def test_asking_to_join_again_finds_who_one_is(needed: int) -> None:
    workers = membership(needed)
    worker = join(workers, token="mine")
    join(workers, token="another's")
    assert workers.find("mine") is worker
    assert workers.find("nobody's") is None
    workers.leave(worker, 0)
    assert workers.find("mine") is None


def test_only_who_is_there_is_found_by_its_identity() -> None:
    workers = membership(2)
    a = join(workers, "a")
    assert workers.get(a.id, 1) is a
    for worker, incarnation in ((a.id, 2), (a.id, 0), (a.id, None), (99, 1), (-1, 1)):
        with pytest.raises(Fenced) as caught:
            workers.get(worker, incarnation)
        assert (caught.value.field, caught.value.value) == ("worker", str(worker))


# --- who goes: silence


def test_silence_is_first_suspicious_and_then_death_within_the_limit() -> None:
    workers = membership(2)
    a, b = join(workers, "a"), join(workers, "b")
    for worker in (a, b):
        workers.tell(worker, 0.0)
    epoch = workers.epoch
    seen = []
    for quarter in range(1, 21):
        now = quarter / 4
        beat(workers, b, now)
        dead = bury(workers, now)
        seen.append(a.state)
        assert workers.epoch == epoch + len(dead)
        if dead:
            break
    assert set(seen) == {"training", "suspect", "dead"}
    assert seen == sorted(seen, key=["training", "suspect", "dead"].index)
    assert b.state == "training"
    assert [m.name for m in workers.members()] == ["b"]


def test_a_suspect_is_live_until_it_is_dead() -> None:
    workers = membership(1)
    a = join(workers, "a")
    assert bury(workers, a.detector.suspect_at) == []
    assert states(workers) == {"a": "suspect"}
    assert (names(workers.live()), [m.name for m in workers.members()]) == (["a"], ["a"])
    assert not is_out(workers, a)
    beat(workers, a, a.detector.suspect_at)
    assert a.state == "training"


def test_a_regular_worker_is_missed_before_the_limit() -> None:
    workers = membership(1)
    a = join(workers, "a")
    for second in range(1, 20):
        beat(workers, a, float(second))
    assert bury(workers, 19.0 + 4.5) == ["a"]


def test_a_dead_worker_stays_dead() -> None:
    workers = membership(1)
    a = join(workers, "a")
    (death,) = workers.bury(5.0, ())
    assert "silent for 5.0 s" in death.reason
    assert bury(workers, 6.0) == []
    assert is_out(workers, a)
    assert join(workers, "a").incarnation == 2
    assert a.state == "dead"


def test_who_waits_for_the_start_sends_no_heartbeats_and_is_not_missed() -> None:
    workers = membership(2)
    a = join(workers, "a", now=0.0)
    assert bury(workers, 1000.0) == []
    b = join(workers, "b", now=1000.0)
    assert bury(workers, 1001.0) == []  # the one has not been told yet that the job has started
    assert names(workers.live()) == ["a", "b"]
    for worker in (a, b):
        workers.tell(worker, 1001.0)
    assert bury(workers, 1001.1) == []
    assert (a.state, b.state) == ("training", "training")
    assert bury(workers, 1006.0) == ["a", "b"]


def test_who_could_not_be_told_yet_is_not_blamed_for_those_who_wait_for_it() -> None:
    workers = membership(1)
    join(workers, "a")
    late = workers.join("late", "token", 0.0)
    for second in range(1, 101):
        bury(workers, float(second), [late.id])
    assert late.state == "training"
    workers.tell(late, 100.0)
    assert bury(workers, 100.5, [late.id]) == []


# --- who goes: connections that end


def test_who_loses_its_connection_is_suspect_at_once_and_dead_soon() -> None:
    workers = membership(1)
    a = join(workers, "a")
    for second in range(1, 11):
        beat(workers, a, float(second))
    workers.disconnected(a, 10.0)
    assert a.state == "suspect"
    assert bury(workers, 10.0 + SETTINGS.return_within - 0.01) == []
    (death,) = workers.bury(10.0 + SETTINGS.return_within, ())
    assert "did not come back" in death.reason


def test_who_comes_back_in_time_goes_on_as_before() -> None:
    workers = membership(1)
    a = join(workers, "a")
    workers.disconnected(a, 1.0)
    workers.returned(a, 1.5)
    assert a.state == "training"
    for second in range(2, 10):
        beat(workers, a, float(second))
        assert bury(workers, float(second)) == []


def test_losing_one_connection_after_the_other_gives_no_more_time() -> None:
    workers = membership(1)
    a = join(workers, "a")
    workers.disconnected(a, 1.0)
    workers.disconnected(a, 2.5)
    assert bury(workers, 1.0 + SETTINGS.return_within) == ["a"]


def test_a_return_never_takes_longer_than_silence_may() -> None:
    assert FailureSettings(heartbeat=10.0, dead_after=5.0).return_within == 5.0
    assert FailureSettings(heartbeat=1.0, dead_after=5.0).return_within == 2.0


def test_who_goes_before_the_start_is_not_counted() -> None:
    workers = membership(2)
    gone = join(workers, "gone")
    workers.disconnected(gone, 0.0)
    assert states(workers) == {"gone": "waiting"}
    assert bury(workers, SETTINGS.return_within) == ["gone"]
    assert states(workers) == {"gone": "left"}
    join(workers, "a")
    assert not workers.started
    join(workers, "b")
    assert workers.started
    assert [m.name for m in workers.members()] == ["a", "b"]


# --- who goes: hearts that beat


def live_on(workers: Membership, worker: Worker, begin: int, end: int, waited: bool, clock: int = 0) -> bool:
    """Beat every second without getting on; return whether the worker survived it."""
    for second in range(begin, end):
        if bury(workers, float(second), [worker.id] if waited else []):
            return False
        beat(workers, worker, float(second), clock=clock)
    return True


def test_who_keeps_others_waiting_too_long_is_dead_though_its_heart_beats() -> None:
    workers = membership(1)
    a = join(workers, "a")
    assert live_on(workers, a, 1, 61, waited=True)
    assert not live_on(workers, a, 61, 63, waited=True)
    assert a.state == "dead"


def test_who_keeps_nobody_waiting_may_take_its_time() -> None:
    workers = membership(1)
    a = join(workers, "a")
    assert live_on(workers, a, 1, 500, waited=False)
    assert live_on(workers, a, 500, 550, waited=True)  # it is only now that somebody waits
    assert live_on(workers, a, 550, 551, waited=False)
    assert live_on(workers, a, 551, 600, waited=True)


@pytest.mark.parametrize("progress", ["clock", "examples"])
def test_who_gets_on_is_slow_and_not_hung(progress: str) -> None:
    workers = membership(1)
    a = join(workers, "a")
    for second in range(1, 500):
        done = second // 50
        beat(workers, a, float(second), **{progress: done})
        assert bury(workers, float(second), [a.id]) == []


def test_a_step_seen_by_a_server_is_progress_too() -> None:
    workers = membership(1)
    a = join(workers, "a")
    assert live_on(workers, a, 1, 50, waited=True)
    workers.reached(a, 1, 50.0)
    assert live_on(workers, a, 50, 110, waited=True)
    assert a.clock == 1


# --- a coordinator that was asleep


def test_nobody_is_blamed_while_the_coordinator_was_asleep() -> None:
    workers = membership(1)
    silent, gone, waited = join(workers, "silent"), join(workers, "gone"), join(workers, "waited")
    for worker in (silent, gone, waited):
        beat(workers, worker, 1.0)
    workers.disconnected(gone, 1.0)
    workers.bury(1.0, [waited.id])
    workers.excuse(3600.0, 3601.5)
    assert bury(workers, 3601.5, [waited.id]) == []
    assert names(workers.live()) == ["silent", "gone", "waited"]


def test_an_excuse_gives_nobody_time_on_top() -> None:
    """The heartbeats that came in the sleep are read before anybody knows how long it was."""
    workers = membership(1)
    a = join(workers, "a")
    beat(workers, a, 3600.0, clock=1)
    workers.excuse(3600.0, 3600.0)
    assert bury(workers, 3605.0) == ["a"]


def test_an_excuse_does_not_make_the_hung_immortal() -> None:
    workers = membership(1)
    a = join(workers, "a")
    beat(workers, a, 3600.0, clock=1)
    workers.excuse(3600.0, 3600.0)
    assert not live_on(workers, a, 3601, 3663, waited=True, clock=1)


# --- what is told


def test_speed_is_that_of_the_last_heartbeats() -> None:
    workers = membership(1)
    worker = join(workers, "a")
    assert worker.speed() == 0.0
    for second in range(10):  # 10 examples a second, then, for the last five heartbeats, 100
        examples = 10 * second if second < 5 else 40 + 100 * (second - 4)
        workers.heartbeat(worker, Heartbeat(second, examples, 0.5, second), float(second))
    assert worker.speed() == pytest.approx(100.0)
    (status,) = workers.status(now=12.0, leases={0: 2}, furthest=11)
    assert (status.clock, status.examples, status.loss, status.heartbeat_age) == (9, 540, 0.5, 3.0)
    assert (status.lag, status.leases, status.skipped) == (2, 2, 9)
    assert status.examples_per_second == pytest.approx(100.0)


def test_who_is_out_has_neither_lag_nor_speed() -> None:
    workers = membership(1)
    worker = join(workers, "a")
    for second in range(3):
        beat(workers, worker, float(second), clock=second, examples=10 * second)
    workers.leave(worker, 3)
    (status,) = workers.status(now=3.0, leases={}, furthest=11)
    assert (status.state, status.clock, status.lag, status.examples_per_second) == ("left", 3, 0, 0.0)


def test_two_heartbeats_at_one_instant_have_no_speed() -> None:
    workers = membership(1)
    worker = join(workers)
    for examples in (1, 2):
        workers.heartbeat(worker, Heartbeat(0, examples), 1.0)
    assert worker.speed() == 0.0


def test_the_clock_of_a_worker_does_not_run_backwards() -> None:
    workers = membership(1)
    worker = join(workers)
    workers.reached(worker, 5, 1.0)
    beat(workers, worker, 2.0, clock=3)
    assert worker.clock == 5


@pytest.mark.parametrize("again", [False, True])
def test_what_is_kept_of_those_who_are_gone_is_bounded(again: bool) -> None:
    workers = membership(1)
    stays = join(workers, "stays")
    issued = {(stays.id, stays.incarnation)}
    for number in range(3000):
        name = "again" if again else f"w{number}"
        worker = join(workers, name)
        assert (worker.id, worker.incarnation) not in issued
        issued.add((worker.id, worker.incarnation))
        workers.leave(worker, 0)
    assert len(list(workers)) <= 1001
    assert names(workers.live()) == ["stays"]
    assert workers.get(stays.id, 1) is stays
    back = join(workers, "again" if again else "w0")
    assert (back.id, back.incarnation) not in issued
    assert workers.get(back.id, back.incarnation) is back


# --- when everybody is out at once, and what may have been forgotten


@pytest.mark.parametrize("needed", [1, 3])
def test_everybody_is_out_at_once_and_may_come_back(needed: int) -> None:
    workers = membership(needed)
    a, b = join(workers, "a"), join(workers, "b")
    before = workers.epoch
    workers.all_out()
    assert workers.epoch > before
    assert is_out(workers, a)
    assert is_out(workers, b)
    assert (workers.live(), workers.waiting(), workers.started) == ([], [], needed == 1)
    back = join(workers, "a")
    assert (back.id, back.incarnation) == (a.id, 2)
    assert back.state == ("training" if needed == 1 else "waiting")


def test_that_nobody_is_left_is_a_new_epoch_too() -> None:
    workers = membership()
    before = workers.epoch
    workers.all_out()
    assert workers.epoch == before + 1


def test_no_incarnation_is_below_the_first() -> None:
    workers = Membership(1, SETTINGS, first_incarnation=100)
    new = join(workers, "new")
    assert new.incarnation == 100
    workers.leave(new, 0)
    assert join(workers, "new").incarnation == 101
    workers.first_incarnation = 1000
    workers.all_out()
    assert [join(workers, name).incarnation for name in ("new", "newer")] == [1000, 1000]


@pytest.mark.parametrize("seen", [0, 1, 4])
def test_what_was_issued_and_forgotten_is_not_issued_again(seen: int) -> None:
    """The disk knows of the first few changes only; those after them were lost with the power."""
    workers, told = membership(), []
    saved = None
    for number, name in enumerate(["a", "b", "a", "c", "a", "d"]):
        if number == seen:
            saved = through_json(workers.state())
        worker = join(workers, name)
        told.append((worker.id, worker.incarnation))
        if name == "a":
            workers.leave(worker, 0)
    epochs = workers.epoch
    again = Membership.restored(saved, SETTINGS, 0.0)
    again.skip_incarnations(1000)
    again.all_out()
    assert again.epoch > epochs  # or the shards would ignore it
    for name in "dcba":
        worker = join(again, name)
        assert (worker.id, worker.incarnation) not in told


def test_incarnations_that_are_left_out_are_those_after_the_highest_known() -> None:
    workers = membership()
    for _ in range(4):
        worker = join(workers, "a")
        workers.leave(worker, 0)
    workers.skip_incarnations(2)
    assert [join(workers, name).incarnation for name in "ab"] == [6, 6]


# --- after a restart


def restarted(workers: Membership, now: float = 0.0) -> Membership:
    again = Membership.restored(through_json(workers.state()), SETTINGS, now)
    assert again.state() == workers.state()
    return again


def found(workers: Membership, name: str) -> Worker:
    (worker,) = [worker for worker in workers if worker.name == name]
    return worker


def some_workers() -> Membership:
    """One of each state."""
    workers = membership(2)
    for name in ("left", "dead", "suspect", "training", "again"):
        join(workers, name)
    for name in ("left", "again"):
        workers.leave(found(workers, name), 3)
    join(workers, "again", token="its token").begins = 4
    for name in ("suspect", "training", "again"):
        beat(workers, found(workers, name), 4.0, clock=5, examples=7)
    assert bury(workers, 4.5) == ["dead"]
    workers.disconnected(found(workers, "suspect"), 4.5)
    found(workers, "training").loss = math.nan
    return workers


def test_after_a_restart_everybody_is_as_it_was() -> None:
    workers = some_workers()
    again = restarted(workers)
    assert states(again) == {
        "left": "left", "dead": "dead", "suspect": "suspect", "training": "training", "again": "training",
    }  # fmt: skip
    assert again.members() == workers.members()
    assert (again.epoch, again.started, again.needed) == (workers.epoch, True, 2)
    assert [is_out(again, one) for one in workers] == [is_out(workers, one) for one in workers]
    back = again.find("its token")
    assert back is found(again, "again")
    assert (back.incarnation, back.begins, back.clock, back.examples) == (2, 4, 5, 7)
    assert math.isnan(found(again, "training").loss or 0.0)
    with pytest.raises(BadRequest, match="--name"):
        join(again, "suspect")
    new = join(again, None)
    assert (new.id, new.incarnation) == (5, 1)


def test_those_who_wait_for_the_start_are_waited_for_after_a_restart() -> None:
    workers = membership(3)
    first = join(workers, "a", token="its token")
    again = restarted(workers)
    assert (names(again.waiting()), again.started) == (["a"], False)
    same = again.find("its token")
    assert same is not None
    assert (same.id, same.incarnation) == (first.id, first.incarnation)
    join(again, "b")
    join(again, "c")
    assert len(again.live()) == 3


def test_nobody_is_blamed_for_a_restart() -> None:
    workers = membership(1)
    for name in ("a", "b"):
        join(workers, name)
    workers.disconnected(found(workers, "a"), 0.0)
    again = restarted(workers, now=1000.0)
    assert bury(again, 1001.0, waited_for=[0, 1]) == []
    beat(again, found(again, "a"), 1001.5)
    assert found(again, "a").state == "training"
    assert sorted(bury(again, 1000.0 + SETTINGS.dead_after)) == ["b"]


@pytest.mark.parametrize("needed", [1, 2])
def test_who_was_not_told_who_it_is_and_does_not_ask_again_is_not_waited_for_ever(needed: int) -> None:
    workers = membership(needed)
    workers.join("gone", "token of gone", 0.0)
    workers.join("asks", "token of asks", 0.0) if needed == 1 else None
    again = restarted(workers, now=1000.0)
    again.excuse(5.0, 1005.0)  # until all servers were there
    if needed == 1:
        asks = again.find("token of asks")
        assert asks is not None
        again.returned(asks, 1005.0)
    assert bury(again, 1004.9 + SETTINGS.dead_after) == []
    assert bury(again, 1005.0 + SETTINGS.dead_after) == ["gone"]


def test_requests_that_were_answered_are_remembered_for_those_who_are_there() -> None:
    workers = membership(1)
    stays, goes = join(workers, "stays"), join(workers, "goes")
    for worker in (stays, goes):
        worker.sequence.completed(1, 7, Empty())
    workers.leave(goes, 0)
    again = restarted(workers)
    retry = cast(Call, None)  # it is answered at once
    assert found(again, "stays").sequence.retry(1, 7, retry) == (True, Empty())
    assert found(again, "goes").sequence.last == 0


def test_those_who_have_gone_are_forgotten_in_their_order_also_after_a_restart() -> None:
    workers = membership(1)
    back = join(workers, "back")
    workers.leave(back, 0)
    for number in range(999):
        workers.leave(join(workers, f"w{number}"), 0)
    back = join(workers, "back")  # who was out first is in again
    again = restarted(workers)
    for one in (workers, again):
        for number in range(3):
            one.leave(join(one, f"x{number}", token=f"x{number}"), 0)
    assert again.state() == workers.state()
    assert states(again)["back"] == "training"
    assert "w0" not in states(again)
    assert "w2" in states(again)


def test_a_state_that_is_not_whole_is_refused_by_name() -> None:
    workers = some_workers()
    found(workers, "training").sequence.completed(2, 7, Empty())
    state = through_json(workers.state())
    assert_damage_is_refused(
        state, lambda one: Membership.restored(one, SETTINGS, 0.0).state(), at_least=1000
    )
    ids = [one[0] for one in state["workers"]]
    for wrong, field in (
        ({**state, "gone": []}, "gone"),
        ({**state, "gone": ids}, "gone"),
        ({**state, "next_id": max(ids)}, "next_id"),
        ({**state, "workers": state["workers"] * 2}, "name"),
    ):
        with pytest.raises(BadRequest, match="not whole") as caught:
            Membership.restored(wrong, SETTINGS, 0.0)
        assert caught.value.field == field


# --- anything, in any order

TIMES = st.floats(0.0, 3.0)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "join", "leave", "cut", "back", "beat", "beat", "bury", "bury", "sleep", "restart"]
        ),
        st.sampled_from(["a", "b", "c", None]),
        TIMES,
        st.booleans(),
    ),
    max_size=60,
)


class Model:
    """A membership, and what must be true of it whatever happens."""

    def __init__(self, needed: int) -> None:
        self.workers = membership(needed)
        self.needed = needed
        self.now = 0.0
        self.issued: set[tuple[int, int]] = set()
        self.heard: dict[int, float] = {}  # by identity of the worker: when it was heard of or told last
        self.cut: dict[int, float] = {}
        self.out: list[Worker] = []
        self.former: list[Membership] = []  # kept, so that no identity comes twice

    def one(self, name: str | None) -> Worker | None:
        there = [worker for worker in self.workers if not is_out(self.workers, worker)]
        return next((worker for worker in there if name in (worker.name, None)), None)

    def happens(self, event: str, name: str | None, waited: bool) -> None:
        worker = self.one(name)
        if event == "join":
            self.join(name)
        elif event == "bury":
            self.bury([worker.id] if worker is not None and waited else [])
        elif event == "restart":
            self.restart()
        elif worker is None:
            return
        elif event == "leave":
            self.workers.leave(worker, 0)
            self.out.append(worker)
        elif event == "cut":
            self.workers.disconnected(worker, self.now)
            self.cut[id(worker)] = min(self.now, self.cut.get(id(worker), self.now))
        elif event == "back":
            self.workers.returned(worker, self.now)
            self.heard[id(worker)] = self.now
            self.cut.pop(id(worker), None)
        elif event == "beat" and worker.told:
            beat(self.workers, worker, self.now)
            self.heard[id(worker)] = self.now
            self.cut.pop(id(worker), None)

    def restart(self) -> None:
        """Everybody has been heard of now; who has yet to be told must ask again in the longest silence."""
        self.former.append(self.workers)
        self.workers = restarted(self.workers, self.now)
        for worker in self.workers:
            if worker.told:
                self.heard[id(worker)] = self.now
            else:
                self.cut[id(worker)] = self.now + SETTINGS.dead_after - SETTINGS.return_within

    def join(self, name: str | None) -> None:
        before = self.workers.epoch, states(self.workers)
        try:
            worker = self.workers.join(name, f"token {len(self.issued)}", self.now)
        except BadRequest:
            assert (self.workers.epoch, states(self.workers)) == before
            return
        assert (worker.id, worker.incarnation) not in self.issued
        self.issued.add((worker.id, worker.incarnation))
        for one in self.workers.live():
            if not one.told:
                self.workers.tell(one, self.now)
                self.heard[id(one)] = self.now

    def bury(self, waited_for: list[int]) -> None:
        deaths = self.workers.bury(self.now, waited_for)
        for worker, reason in deaths:
            assert reason
            assert worker.state == ("dead" if worker.told else "left")
            cut, heard = self.cut.get(id(worker)), self.heard.get(id(worker))
            assert (cut is not None and self.now >= cut + SETTINGS.return_within) or (
                heard is not None and self.now > heard + SETTINGS.heartbeat
            )
            self.out.append(worker)
        for worker in self.workers.live():
            assert self.now < self.heard[id(worker)] + SETTINGS.dead_after
        for worker in (*self.workers.live(), *self.workers.waiting()):
            assert self.now < self.cut.get(id(worker), self.now) + SETTINGS.return_within


@given(needed=st.integers(1, 3), events=EVENTS)
def test_any_history_keeps_the_rules(needed: int, events: list[tuple[str, str | None, float, bool]]) -> None:
    """Nobody is missed too late or without a reason, no identity comes twice, who is out stays out."""
    model = Model(needed)
    for event, name, seconds, waited in events:
        model.now += seconds
        before = model.workers.epoch, model.workers.members(), len(model.workers.waiting())
        if event == "sleep":
            continue
        model.happens(event, name, waited)
        after = model.workers.epoch, model.workers.members(), len(model.workers.waiting())
        assert before[0] <= after[0]
        assert (before[0] == after[0]) == (before[1:] == after[1:])
        assert all(is_out(model.workers, worker) for worker in model.out)
        assert {worker.state for worker in model.out} <= {"left", "dead"}
        assert model.workers.started or after[2] < needed
        assert not (model.workers.started and after[2])


@given(st.lists(st.sampled_from(["a", "b", None, "leave"]), max_size=12))
def test_no_incarnation_is_above_what_was_issued(actions: list[str | None]) -> None:
    workers, first, seen = membership(), 7, [0]
    workers.first_incarnation = first
    for action in actions:
        live = workers.live()
        if action == "leave" and live:
            workers.leave(live[0], 0)
        elif action != "leave" and workers.named(action) is None:
            seen.append(join(workers, action).incarnation)
    assert workers.issued == max(first - 1, *seen)
    assert through_json(workers.state()) is not None


def test_what_was_issued_to_those_who_are_not_told_of_any_more_is_remembered() -> None:
    workers = membership()
    for _ in range(5):
        workers.leave(join(workers, "often"), 0)
    for _ in range(1000):
        workers.leave(join(workers), 0)
    assert "often" not in states(workers)
    assert workers.issued >= 5
    assert Membership.restored(through_json(workers.state()), SETTINGS, 0.0).issued >= 5
