"""Plain deltas, ``p <- p + d``; integers wrap around as NumPy's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["update"]

Array = npt.NDArray[Any]


def update(values: Array, gradient: Array) -> None:
    """Add a delta; see ``psserver.optimizers.Update``."""
    np.add(values, gradient, out=gradient)
