from collections.abc import Callable
from itertools import pairwise

from protocol.status import ClusterStatus
from psctl.recording import Look, Recording

MakeStatus = Callable[..., ClusterStatus]


def test_a_look_has_what_curves_are_drawn_from(make_status: MakeStatus) -> None:
    recording = Recording()
    recording.note(make_status(seconds=6.0, train_loss=0.5).jobs[0])
    assert recording.looks == [Look(6.0, 4500, 0.5, 2, {"worker-0": 500.0, "worker-1": 500.0})]
    assert recording.progress is not None
    assert len(recording.progress.evaluations) == 2


def test_where_nobody_is_at_work_nobody_is_behind(make_status: MakeStatus) -> None:
    recording = Recording()
    recording.note(make_status(worker_state="left").jobs[0])
    assert (recording.looks[0].lag, recording.looks[0].rates) == (None, {})


def test_a_job_without_work_is_not_looked_at(make_status: MakeStatus) -> None:
    recording = Recording()
    recording.note(make_status(progress=None).jobs[0])
    assert recording.looks == []
    assert recording.progress is None
    assert recording.throughput(1.0) == []


def test_memory_does_not_grow_with_time_and_the_end_is_always_there(make_status: MakeStatus) -> None:
    recording = Recording()
    for second in range(20_000):
        recording.note(make_status(seconds=float(second)).jobs[0])
    assert 500 <= len(recording.looks) <= 1024
    recording.note(make_status(seconds=20_000.0, phase="finished").jobs[0])
    times = [look.seconds for look in recording.looks]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert times[-1] == 20_000.0
    gaps = {later - earlier for earlier, later in pairwise(times[:-1])}
    assert len(gaps) == 1, "what is left is spread evenly"


def test_throughput_is_over_stretches_and_a_short_job_has_one() -> None:
    recording = Recording(
        [Look(seconds, int(100 * seconds), None, 0, {}) for seconds in (0.5, 1.0, 1.5, 2.5)]
    )
    assert recording.throughput(1.0) == [(1.0, 100.0), (2.5, 100.0)]
    assert Recording([Look(0.25, 50, None, 0, {})]).throughput(1.0) == [(0.25, 200.0)]
