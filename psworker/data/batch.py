"""A batch of examples, and mini-batches cut from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys

Design: TypeAlias = Any
"""An (n, features) float32 array, or a SciPy CSR array; `@`, `.T` and `.shape` of both are the same."""

_Array: TypeAlias = npt.NDArray[Any]


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

    def take(self, indices: npt.NDArray[np.intp]) -> Batch:
        """The rows `indices`, in that order, as a new batch, with the features that they have."""
        weight = None if self.weight is None else self.weight[indices]
        if self.keys is None:
            # Of whole rows `take` is faster than indexing, but SciPy's arrays have no such method.
            x = self.x.take(indices, axis=0) if isinstance(self.x, np.ndarray) else self.x[indices]
            return Batch(x, self.y[indices], None, weight)
        columns, values, ends = _rows_of(self.x, indices)
        used, columns = _renumbered(columns, len(self.keys))
        x = type(self.x)((values, columns, ends), shape=(len(indices), len(used)))
        return Batch(x, self.y[indices], self.keys[used], weight)


def _rows_of(x: Any, indices: npt.NDArray[np.intp]) -> tuple[_Array, _Array, _Array]:
    """Columns and values of some rows of a CSR array, and where each row's begin and end.

    SciPy's own indexing takes as long for one row as this does for a hundred.
    """
    starts = x.indptr[indices].astype(np.intp)  # NumPy would convert other indices on each use
    counts = x.indptr[indices + 1] - starts
    ends = np.zeros(len(indices) + 1, np.intp)
    np.cumsum(counts, out=ends[1:])
    width = len(x.indices) // max(x.shape[0], 1)
    if (starts == indices * width).all() and (counts == width).all():
        # Where all rows have as many, each is copied in one piece.
        whole = x.shape[0], width
        columns, values = (
            array[: x.shape[0] * width].reshape(whole).take(indices, axis=0).reshape(-1)
            for array in (x.indices, x.data)
        )
        return columns.astype(np.intp), values, ends
    places = np.repeat(starts - ends[:-1], counts)
    places += np.arange(len(places))
    return x.indices[places].astype(np.intp), x.data[places], ends


def _renumbered(columns: _Array, count: int) -> tuple[_Array, _Array]:
    """Which of `count` columns there are, ascending, and the place of each of `columns` among them.

    Sorted are only those that are there, each once, and not all of `columns`: each writes its own number
    where its column has a place, and the one that is found there afterwards stands for the column.
    """
    places = np.empty(count, np.intp)  # never looked at where nothing was written
    numbers = np.arange(len(columns))
    places[columns] = numbers
    used = columns[places[columns] == numbers]
    used.sort()
    places[used] = numbers[: len(used)]
    return used, places[columns]


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
