"""`python -m benchmarks heartbeats`: what a thousand workers cost that only say that they live."""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.arguments import positive_float, positive_int
from benchmarks.bystander import BystanderFailed, Latencies, bystander
from benchmarks.columns import align
from benchmarks.crowd import CrowdFailed, living_crowd
from benchmarks.progress import Progress, progress_on
from benchmarks.small_pushes import cpu_seconds
from benchmarks.summary import summarize
from protocol.addresses import split_address
from psctl import LocalCluster

INTERVAL_SECONDS = 1.0
MOST_CORES = 0.25
MOST_SLOWER = 2.0

_PROCESSES = 2
_OTHERS = 100  # connections beside the workers': the bystander, and room to look at the server


@dataclass(frozen=True, slots=True)
class Round:
    """One round: seconds until all had joined, the server's cores, and the bystander's pulls."""

    joined_in: float
    cores: float
    alone: Latencies
    beside: Latencies

    @property
    def slower(self) -> float:
        """How many times as long the 99th percentile of the pulls is beside the workers."""
        return self.beside.p99 / self.alone.p99


def main(arguments: list[str]) -> int:
    """Measure, print the result; 0 where both targets are met."""
    options = _parse(arguments)
    _allow_files(options.workers)
    try:
        with progress_on(sys.stderr) as progress:
            rounds = measure(options.workers, options.repeat, options.seconds, progress)
    except (CrowdFailed, BystanderFailed) as error:
        print(f"heartbeats: {error}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps(as_json(options.workers, rounds)))
    else:
        print(render_text(options.workers, rounds))
    return 0 if _cores(rounds) < MOST_CORES and _slower(rounds) < MOST_SLOWER else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks heartbeats",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workers", type=positive_int, default=1000, metavar="N", help="that only live")
    parser.add_argument("--repeat", type=positive_int, default=3, metavar="N", help="rounds")
    parser.add_argument("--seconds", type=positive_float, default=7.0, metavar="S", help="of each figure")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def _allow_files(workers: int) -> None:
    """Let the children have a file for each connection; the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = workers + 2 * _OTHERS
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def measure(workers: int, repeat: int, seconds: float, progress: Progress) -> list[Round]:
    """Measure `repeat` rounds, each with a new server: the bystander alone, the workers, both.

    Raises CrowdFailed, BystanderFailed where one of them is refused or its process ends.
    """
    rounds = []
    for number in range(1, repeat + 1):
        command = (sys.executable, "-m", "psserver", "--max-connections", str(workers + _OTHERS))
        with LocalCluster(server_command=command) as cluster, bystander(cluster.address) as pull_for:

            def show(what: str, number: int = number) -> None:
                progress(f"round {number} of {repeat}: {what}")

            show("a bystander alone")
            alone = pull_for(seconds)
            show(f"{workers} workers join")
            address = split_address(cluster.address)
            with living_crowd(address, workers, INTERVAL_SECONDS, _PROCESSES) as crowd:
                show(f"{workers} workers alone")
                cores = _cores_of(cluster.servers[0].pid, seconds)
                show("the bystander beside them")
                rounds.append(Round(crowd.joined_in, cores, alone, pull_for(seconds)))
    return rounds


def _cores_of(pid: int, seconds: float) -> float:
    """Return the CPU time that a process takes a second; the bystander only waits meanwhile."""
    before, begin = cpu_seconds(pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.perf_counter() - begin)


def _cores(rounds: Sequence[Round]) -> float:
    return summarize([one.cores for one in rounds]).median


def _slower(rounds: Sequence[Round]) -> float:
    return summarize([one.slower for one in rounds]).median


def render_text(workers: int, rounds: Sequence[Round]) -> str:
    """Return a table for people."""
    cores = summarize([one.cores for one in rounds])
    slower = summarize([one.slower for one in rounds])
    joins = summarize([one.joined_in for one in rounds])
    targets = [
        ["", "target", "median", "least - most"],
        [
            f"server's CPU, {workers:,} workers at {1 / INTERVAL_SECONDS:g} Hz, cores",
            f"< {MOST_CORES:g}",
            f"{cores.median:.3f}",
            f"{cores.least:.3f} - {cores.most:.3f}",
        ],
        [
            "p99 of a 1 KB pull beside them, to alone",
            f"< {MOST_SLOWER:g}",
            f"{slower.median:.2f}",
            f"{slower.least:.2f} - {slower.most:.2f}",
        ],
        [
            f"{workers:,} joins, seconds",
            "",
            f"{joins.median:.2f}",
            f"{joins.least:.2f} - {joins.most:.2f}",
        ],
    ]
    pulls = [["1 KB pull, µs", "median", "p99", "p99.9", "longest", "pulls/s of the median"]]
    for label, series in (
        ("alone", [one.alone for one in rounds]),
        (f"beside {workers:,} workers", [one.beside for one in rounds]),
    ):
        middle = [
            summarize([getattr(one, name) for one in series]).median
            for name in ("median", "p99", "p999", "longest")
        ]
        pulls.append([label, *(f"{1e6 * seconds:,.0f}" for seconds in middle), f"{1 / middle[0]:,.0f}"])
    return f"{align(targets)}\n\n{align(pulls)}\n\n{len(rounds)} rounds; figures are their medians."


def as_json(workers: int, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return every round's figures, to be written as JSON; times in seconds."""
    return {
        "benchmark": "heartbeats",
        "workers": workers,
        "interval": INTERVAL_SECONDS,
        "targets": {"cores": MOST_CORES, "p99_to_alone": MOST_SLOWER},
        "cores": _cores(rounds),
        "p99_to_alone": _slower(rounds),
        "rounds": [asdict(one) for one in rounds],
    }
