"""What a worker has read, for optimizers that make up for its delay (Zheng et al. 2017).

It is kept for the worker, whose next gradient may come on another connection than the values went out on.
Versions of dense blocks do not change, so they are kept, not copied; rows are kept as they were sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys
from psserver.store.dense import DenseBlock
from psserver.store.sparse import RowsGradient, SparseBlock

__all__ = ["Backups"]

Array = npt.NDArray[Any]


class Backups:
    """What one worker read last of each tensor whose optimizer wants to know.

    Attributes:
        seen: updates of the job that the worker knows of, its own ones included.
    """

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen
        self._dense: dict[str, Array] = {}
        self._rows: dict[str, tuple[Keys, Array]] = {}

    def read(self, block: DenseBlock) -> None:
        """Take note that the worker is sent the current values of a block."""
        if block.rule.needs_backup:
            self._dense[block.name] = block.values

    def read_rows(self, block: SparseBlock, keys: Keys, rows: Array) -> None:
        """Take note that the worker is sent ``rows`` (n, dim), which do not change any more."""
        if block.rule.needs_backup:
            self._rows[block.name] = (keys, rows)

    def forget(self, name: str) -> None:
        """Forget what was read of a tensor that has begun anew."""
        self._dense.pop(name, None)
        self._rows.pop(name, None)

    def of(self, block: DenseBlock | SparseBlock, gradient: Any) -> Array | None:
        """Return what the worker had read where ``gradient`` is; None, or NaN in a row, where none knows."""
        if not block.rule.needs_backup:
            return None
        if not isinstance(gradient, RowsGradient):
            return self._dense.get(block.name)
        keys, rows = self._rows.get(block.name, (None, None))
        if keys is None or rows is None:
            return None
        return rows if keys is gradient.keys else _aligned(keys, rows, gradient.keys)


def _aligned(keys: Keys, rows: Array, wanted: Keys) -> Array:
    """Return the rows of ``wanted`` keys, NaN where there is none."""
    if not keys.size:
        return np.full((wanted.size, rows.shape[1]), np.nan, rows.dtype)
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)]
    found = rows[at]
    found[keys[at] != wanted] = np.nan
    return found
