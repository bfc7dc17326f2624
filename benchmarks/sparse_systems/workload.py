"""Which rows are asked for, and how long it takes."""

import os
from collections.abc import Callable, Iterator
from time import perf_counter, process_time
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.pinning import descendants
from benchmarks.small_pushes import cpu_seconds
from benchmarks.sparse_systems.interface import Batch, Rows, SparseTable, TableSize, Taken
from benchmarks.systems.closed_loop import LEAST_OPERATIONS, WARM_UP_SHARE
from benchmarks.systems.interface import Operation

T = TypeVar("T")

_EXPONENT = 1.1  # of Zipf's law, as in logs of clicks


def draw_batches(size: TableSize, batch: int, seed: int = 0) -> Iterator[Batch]:
    """Yield batches of `batch` row numbers each, drawn with replacement, without an end."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(size.rows)  # frequent rows are not neighbours
    while True:
        if size.keys == "uniform":
            yield Batch.of(rng.integers(0, size.rows, batch))
        else:
            yield Batch.of(places[zipf_ranks(rng.random(batch), size.rows, _EXPONENT)])


def every_row(size: TableSize, batch: int) -> list[Batch]:
    """Return batches that name each row once."""
    return [Batch.of(np.arange(begin, min(begin + batch, size.rows))) for begin in range(0, size.rows, batch)]


def zipf_ranks(uniform: npt.NDArray[np.float64], count: int, exponent: float) -> npt.NDArray[np.int64]:
    """Return ranks from 0 to `count` - 1, the more frequent the lower, of uniform deviates in [0, 1).

    Rank r has the mass of (r + 1) ... (r + 2) under the density x**-exponent, which is Zipf's law but for
    the first few ranks; `exponent` is not 1.
    """
    power = 1 - exponent
    span = float(count + 1) ** power - 1
    ranks: npt.NDArray[np.int64] = np.minimum((1 + uniform * span) ** (1 / power) - 1, count - 1).astype(
        np.int64
    )
    return ranks


def make_gradients(batch: int, dim: int) -> Rows:
    """Return normal deviates, float32 `(batch, dim)`."""
    return np.random.default_rng(1).standard_normal((batch, dim), np.float32)


class TimedTable:
    """Operations on a table, one outstanding at a time, each on a batch that was never asked for before.

    A list of keys that the servers remember, such as one that was just pulled, may be named in fewer bytes;
    with new ones only `push_pull` does that, which pushes to the rows that the last one brought.
    """

    def __init__(self, table: SparseTable, size: TableSize) -> None:
        self._table = table
        self._size = size
        self._seed = 0

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> Taken:
        """Return what one `operation` takes on batches of `nbytes` bytes of keys and rows."""
        batch = nbytes // self._size.row_bytes
        self._seed += 1
        batches = draw_batches(self._size, batch, self._seed)
        gradients = make_gradients(batch, self._size.dim)
        table, current = self._table, next(batches)

        def push_pull(wanted: Batch) -> None:
            nonlocal current
            table.push_pull(current, gradients, wanted)
            current = wanted

        operations: dict[Operation, Callable[[Batch], object]] = {
            "push": lambda batch: table.push(batch, gradients),
            "pull": table.pull,
            "push_pull": push_pull,
        }
        return time_operation(operations[operation], batches, seconds)


def time_operation(operation: Callable[[T], object], inputs: Iterator[T], seconds: float) -> Taken:
    """Return what `operation` takes, repeated for `seconds` after a warm-up; its input is not timed."""
    _repeat(operation, inputs, 1, seconds * WARM_UP_SHARE)
    servers = descendants(os.getpid())
    before = [cpu_seconds(pid) for pid in servers]
    done, elapsed, client = _repeat(operation, inputs, LEAST_OPERATIONS, seconds)
    after = [cpu_seconds(pid) for pid in servers]
    busy = [(end - start) / done for start, end in zip(before, after, strict=True) if end > start]
    return Taken(elapsed / done, client / done, tuple(busy))


def _repeat(
    operation: Callable[[T], object], inputs: Iterator[T], least: int, seconds: float
) -> tuple[int, float, float]:
    """Return how often it was done, and its seconds of wall and of CPU time."""
    done, elapsed, busy = 0, 0.0, 0.0
    while done < least or elapsed < seconds:
        one = next(inputs)
        busy_before, begin = process_time(), perf_counter()
        operation(one)
        elapsed += perf_counter() - begin
        busy += process_time() - busy_before
        done += 1
    return done, elapsed, busy
