"""What a checkpoint costs those who push meanwhile, the server's memory, and against the disk's own speed."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.durability_cluster import SNAPSHOT, durable_cluster, fill, take_checkpoint
from benchmarks.durability_disk import write_rate
from benchmarks.durability_pusher import Moments, Pusher, PusherFailed, Stream, pusher
from benchmarks.durability_rows import Row, Table
from benchmarks.progress import Progress
from benchmarks.sizes import format_size

MOST_SLOWER = 2.0
LEAST_OF_DISK = 0.8
MOST_BESIDE_CHANGED = 16 << 20

_RESET_PEAK = "5"


@dataclass(frozen=True, slots=True)
class PushTimes:
    """Seconds that pushes took: the middle, the 99th percentile and the longest."""

    median: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Round:
    """Pushes of `nbytes` without and during a checkpoint; `grown` is the peak of memory above that without.

    `checkpoint` and `disk` are bytes a second; the disk's is the mean of before and after.
    """

    nbytes: int
    alone: PushTimes
    during: PushTimes
    grown: int
    checkpoint: float
    disk: float


def measure_checkpoints(
    directory: Path, model: int, pushed: Sequence[int], repeat: int, seconds: float, progress: Progress
) -> Table:
    """Take `repeat` checkpoints of a model of `model` bytes beside pushes of each size.

    Raises PusherFailed, ProcessFailed, TimeoutError, PSError where a process does not do its part.
    """
    rounds = []
    with durable_cluster(directory, SNAPSHOT) as cluster, ExitStack() as stack:
        progress(f"checkpoint: a model of {format_size(model)} is made")
        fill(cluster.address, model)
        streams = [Stream(f"pushed-{nbytes}", nbytes) for nbytes in pushed]
        pushers = [(stream, stack.enter_context(pusher(cluster.address, stream))) for stream in streams]
        take_checkpoint(cluster.address)  # the first one warms up: memory, directories
        for number in range(1, repeat + 1):
            for stream, push in pushers:
                progress(f"checkpoint: round {number} of {repeat}, pushes of {format_size(stream.nbytes)}")
                pid = cluster.servers[0].pid
                rounds.append(_round(directory, cluster.address, pid, model, stream, push, seconds))
    return table(model, rounds)


def _round(
    directory: Path, address: str, pid: int, model: int, stream: Stream, push: Pusher, seconds: float
) -> Round:
    before = write_rate(directory, model)
    reset_peak(pid)
    alone = _push_for(push, seconds)
    peak_alone = peak_memory(pid)
    reset_peak(pid)
    push.start()
    begin = perf_counter()
    taken = take_checkpoint(address)
    end = perf_counter()
    during = beside(push.stop(), begin, end)
    grown = peak_memory(pid) - peak_alone
    after = write_rate(directory, model)
    return Round(
        stream.nbytes,
        push_times(alone),
        push_times(during),
        grown,
        taken.bytes / taken.seconds,
        (before + after) / 2,
    )


def _push_for(push: Pusher, seconds: float) -> Moments:
    push.start()
    time.sleep(seconds)
    return push.stop()


def beside(moments: Moments, begin: float, end: float) -> Moments:
    """Return the pushes that were under way at any time from `begin` to `end`."""
    return moments[(moments[:, 1] > begin) & (moments[:, 0] < end)]


def push_times(moments: Moments) -> PushTimes:
    """Return what pushes took.

    Raises PusherFailed where there were none.
    """
    if not len(moments):
        raise PusherFailed("no push was acknowledged in the time given; give it more --seconds")
    taken = moments[:, 1] - moments[:, 0]
    median, p99 = np.percentile(taken, (50, 99))
    return PushTimes(float(median), float(p99), float(taken.max()))


def reset_peak(pid: int) -> None:
    """Have the kernel forget how much memory a process has ever had at most."""
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def peak_memory(pid: int) -> int:
    """Return the most bytes of memory that a process has had since `reset_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.removesuffix("kB")) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def table(model: int, rounds: Sequence[Round]) -> Table:
    """Return what the rounds come to."""
    rows = [row for nbytes in dict.fromkeys(one.nbytes for one in rounds) for row in _rows(rounds, nbytes)]
    speeds = [one.checkpoint for one in rounds]
    disks = [one.disk for one in rounds]
    to_disk = [speed / disk for speed, disk in zip(speeds, disks, strict=True)]
    rows += [
        Row("checkpoint's bytes/s", "MB/s", tuple(speeds), 1e6),
        Row("the disk's, before and after", "MB/s", tuple(disks), 1e6),
        Row("checkpoint to disk", "", tuple(to_disk), at_least=LEAST_OF_DISK),
    ]
    return Table(f"Checkpoints of {format_size(model)} under load", tuple(rows))


def _rows(rounds: Sequence[Round], nbytes: int) -> list[Row]:
    size, some = format_size(nbytes), [one for one in rounds if one.nbytes == nbytes]
    alone, during = [one.alone for one in some], [one.during for one in some]
    slower = [two.p99 / one.p99 for one, two in zip(alone, during, strict=True)]
    changed = nbytes + MOST_BESIDE_CHANGED
    return [
        Row(f"{size} push alone, median", "ms", tuple(one.median for one in alone), 1e-3),
        Row(f"{size} push during, median", "ms", tuple(one.median for one in during), 1e-3),
        Row(f"{size} push alone, p99", "ms", tuple(one.p99 for one in alone), 1e-3),
        Row(f"{size} push during, p99", "ms", tuple(one.p99 for one in during), 1e-3),
        Row(f"{size} push during, longest", "ms", tuple(one.longest for one in during), 1e-3),
        Row(f"{size} p99 during to alone", "", tuple(slower), at_most=MOST_SLOWER),
        Row(
            f"{size} memory more than alone",
            "MB",
            tuple(float(one.grown) for one in some),
            1e6,
            at_most=changed,
        ),
    ]
