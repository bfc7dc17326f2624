from collections.abc import Callable

from protocol.status import ClusterStatus, Wait
from psctl.lines import ProgressLines
from psworker.job import load_job

MakeStatus = Callable[..., ClusterStatus]
JOB = load_job(None, ())


def test_the_first_status_is_told(make_status: MakeStatus) -> None:
    line = ProgressLines(JOB).after(make_status(), now=100.0)
    assert line == (
        "epoch 3/10, 24/80 chunks, training loss 0.5000, held-out loss 0.6000, held-out accuracy 0.7500, "
        "4,500 examples in 0:06"
    )


def test_news_are_told_after_a_second_and_signs_of_life_after_five(make_status: MakeStatus) -> None:
    lines = ProgressLines(JOB)
    assert lines.after(make_status(epoch=1), now=100.0)
    assert lines.after(make_status(epoch=2), now=100.9) is None
    assert lines.after(make_status(epoch=2), now=101.0)
    assert lines.after(make_status(epoch=2), now=105.9) is None
    assert lines.after(make_status(epoch=2), now=106.0)


def test_the_end_is_told_at_once_and_once(make_status: MakeStatus) -> None:
    lines = ProgressLines(JOB)
    assert lines.after(make_status(epoch=9), now=100.0)
    assert lines.after(make_status(epoch=10, phase="finished"), now=100.1)
    assert lines.after(make_status(epoch=10, phase="finished"), now=100.2) is None


def test_a_wait_is_told(make_status: MakeStatus) -> None:
    line = ProgressLines(JOB).after(
        make_status(waits=(Wait("digits", 0, "step 3", 1, ("a\x1b",), 2.0),)), now=0.0
    )
    assert line is not None
    assert line.endswith(", step 3: 1 waits for a\\x1b (2.0 s)")


def test_another_job_is_not_told(make_status: MakeStatus) -> None:
    other = load_job(None, ("job.name=other",))
    assert ProgressLines(other).after(make_status(), now=0.0) is None
