"""`python -m benchmarks sizing`: memory and bytes as docs/operations.md foretells them, and as they are."""

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arguments import positive_int
from benchmarks.columns import align
from benchmarks.durability_checkpoints import peak_memory, reset_peak
from benchmarks.durability_cluster import Durability, durable_cluster
from benchmarks.scraped import counter, scrape
from protocol.optimizers import OPTIMIZERS, Optimizer
from psctl import LocalCluster, ProcessFailed
from psserver.optimizers import rule_of
from psworker import Client, connect

ITEM = 4  # bytes of a float32
STALENESS = {"synchronous": 0.0, "asynchronous": math.inf}


@dataclass(frozen=True, slots=True)
class Case:
    """A dense model on one server, and who trains it."""

    parameters: int
    optimizer: str
    mode: str
    workers: int
    durability: str


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a server takes at most, and that a worker sends and receives in a step."""

    peak: float
    sent: float
    received: float


def foretell(case: Case) -> Needs:
    """Return what docs/operations.md says, without the process itself.

    The parameters, a gradient of each worker, and twice what is kept, as an update makes the next version of
    it beside the one that is there. With durability also the version that is being written, and the gradients
    that come in while a checkpoint is cut. `dcsgd` keeps what each worker has read.
    """
    rule = rule_of(_optimizer(case.optimizer))
    kept = len(rule.slots)
    copies = 1 + case.workers + 2 * kept
    if rule.needs_backup:
        copies += case.workers
    if case.durability != "none":
        copies += 1 + kept + case.workers
    values = ITEM * case.parameters
    return Needs(values * copies, values, values)


def measure(case: Case, steps: int, directory: Path) -> Needs:
    """Return what a server takes, less what its process takes before it has a tensor."""
    # All clients are one process: their heartbeats may be late.
    flags = ("--dead-after", "60s", "--hung-after", "600s", "--checkpoint-every", "1s")
    with durable_cluster(directory, Durability(case.durability), flags=flags) as cluster:
        pid = cluster.servers[0].pid
        empty = memory(pid)
        reset_peak(pid)
        before = asyncio.run(_train(cluster, case, steps))
        page, in_all = scrape(cluster.metrics[0]), case.workers * steps
        return Needs(
            peak_memory(pid) - empty,
            (counter(page, "psserver_received_bytes") - before[0]) / in_all,
            (counter(page, "psserver_sent_bytes") - before[1]) / in_all,
        )


async def _train(cluster: LocalCluster, case: Case, steps: int) -> tuple[float, float]:
    """Do the steps; return the bytes that the server had received and sent before."""
    gradient = np.full(case.parameters, 1e-3, np.float32)

    async def work(client: Client) -> None:
        for _ in range(steps):
            await client.push_pull({"model": gradient})

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                connect(cluster.address, "sizing", name=f"w{n}", staleness=STALENESS[case.mode])
            )
            for n in range(case.workers)
        ]
        await clients[0].create("model", np.zeros(case.parameters, np.float32), _optimizer(case.optimizer))
        page = scrape(cluster.metrics[0])
        await asyncio.gather(*map(work, clients))
    return counter(page, "psserver_received_bytes"), counter(page, "psserver_sent_bytes")


def _optimizer(name: str) -> Optimizer:
    return OPTIMIZERS[name]()


def memory(pid: int) -> int:
    """Return the bytes of memory that a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return int(value.removesuffix("kB")) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def main(arguments: list[str]) -> int:
    """Measure and print; 1 where a server failed, 2 for bad arguments."""
    options = _parse(arguments)
    rows = []
    for case in _cases(options):
        print(f"{case.optimizer}, {case.mode}, {case.workers} workers ...", file=sys.stderr)
        try:
            rows.append((case, foretell(case), measure(case, options.steps, options.directory)))
        except ProcessFailed as error:
            print(f"{case}: {error}", file=sys.stderr)
            return 1
    print(json.dumps([_as_json(*row) for row in rows]) if options.format == "json" else render_text(rows))
    return 0


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    for optimizer, mode, workers in product(options.optimizers, STALENESS, options.workers):
        yield Case(options.parameters, optimizer, mode, workers, options.durability)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sizing",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parameters", type=positive_int, default=10_000_000, metavar="N", help="float32")
    parser.add_argument("--optimizers", type=_names, default="sgd,adagrad,adam", metavar="LIST")
    parser.add_argument("--workers", type=_counts, default="1,4", metavar="LIST")
    parser.add_argument("--steps", type=positive_int, default=10, metavar="N", help="of each worker")
    parser.add_argument("--durability", choices=("none", "snapshot", "log"), default="none")
    parser.add_argument("--directory", type=Path, default=".", metavar="DIR", help="where servers write")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := set(names) - OPTIMIZERS.keys():
        known = ", ".join(OPTIMIZERS)
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: unknown; give some of {known}")
    return names


def _counts(text: str) -> tuple[int, ...]:
    return tuple(positive_int(count.strip()) for count in text.split(","))


def _as_json(case: Case, foretold: Needs, measured: Needs) -> dict[str, Any]:
    return {**asdict(case), "foretold": asdict(foretold), "measured": asdict(measured)}


def render_text(rows: Sequence[tuple[Case, Needs, Needs]]) -> str:
    """Return the table: foretold and measured, in MB."""
    heading = ["MB, foretold / measured", "workers", "at most", "sent a step", "received a step"]
    lines = [heading]
    for case, foretold, measured in rows:
        pairs = zip(asdict(foretold).values(), asdict(measured).values(), strict=True)
        cells = [f"{one / 1e6:.0f} / {other / 1e6:.0f}" for one, other in pairs]
        lines.append([f"{case.optimizer}, {case.mode}", str(case.workers), *cells])
    first = rows[0][0]
    model = f"{first.parameters:,} parameters of float32 on one server, durability {first.durability}"
    return f"{model}\n\n{align(lines)}"
