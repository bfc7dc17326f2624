"""How soon servers are back that were killed, or told to stop, while a client goes on pushing."""

import signal
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter

from benchmarks.durability_cluster import (
    LOG_ALWAYS,
    SNAPSHOT,
    Durability,
    durable_cluster,
    fill,
    take_checkpoint,
)
from benchmarks.durability_pusher import Moments, Pusher, PusherFailed, Stream, pusher
from benchmarks.durability_rows import Row, Table
from benchmarks.progress import Progress
from benchmarks.sizes import format_size
from psctl import LocalCluster

REPLICATED = 0.8
MOST_TO_STOP = 30.0

_STREAM = Stream("pushed", 1_000_000)
_STOPS_WITHIN = 120.0
_TERMINATED = 128 + signal.SIGTERM
_SETTINGS = (SNAPSHOT, LOG_ALWAYS)
_COORDINATOR, _SHARD = 0, 1


@dataclass(frozen=True, slots=True)
class Return:
    """Seconds from the kill until all servers are ready, and until the push that waited is acknowledged."""

    ready: float
    pushed: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Seconds from SIGTERM to the end, and from a start to the end of the push that waited."""

    stopped: float
    pushed: float


# --- killed


def measure_kills(directory: Path, model: int, repeat: int, seconds: float, progress: Progress) -> Table:
    """Kill a shard of two, and the coordinator, with each durability; start it again at once.

    Raises PusherFailed, ProcessFailed, TimeoutError, PSError where a process does not do its part.
    """
    found: dict[tuple[Durability, int], list[Return]] = {
        key: [] for key in product(_SETTINGS, (_SHARD, _COORDINATOR))
    }
    for number in range(1, repeat + 1):
        for setting in _SETTINGS:
            with durable_cluster(directory, setting, servers=2) as cluster:
                progress(f"kill: round {number} of {repeat}, durability {setting.label}")
                fill(cluster.address, model)
                with pusher(cluster.address, _STREAM) as push:
                    for victim in (_SHARD, _COORDINATOR):
                        found[setting, victim].append(_kill(cluster, victim, setting, push, seconds))
    return kill_table(model, found)


def _kill(cluster: LocalCluster, victim: int, setting: Durability, push: Pusher, seconds: float) -> Return:
    take_checkpoint(cluster.address)
    before = push.counted()
    push.start()
    time.sleep(seconds)
    cluster.kill_server(victim)
    killed = perf_counter()
    cluster.restart_server(victim, wait=False)
    cluster.wait_until_ready()
    ready = perf_counter() - killed
    moments = push.stop()
    _check(setting, before, moments, push.counted())
    return Return(ready, end_of_the_one_that_waited(moments, killed) - killed)


def _check(setting: Durability, before: float, moments: Moments, counted: float) -> None:
    """See that the log has lost nothing; without one, only what came after the checkpoint may be lost."""
    most = before + len(moments)
    if not (counted == most if setting.mode == "log" else before < counted <= most):
        raise PusherFailed(
            f"durability {setting.label}: {counted:.0f} pushes are counted, {most:.0f} were acknowledged, "
            f"{before:.0f} of them before the checkpoint"
        )


def end_of_the_one_that_waited(moments: Moments, moment: float) -> float:
    """Return when the push was acknowledged that waited longest of those that were not at `moment`.

    Raises PusherFailed where there is none.
    """
    later = moments[moments[:, 1] > moment]
    if not len(later):
        raise PusherFailed("no push was acknowledged after the server had ended")
    return float(later[(later[:, 1] - later[:, 0]).argmax(), 1])


def kill_table(model: int, found: dict[tuple[Durability, int], list[Return]]) -> Table:
    """Return what the rounds come to."""
    rows = []
    for (setting, victim), returns in found.items():
        who = "coordinator" if victim == _COORDINATOR else "shard"
        rows += [
            Row(f"{setting.label}: {who}, until all are ready", "s", tuple(one.ready for one in returns)),
            Row("  until a waiting push is done", "s", tuple(one.pushed for one in returns)),
        ]
    remark = (
        f"Beside it, and another thing: Li et al. (2014) go on {REPLICATED} s after the loss of a server of "
        "which others\nhave replicas in memory. Here the process is started again, and reads its disk."
    )
    return Table(f"kill -9 of one of 2 servers with {format_size(model)}", tuple(rows), remark)


# --- told to stop


def measure_stops(directory: Path, model: int, repeat: int, seconds: float, progress: Progress) -> Table:
    """Stop a server as Kubernetes does while it is pushed to, with each durability, and start it again.

    Raises PusherFailed, ProcessFailed, TimeoutError, PSError where a process does not do its part.
    """
    found: dict[Durability, list[Stop]] = {setting: [] for setting in _SETTINGS}
    for number, setting in product(range(1, repeat + 1), _SETTINGS):
        with durable_cluster(directory, setting) as cluster:
            progress(f"stop: round {number} of {repeat}, durability {setting.label}")
            fill(cluster.address, model)
            with pusher(cluster.address, _STREAM) as push:
                found[setting].append(_stop(cluster, push, seconds))
    return stop_table(model, found)


def _stop(cluster: LocalCluster, push: Pusher, seconds: float) -> Stop:
    push.start()
    time.sleep(seconds)
    (server,) = cluster.servers
    begin = perf_counter()
    server.terminate()
    server.end(_STOPS_WITHIN)
    end = perf_counter()
    if server.returncode != _TERMINATED:
        raise server.failure()
    cluster.restart_server(0)
    moments = push.stop()
    if push.counted() != len(moments):
        raise PusherFailed(f"{push.counted():.0f} pushes are counted, {len(moments)} were acknowledged")
    return Stop(end - begin, end_of_the_one_that_waited(moments, end) - end)


def stop_table(model: int, found: dict[Durability, list[Stop]]) -> Table:
    """Return what the rounds come to."""
    rows = []
    for setting, stops in found.items():
        stopped, pushed = tuple(one.stopped for one in stops), tuple(one.pushed for one in stops)
        rows += [
            Row(f"{setting.label}: from SIGTERM to the end", "s", stopped, at_most=MOST_TO_STOP),
            Row("  then from the start to a waiting push", "s", pushed),
        ]
    return Table(f"A clean stop of a server with {format_size(model)} under load", tuple(rows))
