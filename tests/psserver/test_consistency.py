import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, NotAMember, WorkerLost
from protocol.messages import Member
from psserver.consistency import StepBarrier


def member(worker: int, until: int | None = None) -> Member:
    return Member(worker, 1, f"w{worker}", until)


def barrier_of(*workers: int) -> StepBarrier:
    barrier = StepBarrier()
    barrier.set_members(tuple(member(worker) for worker in workers), ())
    return barrier


def end(barrier: StepBarrier, worker: int, step: int, now: float = 0.0) -> None:
    barrier.begin(worker, step, ends=True, now=now)
    barrier.added()


def test_a_step_completes_when_all_have_ended_it() -> None:
    barrier = barrier_of(0, 1)
    assert not barrier.complete  # nobody has ended it: nothing to commit
    end(barrier, 0, 0)
    assert not barrier.complete
    assert barrier.waiting_for() == ("w1",)
    end(barrier, 1, 0)
    assert barrier.complete
    barrier.advance()
    assert barrier.clock == 1
    assert not barrier.complete
    assert barrier.waiting_for() == ("w0", "w1")


def test_a_push_alone_does_not_end_a_step() -> None:
    barrier = barrier_of(0)
    barrier.begin(0, 0, ends=False, now=0.0)
    barrier.added()
    assert not barrier.complete
    end(barrier, 0, 0)
    assert barrier.complete


def test_a_step_is_not_complete_while_a_gradient_is_being_added() -> None:
    barrier = barrier_of(0, 1)
    barrier.begin(0, 0, ends=True, now=0.0)
    end(barrier, 1, 0)
    assert not barrier.complete
    barrier.added()
    assert barrier.complete


def test_since_is_when_the_first_worker_ended() -> None:
    barrier = barrier_of(0, 1)
    barrier.begin(0, 0, ends=False, now=1.0)
    barrier.added()
    assert barrier.since is None
    end(barrier, 1, 0, now=2.0)
    end(barrier, 0, 0, now=3.0)
    assert barrier.since == 2.0
    barrier.advance()
    assert barrier.since is None


@pytest.mark.parametrize("step", [0, 2, 2**63 - 1])
def test_only_the_open_step_may_be_pushed_into(step: int) -> None:
    barrier = barrier_of(0)
    end(barrier, 0, 0)
    barrier.advance()
    with pytest.raises(BadRequest, match="open step is 1") as caught:
        barrier.check(0, step)
    assert (caught.value.field, caught.value.value) == ("step", str(step))


def test_a_worker_ends_a_step_once_and_pushes_nothing_after_its_end() -> None:
    barrier = barrier_of(0, 1)
    end(barrier, 0, 0)
    for ends in (True, False):
        with pytest.raises(BadRequest, match="once"):
            barrier.begin(0, 0, ends=ends, now=0.0)
    end(barrier, 1, 0)
    assert barrier.complete  # what was refused is not counted as being added


def test_strangers_are_refused() -> None:
    barrier = barrier_of(0)
    with pytest.raises(NotAMember) as caught:
        barrier.check(7, 0)
    assert (caught.value.field, caught.value.value) == ("worker", "7")


def test_a_leaver_releases_the_steps_from_its_last_on() -> None:
    barrier = barrier_of(0, 1)
    end(barrier, 0, 0)
    barrier.set_members((member(0), member(1, until=0)), ())
    assert barrier.waiting_for() == ()
    assert barrier.complete


def test_the_steps_before_a_leavers_last_still_wait_for_it() -> None:
    barrier = barrier_of(0, 1)
    barrier.set_members((member(0), member(1, until=1)), ())
    end(barrier, 0, 0)
    assert barrier.waiting_for() == ("w1",)
    end(barrier, 1, 0)
    barrier.advance()
    end(barrier, 0, 1)
    assert barrier.complete


def test_who_has_left_cannot_push_any_more() -> None:
    barrier = barrier_of(0, 1)
    barrier.set_members((member(0), member(1, until=0)), ())
    with pytest.raises(NotAMember, match="left"):
        barrier.check(1, 0)


def test_a_lost_worker_fails_everybody_and_is_named() -> None:
    barrier = barrier_of(0, 1, 2)
    end(barrier, 0, 0)
    assert not barrier.failed
    barrier.set_members((member(0),), ("w1", "w2"))
    assert barrier.failed
    with pytest.raises(WorkerLost) as caught:
        barrier.check(0, 0)
    assert caught.value.value == "w1, w2"


@given(st.data())
def test_no_step_commits_before_all_of_its_members_ended_it(data: st.DataObject) -> None:
    """Workers end steps, are slow at adding, and leave, in any order; a model says who is owed."""
    workers = data.draw(st.integers(1, 4), label="workers")
    barrier = barrier_of(*range(workers))
    until: dict[int, int | None] = dict.fromkeys(range(workers))
    clocks = dict.fromkeys(range(workers), 0)  # steps that the worker has ended
    adding = 0
    for _ in range(data.draw(st.integers(0, 60), label="events")):
        present = [w for w in range(workers) if until[w] is None]
        if not present:
            break
        match data.draw(st.sampled_from(["end", "push", "added", "leave", "commit"])):
            case "end":
                worker = data.draw(st.sampled_from(present))
                if clocks[worker] == barrier.clock:
                    barrier.begin(worker, clocks[worker], ends=True, now=0.0)
                    adding += 1
                    clocks[worker] += 1
                else:
                    with pytest.raises(BadRequest):
                        barrier.begin(worker, clocks[worker], ends=True, now=0.0)
            case "push":
                worker = data.draw(st.sampled_from(present))
                if clocks[worker] == barrier.clock:
                    barrier.begin(worker, clocks[worker], ends=False, now=0.0)
                    adding += 1
            case "added" if adding:
                barrier.added()
                adding -= 1
            case "leave" if len(present) > 1:
                worker = data.draw(st.sampled_from(present))
                until[worker] = clocks[worker]
                barrier.set_members(tuple(member(w, until[w]) for w in range(workers)), ())
            case "commit" if barrier.complete:
                barrier.advance()
        step = barrier.clock
        last = {w: step + 1 if (left := until[w]) is None else left for w in range(workers)}
        owed = {f"w{w}" for w in range(workers) if clocks[w] <= step < last[w]}
        assert set(barrier.waiting_for()) == owed
        if barrier.complete:
            assert not owed
            assert not adding
