"""`python -m benchmarks small-pushes`: 1 KB requests a second over many connections."""

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from benchmarks.arguments import positive_float, positive_int
from benchmarks.columns import align
from benchmarks.progress import Progress, progress_on
from benchmarks.small_pushes import Load, LoadFailed, LoadResult, run_load
from benchmarks.summary import speed_ratios, summarize
from benchmarks.systems.uvloop_echo import echo_server
from benchmarks.systems.verification import make_gradient
from protocol.frames import PRELUDE, VERSION, encode_prelude
from protocol.messages import Hello, Join, Push, encode_request
from protocol.tensors import Part
from psctl import LocalCluster
from psworker import Add
from psworker.sync import connect

_KILOBYTE = 1000

# One series for each pair of target and number of connections, a result a round.
Results = dict[tuple[str, int], list[LoadResult]]


@dataclass(frozen=True, slots=True)
class Target:
    """A row: what it is called, and how its server is started and what it is sent."""

    label: str
    start: Callable[[], AbstractContextManager[Load]]


@contextmanager
def _echo() -> Iterator[Load]:
    frame = make_gradient(_KILOBYTE).tobytes()
    with echo_server() as server:
        yield Load(server.address, server.pid, request=frame, reply=len(frame))


class _Asyncps:
    """What each connection to a server of this project sends: hello, join, then one push after the other."""

    def __init__(self, elements: int) -> None:
        self._hello = _frame(encode_request(1, Hello((VERSION,), "benchmark")))
        push = Push((Part("w", "float32", elements),), step=0, seq=_TEMPLATE)
        payload = make_gradient(elements * 4).tobytes()
        before, after = _frame(encode_request(3, push), payload).split(_TEMPLATE.to_bytes(4, "big"))
        self._before, self._after = before, after

    def __call__(self, connection: int, number: int) -> bytes:
        if number == 0:
            return self._hello
        if number == 1:  # each connection is a worker of its own, which numbers its pushes
            return _frame(encode_request(2, Join(secrets.token_hex(8), "small")))
        return self._before + (number - 1).to_bytes(4, "big") + self._after


_TEMPLATE = 0x7F6E5D4C  # travels as these four bytes


def _frame(header: bytes, payload: bytes = b"") -> bytes:
    return encode_prelude(len(header), len(payload)) + header + payload


def _complete_replies(received: bytes) -> int:
    complete, begin = 0, 0
    while begin + PRELUDE.size <= len(received):
        _, _, _, header, payload = PRELUDE.unpack_from(received, begin)
        begin += PRELUDE.size + header + payload
        complete += begin <= len(received)
    return complete


# The workers of a load that is over are neither missed nor buried while the next one is measured.
PATIENT = ("--heartbeat-interval", "60m", "--dead-after", "60m")


@contextmanager
def _asyncps() -> Iterator[Load]:
    with LocalCluster(servers=1, server_flags=PATIENT) as cluster, small_pushes_to(cluster) as load:
        yield load


@contextmanager
def small_pushes_to(cluster: LocalCluster) -> Iterator[Load]:
    """Yield a load of 1 KB pushes to a cluster of one `PATIENT` server.

    Raises LoadFailed in the end where nothing was added.
    """
    elements = _KILOBYTE // 4
    with connect(cluster.address, "small") as client:
        client.create("w", np.zeros(elements, np.float32), optimizer=Add())
        host, _, port = cluster.address.rpartition(":")
        server = cluster.servers[0].pid
        asyncps = _Asyncps(elements)
        yield Load((host, int(port)), server, request=asyncps, reply=_complete_replies, greetings=2)
        if client.pull("w")[0] == 0:
            raise LoadFailed("asyncps: nothing was added")


CEILING = Target("uvloop echo (ceiling)", _echo)

TARGETS = (CEILING, Target("asyncps, 1 shard", _asyncps))


def main(arguments: list[str]) -> int:
    """Measure, print the result on standard output, and return the exit status."""
    options = _parse(arguments)
    try:
        with progress_on(sys.stderr) as progress:
            results = measure(options.connections, options.repeat, options.seconds, progress)
    except LoadFailed as error:
        print(f"small-pushes: {error}", file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps({"benchmark": "small-pushes", **as_json(results)}))
    else:
        print(render_text(results))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks small-pushes",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--connections",
        type=_counts,
        default="16,500",
        metavar="LIST",
        help="how many at a time, separated by commas",
    )
    parser.add_argument("--repeat", type=positive_int, default=3, metavar="N", help="rounds")
    parser.add_argument("--seconds", type=positive_float, default=2.0, metavar="S", help="of each load")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the result")
    return parser.parse_args(arguments)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(positive_int, text.split(","))))


def measure(counts: Sequence[int], repeat: int, seconds: float, progress: Progress) -> Results:
    """Load each target over each number of connections, in turns, `repeat` times.

    Raises LoadFailed where a target does not answer.
    """
    results: Results = {(target.label, count): [] for target in TARGETS for count in counts}
    with ExitStack() as stack:
        loads = [(target, stack.enter_context(target.start())) for target in TARGETS]
        for number, count, (target, load) in product(range(1, repeat + 1), counts, loads):
            progress(f"round {number} of {repeat}: {count} connections, {target.label}")
            results[target.label, count].append(run_load(load, count, seconds))
    return results


def _ratios(results: Results, label: str, count: int) -> list[float]:
    series, ceiling = (
        [1 / result.pushes_per_second for result in results[name, count]] for name in (label, CEILING.label)
    )
    return speed_ratios(series, ceiling)


def render_text(results: Results) -> str:
    """Return a table for people."""
    counts = list(dict.fromkeys(count for _, count in results))
    lines = [["1 KB pushes/s"], ["server"]]
    for count in counts:
        lines[0].extend(["", f"{count} connections", "", ""])
        lines[1].extend(["median", "least - most", "to echo", "per CPU second"])
    for target in TARGETS:
        lines.append([target.label])
        for count in counts:
            series = results[target.label, count]
            rates = summarize([result.pushes_per_second for result in series])
            ratio = summarize(_ratios(results, target.label, count)).median
            cost = summarize([result.pushes_per_cpu_second for result in series]).median
            spread = f"{rates.least:,.0f} - {rates.most:,.0f}"
            lines[-1].extend([f"{rates.median:,.0f}", spread, f"{ratio:.0%}", f"{cost:,.0f}"])
    return align(lines)


def as_json(results: Results) -> dict[str, Any]:
    """Return every round's figures, to be written as JSON."""
    series = [
        {
            "server": label,
            "connections": count,
            "rounds": [asdict(result) for result in rounds],
            "ratios_to_ceiling": _ratios(results, label, count),
        }
        for (label, count), rounds in results.items()
    ]
    return {"ceiling": CEILING.label, "series": series}
