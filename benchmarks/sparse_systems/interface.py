"""A table of rows that a system holds, what is asked of it, and what it took."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from protocol.tables import hash_keys

Rows = npt.NDArray[np.float32]
Distribution = Literal["uniform", "zipf"]

LEARNING_RATE = 0.1
"""Of Adagrad, which is the optimizer of all tables here; its accumulators begin with 0."""


@dataclass(frozen=True, slots=True)
class TableSize:
    """`rows` rows of `dim` float32, asked for as `keys` says."""

    rows: int
    dim: int
    keys: Distribution = "uniform"

    @property
    def row_bytes(self) -> int:
        """Bytes of a key and its row on the wire."""
        return 8 + 4 * self.dim


class Batch(NamedTuple):
    """What one request names, repeats included: the same rows for each kind of system.

    `numbers` is int64 `(n,)`, below the table's number of rows, for who keeps them in an array; `keys` is
    uint64 `(n,)`, hashes of the numbers, for who takes any key.
    """

    numbers: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, numbers: npt.NDArray[np.int64]) -> Self:
        """Return the batch of the rows with these numbers."""
        return cls(numbers, hash_keys(numbers.astype(np.uint64) + np.uint64(1)))


class SparseTable(Protocol):
    """The blocking calls of a client on one table; gradients and rows are float32 `(n, dim)`."""

    def push(self, batch: Batch, gradients: Rows) -> None:
        """Take an Adagrad step in the rows of `batch`, one for all gradients of the same row."""

    def pull(self, batch: Batch) -> Rows:
        """Return the rows of `batch`."""

    def push_pull(self, batch: Batch, gradients: Rows, wanted: Batch) -> Rows:
        """Push, then return the rows of `wanted`."""


class Taken(NamedTuple):
    """What one operation took, as a mean.

    `seconds` is wall time; `client` and `servers` are seconds of CPU time, of each server that took any.
    """

    seconds: float
    client: float
    servers: tuple[float, ...]
