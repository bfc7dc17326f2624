"""Dense rows of which most columns are 0, kept in few bytes until they are taken.

A category that is spread over some hundred columns is 1 in one of them. A chunk of such rows, written out,
is as large as all its zeros: too large for a processor's cache, out of which mini-batches would then be cut.
A mini-batch that is written out itself stays there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch

__all__ = ["PackedBatch", "PackedRows"]


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """Rows of x: `numbers` in its first columns, and `values` added in `columns` beside them.

    `numbers`: (n, width) float32. `columns`: (m, n) intp, of `features` columns in all; a row may name one
    twice. `values`: (m, n) float32.
    """

    numbers: npt.NDArray[np.float32]
    columns: npt.NDArray[np.intp]
    values: npt.NDArray[np.float32]
    features: int

    def take(self, indices: npt.NDArray[np.intp]) -> Self:
        """The rows `indices`, in that order."""
        return type(self)(
            self.numbers.take(indices, axis=0),
            self.columns.take(indices, axis=1),
            self.values.take(indices, axis=1),
            self.features,
        )

    def written_out(self) -> npt.NDArray[np.float32]:
        """(n, features) float32, C-contiguous."""
        count, width = self.numbers.shape
        x = np.zeros((count, self.features), np.float32)
        x[:, :width] = self.numbers
        starts = np.arange(count) * self.features
        np.add.at(x.reshape(-1), (self.columns + starts).reshape(-1), self.values.reshape(-1))
        return x


class PackedBatch(Batch):
    """A `Batch` of dense features whose `x` is written out when it is first asked for.

    What is taken from it is written out at once.
    """

    __slots__ = ("_rows", "_written_out")
    _rows: PackedRows
    _written_out: npt.NDArray[np.float32] | None

    def __init__(
        self,
        rows: PackedRows,
        y: npt.NDArray[np.float32] | npt.NDArray[np.int64],
        weight: npt.NDArray[np.float32] | None = None,
    ) -> None:
        fields = {"_rows": rows, "_written_out": None, "y": y, "keys": None, "weight": weight}
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # as frozen dataclasses do

    @property
    def x(self) -> Any:
        """See `Batch`."""
        if self._written_out is None:
            object.__setattr__(self, "_written_out", self._rows.written_out())
        return self._written_out

    def take(self, indices: npt.NDArray[np.intp]) -> Batch:
        """See `Batch.take`."""
        weight = None if self.weight is None else self.weight[indices]
        return Batch(self._rows.take(indices).written_out(), self.y[indices], None, weight)
