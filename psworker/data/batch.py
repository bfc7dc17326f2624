"""A batch of examples, and mini-batches cut from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples as rows.

    `x`: (n, features) float32, C-contiguous. `y`: (n,) int64 class indices where the source knows its
    classes, otherwise (n,) float32.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32] | npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: npt.NDArray[np.intp]) -> Self:
        """The rows `indices`, in that order, as a new batch."""
        return type(self)(self.x[indices], self.y[indices])


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
