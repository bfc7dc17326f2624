"""The mean of what workers put into a step, of whichever kind of tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.tensors import DTYPES
from psserver.store.dense import DenseBlock, StepMean
from psserver.store.rows_mean import RowsMean
from psserver.store.sparse import RowsGradient, SparseBlock

__all__ = ["Mean", "arrays_of", "mean_from", "mean_of"]

Array = npt.NDArray[Any]
Mean = StepMean | RowsMean


def mean_of(gradient: Any, weight: float) -> Mean:
    """Return the mean of one gradient, an array or ``RowsGradient``."""
    if isinstance(gradient, RowsGradient):
        return RowsMean(gradient, weight)
    return StepMean(gradient, weight)


def arrays_of(total: Any) -> dict[str, Array]:
    """Return the arrays, 1-d, that a mean's sum is made of: ``""``, or ``keys`` and ``values``."""
    if isinstance(total, RowsGradient):
        return {"keys": total.keys, "values": total.values.reshape(-1)}
    return {"": total}


def mean_from(
    block: DenseBlock | SparseBlock | None, arrays: Mapping[str, Array], unit: float, relative: float
) -> Mean:
    """Return the mean that ``arrays_of`` took apart, without empty arrays. It is frozen.

    Args:
        block: whose gradients they are; None: a dense one's.
        arrays: by what they are.
        unit: the mean's.
        relative: the mean's.

    Raises:
        KeyError: an array is missing.
    """
    mean: Mean
    if isinstance(block, SparseBlock):
        keys = arrays.get("keys", np.empty(0, np.uint64))
        values = arrays["values"] if keys.size else np.empty(0, DTYPES[block.spec.dtype])
        mean = RowsMean(RowsGradient(keys, values.reshape(-1, block.dim)), unit, relative)
    else:
        mean = StepMean(arrays[""], unit, relative)
    mean.freeze()  # its memory may not be writeable
    return mean
