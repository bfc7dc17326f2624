import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import durability
from benchmarks.durability_checkpoints import (
    Round,
    beside,
    measure_checkpoints,
    peak_memory,
    push_times,
    reset_peak,
    table,
)
from benchmarks.durability_cluster import (
    LOG_ALWAYS,
    LOG_EACH_SECOND,
    NONE,
    SNAPSHOT,
    Durability,
    durable_cluster,
    fill,
    take_checkpoint,
)
from benchmarks.durability_disk import NoRoom, check_room, sync_seconds, write_rate
from benchmarks.durability_log import (
    ONE,
    SETTINGS,
    Load,
    Speed,
    count_within,
    dense_table,
    measure_dense,
    measure_small,
)
from benchmarks.durability_pusher import Moments, PusherFailed, Stream, pusher
from benchmarks.durability_restarts import end_of_the_one_that_waited, measure_kills, measure_stops
from benchmarks.durability_rows import Row, Table, as_json, render_text
from psworker.sync import connect


def ignore(line: str) -> None:
    """Show nothing."""


def moments(*pairs: tuple[float, float]) -> Moments:
    return np.array(pairs, np.float64).reshape(-1, 2)


@pytest.fixture(params=[NONE, SNAPSHOT, LOG_ALWAYS, LOG_EACH_SECOND], ids=lambda one: one.label)
def setting(request: pytest.FixtureRequest) -> Durability:
    found: Durability = request.param
    return found


# --- figures and their targets


@pytest.mark.parametrize(
    ("values", "at_most", "at_least", "met"),
    [
        ((1.0, 9.0, 2.0), 2.0, None, True),
        ((1.0, 9.0, 2.1), 2.0, None, False),
        ((1.0, 0.1, 0.8), None, 0.8, True),
        ((1.0, 0.1, 0.7), None, 0.8, False),
        ((5.0,), None, None, True),
    ],
)
def test_a_target_is_one_of_the_median(
    values: tuple[float, ...], at_most: float | None, at_least: float | None, met: bool
) -> None:
    assert Row("x", "", values, at_most=at_most, at_least=at_least).is_met == met


def test_text_has_targets_beside_medians() -> None:
    rows = (Row("speed", "MB/s", (1e6, 2.5e8, 3e9), 1e6), Row("slower", "", (3.0, 1.0, 5.0), at_most=2.0))
    header, speed, slower, remark = render_text([Table("Part", rows, "A remark.")]).splitlines()
    assert header.split() == ["Part", "target", "median", "least", "-", "most"]
    assert speed.split() == ["speed", "250", "MB/s", "1", "-", "3,000"]
    assert slower.split() == ["slower", "<=", "2", "3", "(missed)", "1", "-", "5"]
    assert remark == "A remark."


def test_json_has_every_round() -> None:
    found = json.loads(json.dumps(as_json([Table("Part", (Row("x", "s", (1.0, 3.0), at_least=2.5),))])))
    (part,) = found
    assert part["part"] == "Part"
    assert part["figures"][0]["values"] == [1.0, 3.0]
    assert part["figures"][0]["met"] is False


# --- pushes over time


def test_pushes_beside_a_checkpoint_are_those_that_overlap_it() -> None:
    all_of_them = moments((0, 1), (1, 3), (3, 4), (4, 6), (6, 7))
    assert beside(all_of_them, 2.0, 5.0).tolist() == [[1, 3], [3, 4], [4, 6]]


def test_percentiles_of_pushes() -> None:
    found = push_times(moments(*((float(i), i + i / 1000) for i in range(1001))))
    assert (found.median, found.p99, found.longest) == pytest.approx((0.5, 0.99, 1.0))
    with pytest.raises(PusherFailed, match="seconds"):
        push_times(moments())


def test_a_push_across_an_end_counts_in_part() -> None:
    assert count_within(moments((0, 2), (2, 3), (3, 5), (7, 8)), 1.0, 4.0) == pytest.approx(2.0)


def test_the_push_that_waited_is_the_longest_of_those_not_yet_acknowledged() -> None:
    # The one that ends right after the server's end had been acknowledged before it.
    found = moments((0.0, 9.9), (9.9, 10.01), (10.01, 12.5), (12.5, 12.6))
    assert end_of_the_one_that_waited(found, 10.0) == 12.5
    with pytest.raises(PusherFailed):
        end_of_the_one_that_waited(found, 13.0)


# --- tables


def test_checkpoint_table_compares_each_round_with_itself() -> None:
    slow, fast = push_times(moments((0, 4))), push_times(moments((0, 1)))
    rounds = [Round(1000, fast, slow, 5_000_000, 90.0, 100.0), Round(1000, slow, slow, 0, 50.0, 100.0)]
    rows = {row.label: row for row in table(1_000_000, rounds).rows}
    assert rows["1 KB p99 during to alone"].values == (4.0, 1.0)
    assert not rows["1 KB p99 during to alone"].is_met
    assert rows["1 KB memory more than alone"].is_met
    assert rows["checkpoint to disk"].values == (0.9, 0.5)


def test_log_table_compares_with_no_log_of_the_same_round() -> None:
    load = Load(1000, ONE)
    speeds = {(load, one): [Speed(100.0, 0.0), Speed(10.0, 0.0)] for one in SETTINGS}
    speeds[load, LOG_ALWAYS] = [Speed(40.0, 30.0), Speed(5.0, 4.0)]
    rows = dense_table(speeds, [200.0]).rows
    ratios = [row.values for row in rows if row.label == "  to none"]
    assert ratios == [(0.4, 0.5), (1.0, 1.0)]


# --- the disk


def test_what_is_written_to_the_disk_is_removed(tmp_path: Path) -> None:
    assert write_rate(tmp_path, 40_000_000) > 0
    assert all(seconds > 0 for seconds in sync_seconds(tmp_path, 3))
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said(tmp_path: Path) -> None:
    check_room(tmp_path, -(1 << 40))
    with pytest.raises(NoRoom, match="--directory"):
        check_room(tmp_path, 1 << 60)


# --- processes


def test_peak_of_memory_is_that_since_it_was_reset() -> None:
    reset_peak(os.getpid())
    before = peak_memory(os.getpid())
    filled = np.ones(100_000_000, np.uint8)
    assert peak_memory(os.getpid()) >= before + 0.9 * filled.nbytes
    del filled
    reset_peak(os.getpid())
    assert peak_memory(os.getpid()) < before + 50_000_000


def test_servers_keep_what_their_durability_says_and_leave_nothing(
    tmp_path: Path, setting: Durability
) -> None:
    with durable_cluster(tmp_path, setting) as cluster:
        fill(cluster.address, 1_000_000)
        names = {path.name for path in tmp_path.glob("*/*")}
        assert ("log" in names) == (setting.mode == "log")
        if setting != NONE:
            assert take_checkpoint(cluster.address).bytes > 1_000_000
    assert list(tmp_path.iterdir()) == []


def test_a_model_has_the_bytes_asked_for(tmp_path: Path) -> None:
    with durable_cluster(tmp_path, NONE) as cluster:
        fill(cluster.address, 150_000_000)
        with connect(cluster.address, "durability") as client:
            sizes = [info.spec.shape for info in client.tensors().values()]
    assert sorted(sizes) == [(12_500_000,), (25_000_000,)]


def test_pusher_says_when_each_push_was_and_all_are_counted() -> None:
    with durable_cluster(Path(), NONE) as cluster, pusher(cluster.address, Stream("w", 4000, 3)) as push:
        push.start()
        found = push.stop()
        assert len(found) >= 3
        assert (found[:, 0] < found[:, 1]).all()
        assert push.counted() == len(found)
        push.start()
        found_later = push.stop()
        assert push.counted() == len(found) + len(found_later)


def test_pusher_that_is_gone_is_an_error() -> None:
    with durable_cluster(Path(), NONE) as cluster, pusher(cluster.address, Stream("w", 4)) as push:
        (child,) = multiprocessing.active_children()
        child.kill()
        with pytest.raises(PusherFailed, match="ended"):
            push.start()


# --- each part, small


def test_checkpoints_are_measured_with_real_processes(tmp_path: Path) -> None:
    found = measure_checkpoints(tmp_path, 4_000_000, [1_000_000, 1000], 1, 0.1, ignore)
    assert all(row.values for row in found.rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_log_is_measured_with_real_processes(tmp_path: Path) -> None:
    found = measure_dense(tmp_path, [100_000], 1, 0.1, ignore, [ONE])
    logged = [row.values[0] for row in found.rows if "written" in row.label]
    assert len(logged) == 2
    assert all(bytes_a_second > 0 for bytes_a_second in logged)
    small = measure_small(tmp_path, 2, 1, 0.1, ignore)
    assert all(row.values[0] > 0 for row in small.rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_restarts_are_measured_with_real_processes(tmp_path: Path) -> None:
    kills = measure_kills(tmp_path, 4_000_000, 1, 0.1, ignore)
    stops = measure_stops(tmp_path, 4_000_000, 1, 0.1, ignore)
    assert all(row.values[0] > 0 for row in (*kills.rows, *stops.rows))
    assert list(tmp_path.iterdir()) == []


# --- the command


def test_a_part_that_is_not_known_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        durability.main(["--parts", "log,lag"])
    assert "'lag'" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert durability.main(["--model", "99999999GB", "--directory", str(tmp_path)]) == 1
    assert "--model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
