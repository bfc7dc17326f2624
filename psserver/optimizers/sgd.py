"""Stochastic gradient descent, ``p <- p - lr * g`` (Robbins and Monro 1951)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["update"]

Array = npt.NDArray[Any]


def update(lr: float) -> Callable[[Array, Array], None]:
    """Return the update for learning rate ``lr``; see ``psserver.optimizers.Update``."""

    def apply(values: Array, gradient: Array) -> None:
        np.multiply(gradient, -lr, out=gradient)
        np.add(values, gradient, out=gradient)

    return apply
