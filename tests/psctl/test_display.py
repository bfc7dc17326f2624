import io
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from protocol.status import ClusterStatus, Progress, Wait
from psctl.display import History, describe, job_status, render, sparkline, time_left
from psworker.job import load_job

MakeStatus = Callable[..., ClusterStatus]
NOTHING = History()
JOB = load_job(None, ("train.workers=2",))
EVIL = Wait("digits", 0, "tensor \x1b[1m", 1, ("\x1b]0;x\x07",), 3.0)


def drawn(
    status: ClusterStatus | None, history: History = NOTHING, *, most_workers: int = 20, width: int = 110
) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(render(status, JOB, history, most_workers=most_workers, width=width))
    return captured.get()


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def progress_of(status: ClusterStatus) -> Progress:
    job = job_status(status, "digits")
    assert job is not None
    assert job.progress is not None
    return job.progress


def test_a_cluster_that_starts() -> None:
    assert drawn(None).splitlines() == ["digits · softmax · synchronous", "starting the servers ..."]


def test_workers_that_have_yet_to_join(make_status: MakeStatus) -> None:
    status = make_status()
    assert "0 of 2 workers joined" in drawn(replace(status, jobs=()))
    assert "1 of 2 workers joined" in drawn(make_status(worker_state="waiting", names=("worker-0",)))


def test_the_whole(make_status: MakeStatus) -> None:
    line = line_of(drawn(make_status()), "epoch")
    assert line.startswith("epoch 3/10 ")
    assert "24/80 chunks" in line
    assert "750 examples/s" in line  # 4500 in 6 s
    assert "0:14 left" in line  # 24 of 80 took 6 s


def test_a_worker_s_row(make_status: MakeStatus) -> None:
    text = drawn(make_status())
    first, second = line_of(text, "worker-0"), line_of(text, "worker-1")
    for fact in ("3,000 examples", "500/s", "step 30", "loss 0.2500"):
        assert fact in first
    assert "1,500 examples" in second


def test_bars_show_the_whole_and_the_workers_shares(make_status: MakeStatus) -> None:
    text = drawn(make_status(chunks_done=40))
    bars = [line_of(text, start).count("━") for start in ("epoch", "worker-0", "worker-1")]
    assert bars == [12, 12, 6]  # of 24 columns


def test_bars_are_full_at_the_end(make_status: MakeStatus) -> None:
    text = drawn(make_status(phase="finished", epoch=10, chunks_done=80, worker_state="left"))
    assert line_of(text, "epoch").count("━") == 24
    assert line_of(text, "worker-0").count("━") == 24
    assert "done in 0:06" in text
    assert "left" not in text
    assert "done" in line_of(text, "worker-1")


@pytest.mark.parametrize("state", ["suspect", "dead"])
def test_a_worker_in_trouble_is_said_to_be(state: str, make_status: MakeStatus) -> None:
    line = line_of(drawn(make_status(worker_state=state)), "worker-0")
    assert state in line
    assert "500/s" not in line


@pytest.mark.parametrize(("width", "bar"), [(80, 0), (85, 0), (86, 6), (100, 20), (104, 24), (300, 24)])
def test_figures_go_before_bars(width: int, bar: int, make_status: MakeStatus) -> None:
    status = make_status(phase="finished", chunks_done=80, names=("n" * 30,))
    job = status.jobs[0]
    big = replace(job.workers[0], examples=12_345_678, examples_per_second=12_345.0, clock=123_456)
    text = drawn(replace(status, jobs=(replace(job, workers=(big,)),)), width=width)
    whole, line = line_of(text, "epoch"), line_of(text, "nnn")
    assert whole.count("━") == line.count("━") == bar
    assert "done in 0:06" in whole
    for fact in ("12,345,678 examples", "12,345/s", "step 123,456", "loss 0.2500"):
        assert fact in line


@pytest.mark.parametrize(("width", "bar"), [(40, 40), (60, 60), (80, 60)])
def test_where_workers_have_no_bar_the_whole_s_has_a_line(
    width: int, bar: int, make_status: MakeStatus
) -> None:
    lines = drawn(make_status(chunks_done=80), width=width).splitlines()
    assert [line for line in lines if "━" in line] == ["━" * bar]


def test_the_heading_follows_a_change(make_status: MakeStatus) -> None:
    assert describe(JOB) == "digits · softmax · synchronous"
    assert drawn(make_status(staleness=3.0)).startswith("digits · softmax · stale by at most 3 steps\n")


def test_an_evaluation_under_way(make_status: MakeStatus) -> None:
    assert "evaluating" in line_of(drawn(make_status(phase="evaluate")), "epoch")


def test_losses_and_measures(make_status: MakeStatus) -> None:
    status = make_status()
    text = drawn(status, History().after(progress_of(status)))
    assert "0.5000" in line_of(text, "training loss")
    assert "0.6000" in line_of(text, "held-out loss")
    accuracy = line_of(text, "held-out accuracy")
    assert "0.7500" in accuracy
    assert "▁" in accuracy
    assert "█" in accuracy


def test_without_an_evaluation_there_is_the_training_loss_alone(make_status: MakeStatus) -> None:
    text = drawn(make_status(evaluations=(), train_loss=None))
    assert line_of(text, "training loss").split() == ["training", "loss", "-"]
    assert "held-out" not in text


def test_a_step_that_waits_names_the_worker(make_status: MakeStatus) -> None:
    waits = (Wait("digits", 0, "step 30", 2, ("worker-3", "worker-1"), 2.13),)
    assert "step 30: 2 wait for worker-3 and worker-1 (2.1 s)" in drawn(make_status(waits=waits))


def test_only_the_longest_wait_is_shown(make_status: MakeStatus) -> None:
    waits = (Wait("digits", 0, "step 30", 2, ("a",), 2.0), Wait("digits", 0, "chunks", 1, ("b",), 3.0))
    text = drawn(make_status(waits=waits))
    assert "chunks: 1 waits for b (3.0 s)" in text
    assert "step 30:" not in text


def test_a_step_that_hardly_waits_does_not(make_status: MakeStatus) -> None:
    waits = (Wait("digits", 0, "step 30", 1, ("worker-3",), 0.1),)
    assert "wait" not in drawn(make_status(waits=waits))


def test_more_workers_than_lines_are_counted(make_status: MakeStatus) -> None:
    text = drawn(make_status(names=tuple(f"worker-{i}" for i in range(12))), most_workers=10)
    assert "and 2 more" in text
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("worker-")]
    assert rows == [f"worker-{i}" for i in range(10)]


def test_the_live_are_shown_before_the_dead(make_status: MakeStatus) -> None:
    status = make_status(names=("a", "b", "c"))
    job = status.jobs[0]
    workers = (replace(job.workers[0], state="dead"), *job.workers[1:])
    text = drawn(replace(status, jobs=(replace(job, workers=workers),)), most_workers=2)
    assert [line[0] for line in text.splitlines() if "examples " in line and line[0] in "abc"] == ["b", "c"]


def test_workers_are_in_the_order_of_their_names(make_status: MakeStatus) -> None:
    text = drawn(make_status(names=("worker-10", "worker-2", "worker-1")))
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("worker-")]
    assert rows == ["worker-1", "worker-2", "worker-10"]


def test_names_are_neither_markup_nor_control(make_status: MakeStatus) -> None:
    text = drawn(make_status(names=("[red]a", ":bomb:", "\x1b[2J\r"), waits=(EVIL,)))
    assert "[red]a" in text
    assert ":bomb:" in text
    assert "\\x1b[2J" in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)


@pytest.mark.parametrize("width", [1, 20, 80, 300])
def test_any_width_will_do(width: int, make_status: MakeStatus) -> None:
    text = drawn(make_status(names=("x" * 128,)), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_figures_that_are_all_zero_do_no_harm(make_status: MakeStatus) -> None:
    status = make_status(chunks_done=0, seconds=0.0, evaluations=())
    (job,) = status.jobs
    nothing = replace(progress_of(status), chunks=0, epochs=0, train_examples=0)
    idle = tuple(replace(worker, examples=0, loss=None) for worker in job.workers)
    text = drawn(replace(status, jobs=(replace(job, progress=nothing, workers=idle),)))
    assert "0/0 chunks" in text
    assert "0 examples" in text


def test_time_left_is_unknown_at_first(make_status: MakeStatus) -> None:
    assert time_left(progress_of(make_status(chunks_done=0))) is None
    assert time_left(progress_of(make_status(chunks_done=80))) == 0.0


def test_the_curve_spans_the_job() -> None:
    assert sparkline([]) == ""
    assert sparkline([(0.0, 2.0), (0.5, 1.0), (1.0, 0.0)]) == "█" * 20 + "▅" * 19 + "▁"
    assert sparkline([(0.1, 3.0)]) == "    ▁"
    assert sparkline([(0.0, math.nan), (0.1, math.inf)]) == ""


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False))))
def test_any_curve_is_drawn(points: list[tuple[float, float]]) -> None:
    curve = sparkline(points)
    assert len(curve) <= 40
    assert set(curve) <= set(" ▁▂▃▄▅▆▇█")
    assert bool(curve.strip()) == bool(points)


def test_the_history_stays_small_and_keeps_the_last_loss(make_status: MakeStatus) -> None:
    history = History()
    for step in range(1, 801):
        status = make_status(train_loss=1 / step)
        history = history.after(replace(progress_of(status), chunks=800, chunks_done=step))
    assert len(history.losses) == 40
    assert history.losses[-1] == (1.0, 1 / 800)


def test_the_history_ignores_what_it_cannot_show(make_status: MakeStatus) -> None:
    assert History().after(None) == History()
    assert History().after(progress_of(make_status(train_loss=None))) == History()


def test_a_survey_under_way(make_status: MakeStatus) -> None:
    assert "surveying" in line_of(drawn(make_status(phase="survey", epoch=0, chunks_done=0)), "epoch")


def test_a_job_that_stopped_early(make_status: MakeStatus) -> None:
    status = make_status(phase="finished")
    assert "stopped early" not in drawn(status)
    (job,) = status.jobs
    assert job.progress is not None
    stopped = replace(job, progress=replace(job.progress, stopped="loss has not improved"))
    assert "stopped early" in line_of(drawn(replace(status, jobs=(stopped,))), "epoch")
