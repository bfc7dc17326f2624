"""A batch of examples, and mini-batches cut from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys

Design: TypeAlias = Any
"""An (n, features) float32 array, or a SciPy CSR array; `@`, `.T` and `.shape` of both are the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples as rows.

    `x`: (n, features) float32, C-contiguous; or, of hashed features, a SciPy CSR array (n, k) float32
    whose column j is the feature `keys[j]`. `y`: (n,) int64 class indices where the source knows its
    classes, otherwise (n,) float32. `keys`: (k,) uint64, ascending, the hashed features that these rows
    have; None: the features are dense. `weight`: (n,) float32, what each row counts; None: 1 each.
    """

    x: Design
    y: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    keys: Keys | None = None
    weight: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def total(self) -> float:
        """What the rows count together: their number where they have no weights."""
        return float(len(self)) if self.weight is None else float(self.weight.sum(dtype=np.float64))

    def take(self, indices: npt.NDArray[np.intp]) -> Self:
        """The rows `indices`, in that order, as a new batch, with the features that they have."""
        weight = None if self.weight is None else self.weight[indices]
        x = self.x[indices]
        if self.keys is None:
            return type(self)(x, self.y[indices], None, weight)
        used, columns = np.unique(x.indices, return_inverse=True)
        x.indices = columns.astype(x.indices.dtype, copy=False)
        x.resize((len(indices), len(used)))
        return type(self)(x, self.y[indices], self.keys[used], weight)


def minibatches(batch: Batch, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Cut `batch`, shuffled by `rng`, into batches of `size` rows; the last one may be smaller.

    Raises ValueError if `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a mini-batch has at least 1 row")
    order = rng.permutation(len(batch))
    for start in range(0, len(batch), size):
        yield batch.take(order[start : start + size])


def require_rows(batch: Batch) -> None:
    """Raise ValueError for a batch without rows: there is no mean over nothing."""
    if not len(batch):
        raise ValueError("the batch has no rows; skip empty batches")
