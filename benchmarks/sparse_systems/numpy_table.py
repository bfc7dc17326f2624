"""No server at all: the rows in an array of this process, for who has room for them there."""

import numpy as np
import numpy.typing as npt

from benchmarks.sparse_systems.interface import LEARNING_RATE, Batch, Rows, TableSize, Taken
from benchmarks.sparse_systems.verification import check_adagrad, fill
from benchmarks.sparse_systems.workload import TimedTable
from benchmarks.systems.interface import Operation


class NumpyTable:
    """Rows by their number, without an index."""

    def __init__(self, size: TableSize) -> None:
        self._values = np.zeros((size.rows, size.dim), np.float32)
        self._squares = np.zeros((size.rows, size.dim), np.float32)

    def push(self, batch: Batch, gradients: Rows) -> None:
        """Take an Adagrad step in the rows of `batch`."""
        rows, total = sum_by_row(batch.numbers, gradients)
        squares = self._squares.take(rows, axis=0)
        squares += total * total
        self._squares[rows] = squares
        np.sqrt(squares, out=squares)
        total *= LEARNING_RATE
        total /= squares
        self._values[rows] = np.subtract(self._values.take(rows, axis=0), total, out=total)

    def pull(self, batch: Batch) -> Rows:
        """Return the rows of `batch`."""
        return self._values.take(batch.numbers, axis=0)

    def push_pull(self, batch: Batch, gradients: Rows, wanted: Batch) -> Rows:
        """Push, then return the rows of `wanted`."""
        self.push(batch, gradients)
        return self.pull(wanted)


def sum_by_row(numbers: npt.NDArray[np.int64], gradients: Rows) -> tuple[npt.NDArray[np.int64], Rows]:
    """Return the distinct of `numbers`, ascending, and the sum of the gradients of each.

    Each row's first gradient is taken as it is, and only the repeats are added: several times faster than
    to add them all, and `take` is several times faster than an index.
    """
    order = numbers.argsort()
    ordered = numbers.take(order)
    is_first = np.diff(ordered, prepend=-1) != 0
    total = gradients.take(order[is_first], axis=0)
    repeats = np.flatnonzero(~is_first)
    elements = (is_first.cumsum()[repeats, None] - 1) * gradients.shape[1] + np.arange(gradients.shape[1])
    # Flat, because `add.at` is slow in more than one dimension.
    np.add.at(total.reshape(-1), elements.reshape(-1), gradients.take(order[repeats], axis=0).reshape(-1))
    return ordered[is_first], total


class InProcess:
    """The system: nothing to start, nothing to stop."""

    def __init__(self, size: TableSize) -> None:
        self._size = size

    def start(self) -> None:
        """Make the table and check what it computes."""
        table = NumpyTable(self._size)
        fill(table, self._size)
        check_adagrad(table, self._size)
        self._timed = TimedTable(table, self._size)

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> Taken:
        """Return what one `operation` takes on batches of `nbytes` bytes."""
        return self._timed.measure(operation, nbytes, seconds)

    def stop(self) -> None:
        """Nothing outlives this process."""
