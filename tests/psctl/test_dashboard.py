"""What `psctl top` draws, on terminals of any size."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from protocol.status import (
    CheckpointStatus,
    ClusterStatus,
    Curve,
    DurabilityStatus,
    Evaluation,
    History,
    JobStatus,
    Load,
    Mean,
    Progress,
    ShardStatus,
    Wait,
    WorkerStatus,
)
from psctl.dashboard import Dashboard, View, shown_job

MakeStatus = Callable[..., ClusterStatus]
PAST = History(*[Curve(1.0, 0.0, (3.0, 2.0, 1.0, 0.5))] * 4)
NOTE = "every 1 s; q or Ctrl-C ends"


def drawn(
    status: ClusterStatus, width: int = 120, height: int = 40, *, encoding: str = "utf-8", **view: Any
) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(Dashboard(status, View(**view), "127.0.0.1:7070", NOTE))
    return [line.rstrip() for line in captured.get().splitlines()][: height + 1]


def line_of(lines: list[str], word: str) -> str:
    (line,) = [line for line in lines if word in line.split()]
    return line


@pytest.fixture
def status(make_status: MakeStatus) -> ClusterStatus:
    return make_status(history=PAST)


def many(status: ClusterStatus, workers: int = 60, **fields: Any) -> ClusterStatus:
    job = status.jobs[0]
    named = tuple(replace(job.workers[0], worker=i, name=f"w{i:03}") for i in range(workers))
    return replace(status, jobs=(replace(job, workers=named, **fields),))


def test_all_of_it_where_there_is_room(status: ClusterStatus) -> None:
    text = drawn(status)
    assert text[0].startswith(" asyncps 0.1.0  127.0.0.1:7070  1 server, 1 job, up 1:15")
    assert text[0].endswith(NOTE)
    assert text[1] == "durability none: nothing outlives the servers"
    columns = ["server", "address", "state", "parameters", "in/s", "out/s", "requests/s", "silent"]
    assert line_of(text, "parameters").split() == columns
    assert any(
        line.startswith("job digits  asynchronous (staleness inf), membership epoch 1") for line in text
    )
    assert line_of(text, "train:").endswith("30 %, 0:14 left")
    assert "24/80 chunks, 2 leased, 4,500 examples in 0:06, training loss 0.5000" in text
    assert "held out, after epoch 2: loss 0.6000, accuracy 0.7500 (100 examples)" in text
    titles = next(line for line in text if "training loss  0.5000  last minutes" in line)
    assert "examples/s  0  last minutes" in titles or "examples/s  1  last minutes" in titles
    assert line_of(text, "worker-1").split()[:6] == ["worker-1", "training", "31", "2", "1,500", "500"]
    assert line_of(text, "worker-1").split()[-1] == "━" * 10


def test_bars_are_as_long_as_workers_are_fast(status: ClusterStatus) -> None:
    job = status.jobs[0]
    slow = replace(job.workers[1], examples_per_second=75.0)
    gone = replace(job.workers[1], name="gone", state="dead")
    text = drawn(replace(status, jobs=(replace(job, workers=(job.workers[0], slow, gone)),)))
    assert line_of(text, "worker-1").split()[-1] == "━╸"
    assert "━" not in line_of(text, "gone")


def test_the_whole_run(status: ClusterStatus) -> None:
    assert any("training loss  0.5000  whole run" in line for line in drawn(status, whole=True))


def test_what_is_wrong_is_said(status: ClusterStatus) -> None:
    waits = tuple(Wait("digits", 0, f"step {i}", 1, ("w3",), 9.0 - i) for i in range(5))
    shards = (replace(status.shards[0], problem="no space left"),)
    job = replace(status.jobs[0], waits=waits, dropped=3)
    text = drawn(replace(status, shards=shards, jobs=(job,)))
    assert "shard 0 refuses updates: no space left" in text
    assert "step 0: 1 waits for w3 (9.0 s)" in text
    assert [line for line in text if "waits for" in line] == [
        f"step {i}: 1 waits for w3 ({9.0 - i:.1f} s)" for i in range(3)
    ]


def test_the_load_of_servers_with_tables(status: ClusterStatus) -> None:
    load = Load(5 << 20, 12_345, 100, 70_000, 9.6, 6500.0, 2048.0, 1024.0)
    shards = (replace(status.shards[0], load=load),)
    text = drawn(replace(status, shards=shards), 130)
    cells = ["5.0", "MiB", "12,345", "6,500", "2.0", "KiB", "1.0", "KiB", "10"]
    assert line_of(text, "12,345").split()[3:12] == cells


def test_long_names_are_cut_and_figures_are_not(status: ClusterStatus) -> None:
    load = Load(5 << 20, 12_345, 100, 70_000, 9.6, 6500.0, 2048.0, 1024.0)
    address = "psserver-0.psserver.training.svc.cluster.local:7070"
    job = replace(status.jobs[0], name="a job with a name " * 6)
    workers = (replace(job.workers[0], name="a name with spaces " * 6), *job.workers[1:])
    named = (replace(job, workers=workers), replace(job, name="other"))
    shards = (replace(status.shards[0], address=address, load=load),)
    for width in (60, 80, 110, 140):
        text = drawn(replace(status, shards=shards, jobs=named), width)
        (server,) = [line for line in text if " ready " in line]
        assert server.split()[-1] == "-"
        assert "psserv" in server
        assert "10" in server.split()
        (worker,) = [line for line in text if line.startswith("a name")]
        assert {"3,000", "0.2500"} <= set(worker.split())
        assert next(line for line in text if line.startswith(">")).split()[1:3] == ["a", "job"]


def test_of_many_servers_those_that_are_not_ready_are_shown(status: ClusterStatus) -> None:
    shards = tuple(ShardStatus(i, f"10.0.0.{i}:7070", "ready", 1, 0.0) for i in range(64))
    shards = (*shards[:50], replace(shards[50], state="lost"), *shards[51:])
    text = drawn(replace(status, shards=shards))
    assert "lost" in line_of(text, "10.0.0.50:7070").split()
    assert "10 of 64 servers shown, 63 ready" in text
    assert line_of(text, "worker-0")


# --- workers


def test_of_many_workers_as_many_as_there_is_room_for(status: ClusterStatus) -> None:
    text = drawn(many(status))
    assert len(text) == 40
    assert text[-1].endswith(" of 60; arrow keys show others")
    assert text[-1].startswith("workers 1 to ")
    assert line_of(text, "w000")


def test_those_that_do_not_train_are_counted_where_not_all_are_shown(status: ClusterStatus) -> None:
    job = many(status).jobs[0]
    states = ["training"] * 50 + ["suspect"] * 4 + ["dead"] * 5 + ["left"]
    workers = tuple(replace(worker, state=state) for worker, state in zip(job.workers, states, strict=True))
    text = drawn(replace(status, jobs=(replace(job, workers=workers),)))
    assert " of 60 (5 dead, 1 left, 4 suspect); arrow keys show others" in text[-1]


def test_others_are_scrolled_to(status: ClusterStatus) -> None:
    text = drawn(many(status), worker=30)
    assert line_of(text, "w030")
    assert not any("w029" in line for line in text)
    assert text[-1].startswith("workers 31 to ")


def test_one_cannot_scroll_past_the_last(status: ClusterStatus) -> None:
    text = drawn(many(status), worker=10_000)
    assert line_of(text, "w059")
    assert text[-1].endswith(" to 60 of 60; arrow keys show others")


def test_who_has_left_is_last(status: ClusterStatus) -> None:
    job = status.jobs[0]
    workers = (replace(job.workers[0], state="left"), job.workers[1])
    text = drawn(replace(status, jobs=(replace(job, workers=workers),)))
    names = [line.split()[0] for line in text if line.startswith("worker-")]
    assert names == ["worker-1", "worker-0"]


# --- jobs


def test_no_job(status: ClusterStatus) -> None:
    text = drawn(replace(status, jobs=()))
    assert "1 server, 0 jobs" in text[0]
    assert shown_job(replace(status, jobs=()), View()) is None


@pytest.mark.parametrize(("place", "name"), [(0, "digits"), (1, "clicks"), (2, "digits"), (7, "clicks")])
def test_of_several_jobs_each_has_a_line_and_one_is_looked_at(
    place: int, name: str, status: ClusterStatus
) -> None:
    both = replace(status, jobs=(status.jobs[0], replace(status.jobs[0], name="clicks")))
    text = drawn(both, job=place)
    other = "digits" if name == "clicks" else "clicks"
    assert line_of(text, other).split()[1:5] == ["2", "30", "1,000", "0.2500"]
    marked = next(line for line in text if line.startswith(">"))
    assert marked.split()[1] == name
    assert any(line.startswith(f"job {name}  ") for line in text)


def test_of_many_jobs_those_around_the_one_that_is_looked_at_have_lines(status: ClusterStatus) -> None:
    jobs = tuple(replace(status.jobs[0], name=f"j{i:02}") for i in range(50))
    text = drawn(replace(status, jobs=jobs), job=20)
    assert "jobs 17 to 24 of 50; Tab shows the next" in text
    assert next(line for line in text if line.startswith(">")).split()[1] == "j20"
    assert line_of(text, "worker-0")


def test_a_job_that_is_waited_for(status: ClusterStatus) -> None:
    job = replace(status.jobs[0], progress=None, history=History())
    text = drawn(replace(status, jobs=(job,)))
    assert not any("training loss" in line for line in text)
    assert line_of(text, "worker-0")


# --- little room


@pytest.mark.parametrize(
    ("width", "height"), [(80, 24), (60, 20), (40, 12), (30, 8), (20, 5), (10, 3), (1, 1), (300, 100)]
)
def test_any_terminal_is_filled_and_not_more(width: int, height: int, status: ClusterStatus) -> None:
    text = drawn(many(status), width, height)
    assert len(text) <= height
    assert all(len(line) <= width for line in text)


def test_a_usual_terminal_has_curves_and_workers(status: ClusterStatus) -> None:
    text = drawn(status, 80, 24)
    assert any("training loss  0.5000" in line and "examples/s" in line for line in text)
    assert line_of(text, "worker-0")
    assert line_of(text, "worker-1")
    assert "…" not in "".join(text[3:6])


def test_where_there_is_no_room_for_a_frame_the_curve_is_in_a_line(status: ClusterStatus) -> None:
    text = drawn(status, 60, 16)
    assert any(line.startswith("training loss  0.5000  ⠉") for line in text)
    assert line_of(text, "worker-0")


def test_a_tiny_terminal_has_names_and_states(status: ClusterStatus) -> None:
    text = drawn(status, 40, 16)
    assert line_of(text, "ready").split() == ["0", "ready", "0"]
    assert line_of(text, "worker-0").split() == ["worker-0", "training", "0.2500"]


def test_without_unicode_there_are_no_curves(status: ClusterStatus) -> None:
    text = drawn(status, encoding="ascii")
    assert not any(ord(character) > 0x2580 for line in text for character in line)
    assert line_of(text, "worker-0").split()[-1] == "0.2500"


def test_peers_texts_are_neither_markup_nor_control(make_status: MakeStatus) -> None:
    evil = "\x1b[2J"
    waits = (Wait("digits", 0, evil, 1, (evil,), 3.0),)
    status = make_status(names=("[bold]x", evil), worker_state=evil, waits=waits, history=PAST)
    jobs = (status.jobs[0], replace(status.jobs[0], name=evil))
    text = "\n".join(drawn(replace(status, version=evil, jobs=jobs), 140))
    assert "[bold]x" in text
    assert "\x1b" not in text
    assert text.count("\\x1b[2J") >= 6


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
FLOATS = st.none() | st.floats()
CURVES = st.builds(Curve, st.floats(0.1, 1e4), st.floats(0.0, 1e6), st.lists(FLOATS, max_size=20).map(tuple))
WORKERS = st.builds(
    WorkerStatus, st.just(0), NAMES, st.just(1), st.sampled_from(["training", "suspect", "left", "dead"]),
    st.integers(0, 10**12), st.integers(0, 99), st.integers(0, 10**15), st.floats(0, 1e9), st.floats(0, 1e6),
    st.integers(0, 9), st.none() | st.floats(),
)  # fmt: skip
MANY = st.integers(0, 10**9)
PROGRESS = st.builds(
    Progress, st.sampled_from(["train", "evaluate", "finished"]), MANY, MANY, MANY, MANY, MANY, MANY,
    FLOATS, st.floats(0, 1e7), st.just(()) | st.just((Evaluation(1, 2, (Mean("loss", float("nan")),)),)),
)  # fmt: skip
JOBS = st.builds(
    JobStatus, NAMES, st.sampled_from([0.0, 3.0, float("inf")]), st.integers(0, 2), st.integers(0, 99),
    st.integers(0, 10**9), st.lists(WORKERS, max_size=12).map(tuple), st.just(()), st.none() | PROGRESS,
    st.just(()), st.integers(0, 99), st.floats(0, 1e6), st.builds(History, CURVES, CURVES, CURVES, CURVES),
)  # fmt: skip
DURABLE = DurabilityStatus("log", "/state", 2, CheckpointStatus(1, 5.0, None, 10**9), "disk full")
STATUSES = st.builds(
    ClusterStatus, NAMES, st.floats(0, 1e9),
    st.lists(
        st.builds(ShardStatus, st.integers(0, 99), NAMES, st.just("ready"), st.integers(0), st.just(1.0)),
        min_size=1, max_size=20,
    ).map(tuple),
    st.lists(JOBS, max_size=3).map(tuple), st.sampled_from([DurabilityStatus(), DURABLE]),
)  # fmt: skip


@settings(max_examples=25)
@given(
    STATUSES, st.integers(1, 200), st.integers(1, 60), st.integers(0, 99), st.integers(0, 9), st.booleans()
)
def test_any_cluster_is_drawn_on_any_terminal(
    status: ClusterStatus, width: int, height: int, worker: int, job: int, whole: bool
) -> None:
    assert len(drawn(status, width, height, worker=worker, job=job, whole=whole)) <= height
