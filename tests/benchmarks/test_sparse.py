import json
import os
import socket
from itertools import islice

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.isolated import SystemFailed
from benchmarks.sparse_rounds import Report, Row, Settings, run
from benchmarks.sparse_systems import redis_hash
from benchmarks.sparse_systems.interface import Batch, Rows, TableSize, Taken
from benchmarks.sparse_systems.numpy_table import InProcess, NumpyTable, sum_by_row
from benchmarks.sparse_systems.raw_tcp import exchange_bytes
from benchmarks.sparse_systems.registry import CEILING, IN_PROCESS, Entry, entries
from benchmarks.sparse_systems.verification import check_adagrad, fill
from benchmarks.sparse_systems.workload import draw_batches, every_row, zipf_ranks
from benchmarks.sparse_table import render_text
from benchmarks.systems.interface import OPERATIONS, Operation
from benchmarks.systems.verification import WrongResult
from tests.benchmarks.processes import spawned_by

SIZE = TableSize(rows=2000, dim=4)
SETTINGS = Settings(SIZE, batch=500, rounds=1, seconds=0.001)

# --- what is asked for


def test_every_row_is_named_once() -> None:
    batches = every_row(SIZE, 300)
    assert np.concatenate([batch.numbers for batch in batches]).tolist() == list(range(SIZE.rows))
    assert len(np.unique(np.concatenate([batch.keys for batch in batches]))) == SIZE.rows


@pytest.mark.parametrize("keys", ["uniform", "zipf"])
def test_batches_are_within_the_table_and_the_same_each_time(keys: str) -> None:
    size = TableSize(2000, 4, keys)  # type: ignore[arg-type]
    one, other = (list(islice(draw_batches(size, 500), 3)) for _ in range(2))
    for mine, again in zip(one, other, strict=True):
        assert 0 <= mine.numbers.min() <= mine.numbers.max() < size.rows
        np.testing.assert_array_equal(mine.keys, again.keys)
    most = max(np.bincount(batch.numbers).max() for batch in one)
    assert most < 10 if keys == "uniform" else most > 10


def test_zipf_ranks_fall_as_their_exponent_says() -> None:
    uniform = (np.arange(200_000) + 0.5) / 200_000
    counts = np.bincount(zipf_ranks(uniform, 1000, 1.5), minlength=1000)
    assert len(counts) == 1000
    assert counts[9:19].sum() / counts[99:199].sum() == pytest.approx(10**0.5, rel=0.1)


# --- what is computed


def test_repeats_are_summed_by_row() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 30, 200)
    gradients = rng.standard_normal((200, 4), np.float32)
    rows, total = sum_by_row(numbers, gradients)
    expected = np.zeros((30, 4), np.float32)
    np.add.at(expected, numbers, gradients)
    assert rows.tolist() == np.unique(numbers).tolist()
    np.testing.assert_allclose(total, expected[rows], rtol=1e-4, atol=1e-5)


class Forgetful(NumpyTable):
    """A table that takes only the last of the gradients of a row."""

    def push(self, batch: Batch, gradients: Rows) -> None:
        last = {number: place for place, number in enumerate(batch.numbers.tolist())}
        places = list(last.values())
        super().push(Batch.of(batch.numbers[places]), gradients[places])


def test_the_check_finds_a_gradient_that_is_lost() -> None:
    good, bad = NumpyTable(SIZE), Forgetful(SIZE)
    for table in (good, bad):
        fill(table, SIZE)
    check_adagrad(good, SIZE)
    with pytest.raises(WrongResult, match="push, then pull"):
        check_adagrad(bad, SIZE)


def test_bytes_of_an_exchange() -> None:
    assert exchange_bytes("push", 10, 16) == (720, 64)
    assert exchange_bytes("pull", 10, 16) == (80, 640)
    assert exchange_bytes("push_pull", 10, 16) == (800, 640)


@pytest.mark.skipif(not redis_hash.is_installed(), reason="no redis-server")
def test_redis_starts_is_right_and_ends() -> None:
    system = redis_hash.RedisHash(SIZE)
    try:
        system.start()
        taken = [system.measure(operation, 500 * SIZE.row_bytes, 0.0) for operation in OPERATIONS]
        address = system.address
    finally:
        system.stop()
    assert all(one.seconds > 0 for one in taken)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


# --- rounds and the table


class Broken(InProcess):
    """A system that cannot be started."""

    def start(self) -> None:
        raise OSError("no such luck")


def test_others_go_on_when_a_system_fails_or_is_missing() -> None:
    systems = (
        CEILING,
        Entry("broken", "broken", Broken),
        Entry("absent", "absent", Broken, absent=lambda: "not here, skipped"),
        IN_PROCESS,
    )
    report = run(systems, SETTINGS, lambda line: None)
    assert [row.entry.name for row in report.rows] == ["raw-tcp", "numpy"]
    assert all(len(row.taken[operation]) == 1 for row in report.rows for operation in OPERATIONS)
    assert report.missing == {"broken": "failed, OSError: no such luck", "absent": "not here, skipped"}
    assert spawned_by(os.getpid()) == []


def test_nothing_is_measured_without_the_ceiling() -> None:
    with pytest.raises(SystemFailed, match="no such luck"):
        run((Entry(CEILING.name, CEILING.label, Broken),), SETTINGS, lambda line: None)


def row(entry: Entry, seconds: float, client: float, *servers: float) -> Row:
    taken: dict[Operation, list[Taken]] = {
        operation: [Taken(seconds, client, servers)] * 2 for operation in OPERATIONS
    }
    return Row(entry, taken)


def test_the_table_has_ratios_targets_and_the_limit() -> None:
    ours = next(entry for entry in entries([2]) if entry.shards)
    settings = Settings(TableSize(1000, 16), batch=60_000, rounds=2, seconds=1.0)
    rows = (row(CEILING, 0.002, 0.001), row(ours, 0.010, 0.002, 0.004, 0.009))
    text = render_text(Report(settings, rows, {"redis": "not installed"}))
    lines = {line[:28].strip(): line.split() for line in text.splitlines()}
    assert lines["asyncps, 2 shards"][-3:] == ["6.00"] * 3
    assert "20%" in text
    push = next(line for line in text.splitlines() if line.startswith("asyncps, 2 shards: push"))
    assert push.split()[-9:] == [">=", "0.1", "6.00", ">=", "5", "1.33", "20%", "90%", "server"]
    pull = next(line for line in text.splitlines() if line.startswith("asyncps, 2 shards: pull"))
    assert "below 0.25" in pull
    assert "2.0 + 9.0 + 4.0" in text
    assert "redis: not installed" in text


def test_an_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sparse", "--systems", "nobody"])
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize("ours", [[], pytest.param(["asyncps-1"], marks=pytest.mark.long)])
def test_json_has_every_round(ours: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--rows", "2000", "--dim", "4", "--batch", "500", "--rounds", "2", "--seconds", "0.001"]
    systems = ["--shards", "1", "--systems", ",".join(["numpy", *ours])]
    assert main(["sparse", *small, *systems, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [system["name"] for system in document["systems"]] == ["raw-tcp", *ours, "numpy"]
    assert all(len(one["operations"]["push"]["seconds"]) == 2 for one in document["systems"])
