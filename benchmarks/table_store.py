"""`python -m benchmarks.table_store`: the sparse table store alone, in one process, without a network.

Keys are random; a push is the making of a version and its swap. Each figure is the median of many calls, and
beside it the fastest one, which tells what the machine does when nothing else runs on it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from protocol.messages import Spec
from protocol.optimizers import Adagrad, spec_of
from protocol.tables import HASH_SLOTS, Keys, Table
from psserver.optimizers import Moment, rule_of
from psserver.store.index import Index, Move
from psserver.store.kernels.compiled import compile_kernels
from psserver.store.kernels.numpy_kernels import NumpyKernels
from psserver.store.sparse import RowsGradient, SparseBlock

DIM = 16
BATCH = 65_536
REPEATS = 60
BYTES_OF_A_ROW = DIM * 4 + DIM * 4 + 8
"""Values, slots and key."""


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table_store", description=__doc__)
    parser.add_argument("--rows", type=float, nargs="*", default=[1e6, 20e6])
    parser.add_argument("--growth", type=float, default=10e6, help="rows up to which growth is watched")
    parser.add_argument("--kernels", choices=["numba", "numpy"], default="numba")
    options = parser.parse_args(arguments)
    for rows in options.rows:
        _measure_size(options.kernels, int(rows))
    _measure_growth(options.kernels, int(options.growth))
    return 0


def _table(kernels: str) -> SparseBlock:
    optimizer = Adagrad(0.1)
    spec = Spec("float32", (HASH_SLOTS,), spec_of(optimizer), Table(DIM))
    rule = rule_of(optimizer)
    return SparseBlock(
        "t", spec, 1, kernels=compile_kernels(rule, "float32") if kernels == "numba" else NumpyKernels(rule)
    )


def _keys_of(numbers: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Keys:
    """Return keys that are as good as random, of which only their numbers have to be remembered."""
    keys: Keys = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(12345)
    return keys


def _fill(block: SparseBlock, rows: int) -> Iterator[None]:
    random = np.random.default_rng(1)
    for begin in range(0, rows, BATCH):
        keys = _keys_of(np.arange(begin, min(begin + BATCH, rows), dtype=np.uint64))
        gradient = random.standard_normal((keys.size, DIM), np.float32)
        _push(block, RowsGradient(keys, gradient))
        yield


def _push(block: SparseBlock, gradient: RowsGradient) -> None:
    block.swap(block.next_version(gradient, Moment()))


def _measure_size(kernels: str, rows: int) -> None:
    block = _table(kernels)
    before = _resident()
    for _ in _fill(block, rows):
        pass
    random = np.random.default_rng(2)
    out = np.empty((BATCH, DIM), np.float32)
    gradient = random.standard_normal((BATCH, DIM), np.float32)
    figures: dict[str, list[float]] = {"find": [], "gather": [], "make version": [], "swap": [], "push": []}
    found = np.empty(BATCH, np.int64)
    for _ in range(REPEATS):
        keys = _keys_of(random.integers(0, rows, BATCH, np.uint64))
        figures["find"].append(_timed(partial(block.kernels.find, block._index, keys, found)))
        keys = _keys_of(random.integers(0, rows, BATCH, np.uint64))
        figures["gather"].append(_timed(partial(block.gather, keys, out)))
        pushed = RowsGradient(_keys_of(random.integers(0, rows, BATCH, np.uint64)), gradient.copy())
        begun = perf_counter()
        version = block.next_version(pushed, Moment())
        made = perf_counter()
        block.swap(version)
        swapped = perf_counter()
        for name, seconds in (
            ("make version", made - begun),
            ("swap", swapped - made),
            ("push", swapped - begun),
        ):
            figures[name].append(seconds)
    print(f"{rows:,} rows of {DIM} float32, adagrad, {kernels}: ns/row, median (fastest)")
    for name, times in figures.items():
        per_row = [seconds / BATCH * 1e9 for seconds in times]
        print(f"  {name:13} {statistics.median(per_row):6.1f} ({min(per_row):.1f})")
    exact = rows * BYTES_OF_A_ROW
    grown = (_resident() - before) / exact
    print(f"  memory / bytes of rows: {block.nbytes / exact:.3f} counted, {grown:.3f} resident")


def _measure_growth(kernels: str, rows: int) -> None:
    """Watch the longest piece of growth: a segment moved, and a batch of nothing but new keys."""
    block = _table(kernels)
    moves: list[float] = []
    room = Index.make_room

    def timed(self: Index, segment: int, more: int, move: Move) -> None:
        moves.append(_timed(partial(room, self, segment, more, move)))

    Index.make_room = timed  # type: ignore[method-assign]
    batches = []
    filling = _fill(block, rows)
    try:
        while True:
            begun, used = perf_counter(), process_time()
            if next(filling, filling) is filling:
                break
            batches.append((perf_counter() - begun, process_time() - used))
    finally:
        Index.make_room = room  # type: ignore[method-assign]
    worst, used = max(batches)
    median = statistics.median(seconds for seconds, _ in batches)
    print(f"growing to {rows:,} rows, {BATCH:,} new keys at a time, {kernels}")
    print(f"  segments moved: {len(moves):,}; longest {max(moves) * 1e3:.2f} ms")
    print(f"  a batch, with the gradients made up: median {median * 1e3:.1f} ms,")
    print(f"    longest {worst * 1e3:.1f} ms (of which the processor worked {used * 1e3:.1f})")


def _timed(work: Callable[[], None]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
