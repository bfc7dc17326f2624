import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from protocol.status import (
    CheckpointStatus,
    ClusterStatus,
    DurabilityStatus,
    Load,
    ShardStatus,
    TensorStatus,
    Wait,
    WorkerStatus,
)
from psctl.overview import how_kept_together, overview

MakeStatus = Callable[..., ClusterStatus]


def drawn(status: ClusterStatus, *, width: int = 100, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="standard" if colours else None
    )
    with console.capture() as captured:
        console.print(overview(status, width=width))
    return captured.get()


def line_of(text: str, word: str) -> str:
    (line,) = [line for line in text.splitlines() if word in line.split()]
    return line


def with_workers(status: ClusterStatus, *workers: WorkerStatus) -> ClusterStatus:
    return replace(status, jobs=(replace(status.jobs[0], workers=workers),))


def worker(name: str, state: str = "training", **fields: Any) -> WorkerStatus:
    return replace(WorkerStatus(0, name, 1, state, 7, 1, 2, 3.0, 0.5, 1, 0.25), **fields)


def test_the_cluster_and_its_servers(make_status: MakeStatus) -> None:
    shards = (
        ShardStatus(0, "127.0.0.1:7070", "ready", 2560, 0.0),
        ShardStatus(1, "10.0.0.2:7070", "suspect", 1 << 30, 3.44),
        ShardStatus(2, "", "joining", 0, 0.0),
    )
    text = drawn(replace(make_status(), shards=shards))
    assert text.startswith("3 servers, 1 job, up 1:15, asyncps 0.1.0\n")
    columns = ["shard", "address", "state", "parameters", "requests/s", "silent"]
    assert line_of(text, "parameters").split() == columns
    assert line_of(text, "ready").split() == ["0", "127.0.0.1:7070", "ready", "2.5", "KiB", "0", "-"]
    assert line_of(text, "suspect").split() == [
        "1",
        "10.0.0.2:7070",
        "suspect",
        "1.0",
        "GiB",
        "0",
        "3.4",
        "s",
    ]
    assert line_of(text, "joining").split() == ["2", "joining", "0", "B", "0", "-"]


def test_rows_that_were_left_out_are_shown_where_there_are_some(make_status: MakeStatus) -> None:
    some = drawn(with_workers(make_status(), worker("a", skipped=1234), worker("b")))
    assert line_of(some, "a").split()[-1] == "1,234"
    assert line_of(some, "b").split()[-1] == "0"
    assert "left out" in some
    assert "left out" not in drawn(with_workers(make_status(), worker("a"), worker("b")))


def test_the_load_of_servers_with_tables(make_status: MakeStatus) -> None:
    load = Load(
        bytes=5 << 20, rows=12_345, requests=100, keys=70_000, requests_per_second=9.6, keys_per_second=6500
    )
    shards = (
        ShardStatus(0, "127.0.0.1:7070", "ready", 2560, 0.0, "", load),
        ShardStatus(1, "127.0.0.1:7071", "ready", 2560, 0.1),
    )
    tables = (TensorStatus("emb", "float32", (16384,), "adagrad", 2, dim=16),)
    text = drawn(replace(make_status(tensors=tables), shards=shards))
    columns = ["shard", "address", "state", "parameters", "requests/s", "rows", "keys/s", "silent"]
    assert line_of(text, "keys/s").split() == columns
    row = ["0", "127.0.0.1:7070", "ready", "5.0", "MiB", "10", "12,345", "6,500", "-"]
    assert line_of(text, "12,345").split() == row
    assert "rows x 16" in line_of(text, "emb")


@pytest.mark.parametrize(
    ("durability", "line"),
    [
        (DurabilityStatus(), "durability none: nothing outlives the servers"),
        (DurabilityStatus("log", "/run", 1), "durability log, timeline 1, no checkpoint yet"),
        (
            DurabilityStatus("snapshot", "/run", 3, CheckpointStatus(12, 7.4, 0.256, 3 << 20)),
            "durability snapshot, timeline 3, checkpoint 12 taken 7 s ago, 3.0 MiB in 0.26 s",
        ),
        (
            DurabilityStatus(
                "snapshot", "/run", 1, CheckpointStatus(9, 3700.0, None, 512)
            ),  # before a restart
            "durability snapshot, timeline 1, checkpoint 9 taken 1:01:40 ago, 512 B",
        ),
    ],
)
def test_what_outlives_the_servers(durability: DurabilityStatus, line: str, make_status: MakeStatus) -> None:
    lines = drawn(replace(make_status(), durability=durability)).splitlines()
    assert lines[1] == line
    assert lines[2].split()[0] == "shard"  # nothing is wrong


def test_what_is_wrong_with_it_is_red(make_status: MakeStatus) -> None:
    shards = (
        ShardStatus(0, "127.0.0.1:7070", "ready", 1, 0.0),
        ShardStatus(1, "10.0.0.2:7070", "ready", 1, 0.5, "the update log cannot be written: \x1b[2J"),
    )
    durability = DurabilityStatus("log", "/run", 1, None, "checkpoint 3: no marker of a")
    status = replace(make_status(), shards=shards, durability=durability)
    text = drawn(status)
    assert "\nno checkpoint was taken: checkpoint 3: no marker of a\n" in text
    assert "\nshard 1 refuses updates: the update log cannot be written: \\x1b[2J\n" in text
    coloured = drawn(status, colours=True)
    assert coloured.count("\x1b[31mno checkpoint") == coloured.count("\x1b[1;31mshard 1 refuses") == 1


@pytest.mark.parametrize(
    ("staleness", "backup", "text"),
    [
        (0.0, 0, "synchronous (staleness 0)"),
        (0.0, 1, "synchronous (staleness 0), 1 backup worker"),
        (3.0, 0, "stale by at most 3 steps (staleness 3)"),
        (math.inf, 2, "asynchronous (staleness inf), 2 backup workers"),
    ],
)
def test_how_a_job_is_kept_together(
    staleness: float, backup: int, text: str, make_status: MakeStatus
) -> None:
    status = make_status(staleness=staleness, backup_workers=backup)
    assert how_kept_together(status.jobs[0]) == text
    assert f"\n  {text}, membership epoch 1, step 30\n" in drawn(status)


def test_waits_are_told_the_longest_first(make_status: MakeStatus) -> None:
    waits = (
        Wait("digits", 0, "step 31", 2, ("w3", "w5", "a", "b", "c", "d"), 2.0),
        Wait("digits", 1, "chunks", 1, ("w1",), 7.0),
        Wait("digits", 1, "step 32", 1, ("w1",), 0.1),
    )
    lines = [line.strip() for line in drawn(make_status(waits=waits)).splitlines() if " wait" in line]
    assert lines == ["chunks: 1 waits for w1 (7.0 s)", "step 31: 2 wait for w3, w5 and 4 more (2.0 s)"]


def test_what_was_dropped_and_the_longest_wait_are_told_where_there_was_any(make_status: MakeStatus) -> None:
    text = drawn(make_status(dropped=12, longest_wait=3.21))
    assert "  12 gradients dropped: too late for the step\n" in text
    assert "  longest wait of a step: 3.2 s\n" in text
    quiet = drawn(make_status(longest_wait=0.04))
    assert "dropped" not in quiet
    assert "longest" not in quiet


def test_progress_and_the_last_evaluation(make_status: MakeStatus) -> None:
    text = drawn(make_status(), width=140)
    assert (
        "  train: epoch 3/10, 24/80 chunks, 2 leased, 4,500 examples in 0:06, training loss 0.5000, "
        "about 0:14 left" in text
    )
    assert "  held out, after epoch 2: loss 0.6000, accuracy 0.7500 (100 examples)" in text


def test_a_worker_s_figures(make_status: MakeStatus) -> None:
    text = drawn(with_workers(make_status(), worker("w0", clock=1234, lag=3, examples=5678, leases=2)))
    assert line_of(text, "lag").split() == [
        "worker", "state", "step", "lag", "examples", "/s", "silent", "leases", "loss",
    ]  # fmt: skip
    assert line_of(text, "w0").split() == [
        "w0", "training", "1,234", "3", "5,678", "3", "0.5", "s", "2", "0.2500",
    ]  # fmt: skip


def test_who_is_gone_has_neither_lag_nor_speed(make_status: MakeStatus) -> None:
    text = drawn(with_workers(make_status(), worker("w0", "dead", heartbeat_age=3600.0, loss=None)))
    assert line_of(text, "w0").split() == ["w0", "dead", "7", "-", "2", "-", "1:00:00", "1", "-"]


@pytest.mark.parametrize(("state", "colour"), [("suspect", "33"), ("dead", "31"), ("lost", "31")])
def test_states_that_ask_for_attention_are_coloured(state: str, colour: str, make_status: MakeStatus) -> None:
    text = drawn(with_workers(make_status(), worker("w0", state)), colours=True)
    assert f"\x1b[{colour}m{state}" in text


def test_who_has_left_is_dim(make_status: MakeStatus) -> None:
    text = drawn(with_workers(make_status(), worker("w0", "left"), worker("w1")), colours=True)
    (gone,) = [line for line in text.splitlines() if "w0" in line]
    (live,) = [line for line in text.splitlines() if "w1" in line]
    assert "\x1b[2m" in gone
    assert "\x1b[" not in live


def rows(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("  w") and "state" not in line]


def test_of_many_that_are_gone_some_are_shown_after_the_live_and_the_others_counted(
    make_status: MakeStatus,
) -> None:
    left = [worker(f"w1{i:02}", "left") for i in range(30)]
    dead = [worker(f"w2{i:02}", "dead") for i in range(5)]
    live = [worker(f"w3{i:02}") for i in range(40)]
    text = drawn(with_workers(make_status(tensors=()), *left, *dead, *live))
    assert rows(text) == [one.name for one in (*live, *dead, *left[:15])]
    assert text.splitlines()[-1].strip() == "not shown: 15 left"


def test_nobody_is_counted_when_all_are_shown(make_status: MakeStatus) -> None:
    assert "not shown" not in drawn(make_status())


def test_tensors(make_status: MakeStatus) -> None:
    assert line_of(drawn(make_status()), "float32").split() == ["w", "float32", "64", "x", "10", "sgd", "1"]


def test_a_cluster_without_jobs_and_a_job_without_anything(make_status: MakeStatus) -> None:
    status = make_status()
    assert "1 server, 0 jobs" in drawn(replace(status, jobs=()))
    bare = replace(status.jobs[0], workers=(), tensors=(), progress=None)
    text = drawn(replace(status, jobs=(bare,)))
    assert text.splitlines()[-2:] == [
        "job digits",
        "  asynchronous (staleness inf), membership epoch 1, step 30",
    ]


BIG = {
    "clock": 123_456, "lag": 12, "examples": 12_345_678, "examples_per_second": 12_345.0,
    "heartbeat_age": 99.9, "leases": 2,
}  # fmt: skip
FIGURES = ["123,456", "12,345,678", "12,345", "0.2500"]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(60, FIGURES), (79, FIGURES), (80, [*FIGURES, "12", "99.9", "2"]), (140, [*FIGURES, "12", "99.9", "2"])],
)
def test_figures_are_whole_on_a_narrow_screen(
    width: int, expected: list[str], make_status: MakeStatus
) -> None:
    text = drawn(with_workers(make_status(), worker("name-of-a-worker" * 4, "suspect", **BIG)), width=width)
    line = line_of(text, "suspect")
    assert set(expected) <= set(line.split())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    folded = "".join(line.split()[0] for line in text.splitlines()[text.splitlines().index(line) :] if line)
    assert folded.startswith("name-of-a-worker" * 4)


def test_peers_texts_are_neither_markup_nor_control(make_status: MakeStatus) -> None:
    evil = "\x1b[2J"
    waits = (Wait("digits", 0, evil, 1, (evil,), 3.0),)
    status = make_status(names=("[bold]x", evil), worker_state=evil, waits=waits)
    text = drawn(replace(status, version=evil), width=200)
    assert "[bold]x" in text
    assert text.count("\\x1b[2J") == 6  # two states, a name, what, for whom, version
    assert "\x1b" not in text


def test_why_a_job_ended_early(make_status: MakeStatus) -> None:
    status = make_status(phase="finished")
    assert "stopped early" not in drawn(status)
    (job,) = status.jobs
    assert job.progress is not None
    progress = replace(job.progress, stopped="loss has not improved")
    stopped = replace(status, jobs=(replace(job, progress=progress),))
    assert "stopped early: loss has not improved" in drawn(stopped)


def test_rows_left_out_and_returns_after_divergence(troubled: ClusterStatus, make_status: MakeStatus) -> None:
    text = drawn(troubled)
    assert "rows left out: 1,312 (12 fields, 1,300 number)" in text
    assert "went back after divergence: 2 times, last from loss nan in step 1,200 to checkpoint 3" in text
    assert "learning rate x 0.25" in text
    for words in ("left out", "went back"):
        assert words not in drawn(make_status())
