"""Proof, before a table is timed, that what is pushed arrives."""

from itertools import islice

import numpy as np

from benchmarks.sparse_systems.interface import LEARNING_RATE, Batch, Rows, SparseTable, TableSize
from benchmarks.sparse_systems.workload import draw_batches, every_row
from benchmarks.systems.verification import WrongResult

FILL_BATCH = 65_536

_SAMPLE = 1000


def fill(table: SparseTable, size: TableSize) -> None:
    """Make every row of a new table by a gradient of ones: from then on a batch makes no row."""
    for batch in every_row(size, FILL_BATCH):
        table.push(batch, np.ones((len(batch.keys), size.dim), np.float32))


def check_adagrad(table: SparseTable, size: TableSize) -> None:
    """Push twice to a table that is just filled, and look at the rows after each.

    Raises WrongResult where they are not Adagrad's.
    """
    one, other = islice(draw_batches(size, min(_SAMPLE, size.rows)), 2)
    gradients = np.random.default_rng(3).standard_normal((len(one.numbers), size.dim), np.float32)
    expected = _Adagrad(size)
    _check("pull", table.pull(one), expected.pull(one))
    table.push(one, gradients)
    expected.push(one, gradients)
    _check("push, then pull", table.pull(other), expected.pull(other))
    _check("push, then pull", table.pull(one), expected.pull(one))
    expected.push(other, gradients)
    _check("push_pull", table.push_pull(other, gradients, one), expected.pull(one))


class _Adagrad:
    """The rule as it is written: g summed by row, a <- a + g * g, p <- p - lr * g / sqrt(a); in float64."""

    def __init__(self, size: TableSize) -> None:
        self._values = np.full((size.rows, size.dim), -LEARNING_RATE)
        self._squares = np.ones((size.rows, size.dim))

    def push(self, batch: Batch, gradients: Rows) -> None:
        total = np.zeros_like(self._values)
        np.add.at(total, batch.numbers, gradients)
        self._squares += total * total
        self._values -= LEARNING_RATE * total / np.sqrt(self._squares)

    def pull(self, batch: Batch) -> Rows:
        return self._values[batch.numbers].astype(np.float32)


def _check(operation: str, got: Rows, wanted: Rows) -> None:
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-4, atol=1e-6):
        raise WrongResult(f"{operation}: the rows are not what Adagrad makes of what was pushed")
