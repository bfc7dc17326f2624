"""How fast pushes are when each has to be in the update log before it is acknowledged."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.durability_cluster import LOG_ALWAYS, LOG_EACH_SECOND, NONE, Durability, durable_cluster
from benchmarks.durability_disk import sync_seconds, write_rate
from benchmarks.durability_pusher import Moments, Stream, pusher
from benchmarks.durability_rows import Row, Table
from benchmarks.progress import Progress
from benchmarks.pushes_per_second import PATIENT, small_pushes_to
from benchmarks.sizes import format_size
from benchmarks.small_pushes import LoadResult, run_load
from psctl import LocalCluster

LEAST_OF_NONE = 0.5
LEAST_SMALL = 10_000.0

SETTINGS = (NONE, LOG_ALWAYS, LOG_EACH_SECOND)

_DISK_BYTES = 1_000_000_000
_SYNCS = 1000


@dataclass(frozen=True, slots=True)
class Pushing:
    """Who pushes: `clients` processes, each with a push under way for each of its `tensors`.

    With one client the tensors are different ones, as the layers of a model are; several push the same one,
    as workers of a job do.
    """

    label: str
    clients: int
    tensors: int


ONE = Pushing("1 client, 4 tensors", 1, 4)
SEVERAL = Pushing("4 clients, 1 tensor", 4, 1)


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured with each durability."""

    nbytes: int
    pushing: Pushing

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return f"{format_size(self.nbytes)}, {self.pushing.label}"


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes of gradients acknowledged, and bytes of log written for them, in a second."""

    pushed: float
    logged: float


# A speed for each round.
Speeds = dict[tuple[Load, Durability], list[Speed]]


# --- large tensors


def measure_dense(
    directory: Path,
    sizes: Sequence[int],
    repeat: int,
    seconds: float,
    progress: Progress,
    who: Sequence[Pushing] = (ONE, SEVERAL),
) -> Table:
    """Have each of `who` push tensors of each size with each durability, in turns, `repeat` times.

    Raises PusherFailed, ProcessFailed, TimeoutError, PSError where a process does not do its part.
    """
    loads = [Load(nbytes, pushing) for nbytes, pushing in product(sizes, who)]
    speeds: Speeds = {(load, setting): [] for load, setting in product(loads, SETTINGS)}
    disk = []
    for number in range(1, repeat + 1):
        for load, setting in product(loads, SETTINGS):
            progress(f"log: round {number} of {repeat}, {load.label}, durability {setting.label}")
            speeds[load, setting].append(_speed(directory, load, setting, seconds))
        disk.append(write_rate(directory, _DISK_BYTES))
    return dense_table(speeds, disk)


def _speed(directory: Path, load: Load, setting: Durability, seconds: float) -> Speed:
    stream = Stream("w", load.nbytes, load.pushing.tensors)
    with durable_cluster(directory, setting) as cluster, ExitStack() as stack:
        pushers = [stack.enter_context(pusher(cluster.address, stream)) for _ in range(load.pushing.clients)]
        for one in pushers:
            one.start()
        time.sleep(min(1.0, seconds / 3))  # until memory and connections are warm
        begin, logged = time.perf_counter(), _log_bytes(cluster)
        time.sleep(seconds)
        end, logged = time.perf_counter(), _log_bytes(cluster) - logged
        moments = [one.stop() for one in pushers]
    pushes = sum(count_within(one, begin, end) for one in moments)
    return Speed(pushes * load.nbytes / (end - begin), logged / (end - begin))


def count_within(moments: Moments, begin: float, end: float) -> float:
    """Return how many pushes there were from `begin` to `end`; of those across an end, the part that was."""
    inside = np.minimum(moments[:, 1], end) - np.maximum(moments[:, 0], begin)
    return float(np.clip(inside / (moments[:, 1] - moments[:, 0]), 0, None).sum())


def _log_bytes(cluster: LocalCluster) -> int:
    """Return how long a cluster's logs are; nothing of them is removed as long as no checkpoint is taken."""
    if cluster.checkpoint_dir is None:
        return 0
    return sum(file.stat().st_size for file in Path(cluster.checkpoint_dir).glob("log/*/*"))


def dense_table(speeds: Speeds, disk: Sequence[float]) -> Table:
    """Return what the rounds come to."""
    rows = [Row("the disk's own", "MB/s", tuple(disk), 1e6)]
    for load in dict.fromkeys(load for load, _ in speeds):
        without = speeds[load, NONE]
        for setting in SETTINGS:
            rows += _rows(f"{load.label}: {setting.label}", speeds[load, setting], without, setting)
    remark = (
        f"The target holds where the disk writes more than {LEAST_OF_NONE:g} of what is pushed without a log."
    )
    return Table("Pushes of large tensors, log to none", tuple(rows), remark)


def _rows(label: str, found: Sequence[Speed], without: Sequence[Speed], setting: Durability) -> list[Row]:
    pushed = Row(label, "MB/s", tuple(one.pushed for one in found), 1e6)
    if setting == NONE:
        return [pushed]
    ratios = [one.pushed / other.pushed for one, other in zip(found, without, strict=True)]
    return [
        pushed,
        Row("  to none", "", tuple(ratios), at_least=LEAST_OF_NONE),
        Row("  written to the log", "MB/s", tuple(one.logged for one in found), 1e6),
    ]


# --- small ones


def measure_small(
    directory: Path, connections: int, repeat: int, seconds: float, progress: Progress
) -> Table:
    """Push 1 KB over many connections with each durability, in turns, `repeat` times.

    Raises LoadFailed, ProcessFailed, TimeoutError where a server does not do its part.
    """
    results: dict[Durability, list[LoadResult]] = {setting: [] for setting in SETTINGS}
    syncs = []
    with ExitStack() as stack:
        loads = {
            setting: stack.enter_context(
                small_pushes_to(stack.enter_context(durable_cluster(directory, setting, flags=PATIENT)))
            )
            for setting in SETTINGS
        }
        for number in range(1, repeat + 1):
            for setting, load in loads.items():
                progress(f"small: round {number} of {repeat}, durability {setting.label}")
                results[setting].append(run_load(load, connections, seconds))
            syncs.append(fmean(sync_seconds(directory, _SYNCS)))
    return small_table(connections, results, syncs)


def small_table(
    connections: int, results: dict[Durability, list[LoadResult]], syncs: Sequence[float]
) -> Table:
    """Return what the rounds come to."""
    rows = [Row("the disk's sync of 4 KiB", "ms", tuple(syncs), 1e-3)]
    for setting, found in results.items():
        least = LEAST_SMALL if setting == LOG_ALWAYS else None
        rates = tuple(one.pushes_per_second for one in found)
        rows.append(Row(f"{setting.label}: pushes/s", "", rates, at_least=least))
        costs = tuple(one.server_cpu_seconds / one.pushes for one in found)
        rows.append(Row("  server's CPU, each", "µs", costs, 1e-6))
    return Table(f"1 KB pushes over {connections} connections", tuple(rows))
