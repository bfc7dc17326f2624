from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, JobMismatch, PSError
from protocol.messages import Heartbeat
from psserver.membership import Membership, Worker


def join(workers: Membership, name: str | None = None, finished_at: int | None = None) -> Worker:
    return workers.join(name, finished_at=finished_at, now=0.0)


def states(workers: Membership) -> dict[str, str]:
    return {worker.name: worker.state for worker in workers}


def test_the_job_starts_when_enough_have_joined() -> None:
    workers = Membership(2, fixed=True)
    first = join(workers)
    assert (first.state, workers.started) == ("waiting", False)
    assert workers.members() == ()
    second = join(workers)
    assert (first.state, second.state, workers.started) == ("training", "training", True)
    assert [(m.worker, m.incarnation, m.until) for m in workers.members()] == [(0, 1, None), (1, 1, None)]


def test_each_change_is_a_new_epoch() -> None:
    workers = Membership(1, fixed=False)
    a, b = join(workers), join(workers)
    assert workers.epoch == 2
    workers.leave(a, 3)
    assert workers.epoch == 3
    workers.lose(b)
    assert workers.epoch == 4


@pytest.mark.parametrize("needed", [1, 2])
def test_a_name_in_use_is_refused_and_changes_nothing(needed: int) -> None:
    workers = Membership(needed, fixed=False)
    join(workers, "a")
    before = workers.epoch, states(workers)
    with pytest.raises(BadRequest, match="--name") as caught:
        join(workers, "a")
    assert (caught.value.field, caught.value.value) == ("name", "a")
    assert (workers.epoch, states(workers)) == before


def test_given_names_do_not_clash_with_chosen_ones() -> None:
    workers = Membership(1, fixed=False)
    assert [join(workers, name).name for name in ("worker-1", None, None)] == [
        "worker-1",
        "worker-2",
        "worker-3",
    ]


def test_coming_back_is_the_next_incarnation_of_the_same_worker() -> None:
    workers = Membership(1, fixed=False)
    first = join(workers, "a")
    other = join(workers, "b")
    for gone, expected in ((workers.lose, 2), (lambda w: workers.leave(w, 5), 3)):
        (known,) = (w for w in workers if w.name == "a")
        gone(known)
        again = join(workers, "a")
        assert (again.id, again.incarnation, again.state) == (first.id, expected, "training")
    assert (other.id, other.incarnation) == (1, 1)


@pytest.mark.parametrize("gone", ["left", "lost"])
def test_an_asynchronous_epoch_holds_only_those_at_work(gone: str) -> None:
    workers = Membership(1, fixed=False)
    a, b = join(workers, "a"), join(workers, "b")
    workers.leave(a, 3) if gone == "left" else workers.lose(a)
    assert [m.name for m in workers.members()] == [b.name]


def test_a_synchronous_epoch_says_until_when_a_leaver_counts() -> None:
    workers = Membership(2, fixed=True)
    a, _ = join(workers, "a"), join(workers, "b")
    workers.leave(a, 3)
    assert [(m.name, m.until) for m in workers.members()] == [("a", 3), ("b", None)]
    assert workers.lost() == ()


def test_a_lost_worker_is_named() -> None:
    workers = Membership(2, fixed=True)
    a, _ = join(workers, "a"), join(workers, "b")
    workers.lose(a)
    assert workers.lost() == ("a",)
    assert [m.name for m in workers.members()] == ["b"]


def test_who_goes_before_the_start_is_not_missed() -> None:
    workers = Membership(2, fixed=True)
    workers.lose(join(workers, "gone"))
    join(workers, "a")
    assert not workers.started
    join(workers, "b")
    assert workers.started
    assert workers.lost() == ()
    assert [m.name for m in workers.members() if m.until is None] == ["a", "b"]


def test_nobody_joins_a_synchronous_job_that_has_started() -> None:
    workers = Membership(1, fixed=True)
    a = join(workers, "a")
    with pytest.raises(JobMismatch, match=r"train\.workers"):
        join(workers, "late")
    workers.leave(a, 1)
    with pytest.raises(JobMismatch):
        join(workers, "a")
    assert states(workers) == {"a": "left"}


def test_a_synchronous_job_that_is_done_takes_latecomers_without_steps() -> None:
    workers = Membership(1, fixed=True)
    join(workers, "a")
    late = join(workers, "late", finished_at=7)
    assert (late.state, late.until) == ("training", 7)


def test_speed_is_that_of_the_last_heartbeats() -> None:
    workers = Membership(1, fixed=False)
    worker = join(workers, "a")
    assert worker.speed() == 0.0
    for second in range(10):  # 10 examples a second, then, for the last five heartbeats, 100
        examples = 10 * second if second < 5 else 40 + 100 * (second - 4)
        workers.heartbeat(worker, Heartbeat(second, examples, 0.5), float(second))
    assert worker.speed() == pytest.approx(100.0)
    (status,) = workers.status(now=12.0)
    assert (status.clock, status.examples, status.loss, status.heartbeat_age) == (9, 540, 0.5, 3.0)


def test_two_heartbeats_at_one_instant_have_no_speed() -> None:
    workers = Membership(1, fixed=False)
    worker = join(workers)
    for examples in (1, 2):
        workers.heartbeat(worker, Heartbeat(0, examples), 1.0)
    assert worker.speed() == 0.0


EVENTS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "lose"]), st.sampled_from(["a", "b", "c", None])), max_size=40
)


@given(needed=st.integers(1, 3), fixed=st.booleans(), events=EVENTS)
def test_ids_and_incarnations_never_come_twice(
    needed: int, fixed: bool, events: list[tuple[str, Any]]
) -> None:
    workers = Membership(needed, fixed=fixed)
    issued: set[tuple[int, int]] = set()
    for event, name in events:
        epoch = workers.epoch
        present = [w for w in workers if w.state in ("waiting", "training") and name in (w.name, None)]
        if event == "join":
            try:
                worker = join(workers, name)
            except PSError:
                assert workers.epoch == epoch
                continue
            assert (worker.id, worker.incarnation) not in issued
            issued.add((worker.id, worker.incarnation))
        elif present:
            workers.leave(present[0], 1) if event == "leave" else workers.lose(present[0])
        else:
            continue
        assert workers.epoch == epoch + 1
        assert {w.id for w in workers} == set(range(len(list(workers))))
        assert workers.started or len([w for w in workers if w.state == "waiting"]) < needed
        assert not (workers.started and "waiting" in states(workers).values())
