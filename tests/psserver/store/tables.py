"""Tables for tests, and what they should hold."""

from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.messages import Spec
from protocol.optimizers import Optimizer, spec_of
from protocol.tables import HASH_SLOTS, Keys, Table
from psserver.optimizers import Rule, rule_of
from psserver.store.kernels import Kernels
from psserver.store.kernels.numba_kernels import NumbaKernels
from psserver.store.kernels.numpy_kernels import NumpyKernels
from psserver.store.sparse import RowsGradient, SparseBlock

Array = npt.NDArray[Any]

BOTH = ["numpy", "numba"]


def kernels_of(name: str, rule: Rule) -> Kernels:
    return NumbaKernels(rule) if name == "numba" else NumpyKernels(rule)


def table(
    kernels: str,
    optimizer: Optimizer,
    dim: int = 3,
    dtype: str = "float32",
    start: int = 0,
    stop: int = HASH_SLOTS,
    **more: Any,
) -> SparseBlock:
    spec = Spec(dtype, (HASH_SLOTS,), spec_of(optimizer), Table(dim, **more))
    return SparseBlock("users", spec, 1, start, stop, kernels_of(kernels, rule_of(optimizer)))


def keys_of(*keys: int) -> Keys:
    return np.array(keys, np.uint64)


def gathered(block: SparseBlock, keys: Keys, now: float = 0.0) -> Array:
    out = np.full((keys.size, block.dim), np.nan, block.spec.dtype)
    block.gather(keys, out, now)
    return out


def gradient_of(block: SparseBlock, keys: Keys, values: npt.ArrayLike) -> RowsGradient:
    rows = np.broadcast_to(np.asarray(values, block.spec.dtype), (keys.size, block.dim))
    return RowsGradient(keys, rows.copy())
