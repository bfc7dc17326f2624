"""Means over the rows of a batch, each row counting what its weight says."""

from typing import Any

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch, require_rows


def shares(batch: Batch) -> npt.NDArray[np.float64]:
    """(n,): what part of the whole each row counts; they sum to 1, or are all 0 where all weights are.

    Raises ValueError for a batch without rows.
    """
    require_rows(batch)
    if batch.weight is None:
        return np.full(len(batch), 1 / len(batch))
    total = batch.total
    if total == 0:
        return np.zeros(len(batch))
    return batch.weight.astype(np.float64) / total


def mean(values: npt.NDArray[Any], share: npt.NDArray[np.float64]) -> float:
    """The weighted mean of `values` (n,)."""
    return float(values.astype(np.float64, copy=False) @ share)


def scaled(slopes: npt.NDArray[Any], share: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """`slopes` (n,) or (n, k) of the rows' losses as slopes of their weighted mean, of the same dtype."""
    weights = share.astype(slopes.dtype)
    result: npt.NDArray[Any] = slopes * (weights if slopes.ndim == 1 else weights[:, np.newaxis])
    return result
