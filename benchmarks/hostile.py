"""`python -m benchmarks hostile`: what 10,000 hostile connections cost a server and its clients."""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.arguments import positive_float, positive_int
from benchmarks.bystander import BystanderFailed, Latencies, bystander
from benchmarks.columns import align
from benchmarks.hostile_peers import (
    KINDS,
    TARGET,
    Hostile,
    HostileFailed,
    Outcome,
    hostile_peers,
    inputs,
    shares,
)
from benchmarks.progress import Progress, progress_on
from benchmarks.scraped import scrape
from protocol.addresses import split_address
from protocol.daemon.descriptors import allow_descriptors
from protocol.errors import PSError
from psctl import LocalCluster
from psworker.asking import fetch_status
from psworker.sync import connect

MOST_GROWTH = 64 * 1024 * 1024
MOST_SLOWER = 2.0
LEAST_INPUTS = 2000
SLACK_SECONDS = 3.0
"""A server looks once a second who is late, and a peer whether it was shown out; beyond that comes what
the peers themselves were late in noticing."""


@dataclass(slots=True)
class Operator:
    """Who asks for the status all the while: how often, in vain, and the longest time that it took."""

    asked: int = 0
    failed: int = 0
    longest: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What the hostile connections cost, and what became of them."""

    counts: Mapping[str, int]
    distinct: int
    outcomes: Mapping[str, Outcome]
    within: Mapping[str, float]
    growth: int
    alone: Latencies
    beside: Latencies
    defects: int
    log: str
    lag: float = 0.0
    operator: Operator = field(default_factory=Operator)

    @property
    def slower(self) -> float:
        """How many times as long the 99th percentile of the pulls is beside the hostile peers."""
        return self.beside.p99 / self.alone.p99

    def late(self, name: str) -> int:
        """Return how many peers of a kind lasted longer than the server bears with them."""
        outcome = self.outcomes[name]
        limit = self.within[name] + SLACK_SECONDS + 3 * self.lag  # connected, sent, and found to be gone
        return outcome.unfinished + sum(seconds > limit for seconds in outcome.lasted)

    def problems(self) -> list[str]:
        """Return what is not as it has to be."""
        found = []
        if self.defects or "Traceback" in self.log:
            found.append(f"{self.defects} requests met defects of the server, or its log has a traceback")
        if self.growth >= MOST_GROWTH:
            found.append(f"the server grew by {self.growth / 2**20:.0f} MiB")
        late = {name: count for name in self.outcomes if (count := self.late(name))}
        if late:
            found.append(f"not gone in time: {late}")
        if self.slower >= MOST_SLOWER:
            found.append(f"the bystander's p99 is {self.slower:.2f} times what it was")
        if self.operator.failed:
            found.append(
                f"{self.operator.failed} of {self.operator.asked} times an operator was not answered"
            )
        return found


def main(arguments: list[str]) -> int:
    """Measure, print the result; 0 where all is as it has to be."""
    options = _parse(arguments)
    allow_descriptors(options.connections + 1000)
    counts = shares(options.connections)
    try:
        with progress_on(sys.stderr) as progress:
            result = measure(counts, options.seconds, options.idle_timeout, options.write_timeout, progress)
    except (HostileFailed, BystanderFailed) as error:
        print(f"hostile: {error}", file=sys.stderr)
        return 1
    print(json.dumps(as_json(result)) if options.format == "json" else render_text(result))
    problems = result.problems()
    if sum(counts.values()) >= 10_000 and result.distinct < LEAST_INPUTS:
        problems.append(f"only {result.distinct} different inputs")
    for problem in problems:
        print(f"hostile: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hostile",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--connections", type=positive_int, default=10_000, metavar="N", help="hostile ones")
    parser.add_argument(
        "--seconds", type=positive_float, default=120.0, metavar="S", help="over which they begin"
    )
    parser.add_argument(
        "--idle-timeout", type=positive_float, default=60.0, metavar="S", help="of the server"
    )
    parser.add_argument(
        "--write-timeout", type=positive_float, default=30.0, metavar="S", help="of the server"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def measure(
    counts: Mapping[str, int], seconds: float, idle: float, write: float, progress: Progress
) -> Result:
    """Let peers loose on a new server, beside a bystander that was measured alone before.

    Raises HostileFailed, BystanderFailed where their process ends.
    """
    flags = ("--idle-timeout", f"{idle:g}s", "--write-timeout", f"{write:g}s")
    with (
        LocalCluster(server_flags=flags) as cluster,
        connect(cluster.address, TARGET[0]) as target,
        bystander(cluster.address) as pull_for,
    ):
        server, address = cluster.servers[0], split_address(cluster.address)
        target.create(TARGET[1], np.zeros(4_000_000, np.float32))
        progress("a bystander alone")
        alone = pull_for(min(seconds, 10.0))
        _forget_peak(server.pid)
        before = _peak_bytes(server.pid)
        hostile = Hostile(address, dict(counts), seconds, idle, write)
        with _operator_at(address) as operator, hostile_peers(hostile) as report:
            progress(f"the bystander beside {sum(counts.values()):,} hostile connections")
            beside = pull_for(seconds)
            progress("until the last of them is gone")
            found = report()
        growth = _peak_bytes(server.pid) - before
        page = scrape(cluster.metrics[0])
        distinct = sum(len(inputs(KINDS[name], count)) for name, count in counts.items())
        return Result(
            counts=counts,
            distinct=distinct,
            outcomes=found.outcomes,
            lag=found.lag,
            within={name: hostile.within(KINDS[name]) for name in counts},
            growth=growth,
            alone=alone,
            beside=beside,
            defects=_defects(page),
            log=server.log_tail(200),
            operator=operator,
        )


@contextmanager
def _operator_at(address: tuple[str, int]) -> Iterator[Operator]:
    """Ask for the status, once a second, on connections of their own."""
    operator, over = Operator(), threading.Event()
    thread = threading.Thread(target=_ask, args=(address, operator, over))
    thread.start()
    try:
        yield operator
    finally:
        over.set()
        thread.join()


def _ask(address: tuple[str, int], operator: Operator, over: threading.Event) -> None:
    import asyncio

    while not over.wait(1.0):
        begin = time.perf_counter()
        operator.asked += 1
        try:
            asyncio.run(fetch_status(*address))
        except PSError:
            operator.failed += 1
        operator.longest = max(operator.longest, time.perf_counter() - begin)


def _peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status tells no peak")


def _forget_peak(pid: int) -> None:
    """Have the peak of a process be what it has now."""
    with open(f"/proc/{pid}/clear_refs", "w") as control:
        control.write("5")


def _defects(page: str) -> int:
    found = re.findall(r'psserver_requests_total\{.*status="internal"\} (\S+)', page)
    return int(sum(map(float, found)))


def render_text(result: Result) -> str:
    """Return tables for people."""
    peers = [["hostile connections", "peers", "refused", "median s", "longest s", "may last s", "late"]]
    for name, outcome in result.outcomes.items():
        lasted = outcome.lasted
        peers.append(
            [
                name,
                f"{outcome.peers:,}",
                f"{outcome.refused:,}" if outcome.refused else "-",
                f"{np.median(lasted):.2f}" if lasted else "-",
                f"{max(lasted):.2f}" if lasted else "-",
                f"{result.within[name]:g}" if lasted else "leave",
                f"{result.late(name)}",
            ]
        )
    operator = result.operator
    targets = [
        ["", "target", "measured"],
        [
            "growth of the server's peak memory, MiB",
            f"< {MOST_GROWTH >> 20}",
            f"{result.growth / 2**20:.1f}",
        ],
        ["p99 of a 1 KB pull beside them, to alone", f"< {MOST_SLOWER:g}", f"{result.slower:.2f}"],
        ["different inputs", f">= {LEAST_INPUTS:,}", f"{result.distinct:,}"],
        ["requests that met a defect of the server", "0", f"{result.defects}"],
        ["status asked for once a second, not answered", "0", f"{operator.failed} of {operator.asked}"],
        ["longest answer to that, seconds", "", f"{operator.longest:.2f}"],
        ["hostile peers late themselves by, seconds", "", f"{result.lag:.2f}"],
    ]
    pulls = [["1 KB pull, µs", "median", "p99", "p99.9", "longest"]]
    for label, one in (("alone", result.alone), ("beside them", result.beside)):
        times = (one.median, one.p99, one.p999, one.longest)
        pulls.append([label, *(f"{1e6 * seconds:,.0f}" for seconds in times)])
    cores = f"{os.cpu_count()} processors, shared by the server, the bystander and the hostile peers."
    return f"{align(targets)}\n\n{align(peers)}\n\n{align(pulls)}\n\n{cores}"


def as_json(result: Result) -> dict[str, Any]:
    """Return all figures, to be written as JSON; times in seconds."""
    return {
        "benchmark": "hostile",
        "growth_bytes": result.growth,
        "p99_to_alone": result.slower,
        "distinct_inputs": result.distinct,
        "defects": result.defects,
        "lag": result.lag,
        "operator": asdict(result.operator),
        "alone": asdict(result.alone),
        "beside": asdict(result.beside),
        "peers": {
            name: {
                "peers": outcome.peers,
                "refused": outcome.refused,
                "late": result.late(name),
                "may_last": result.within[name],
                "longest": max(outcome.lasted, default=None),
            }
            for name, outcome in result.outcomes.items()
        },
        "problems": result.problems(),
    }
