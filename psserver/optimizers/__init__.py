"""Optimizers: what one update does to a stretch of a tensor. They know neither shards nor shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from protocol.optimizers import SGD, Add, Optimizer
from psserver.optimizers import add, sgd

__all__ = ["Update", "update_of"]

Update = Callable[[npt.NDArray[Any], npt.NDArray[Any]], None]
"""``update(values, gradient)``: both 1-d, of one dtype and length. The new values replace the gradient's
numbers; ``values`` is left as it is, so that readers may go on with it."""


def update_of(optimizer: Optimizer) -> Update:
    """Return the arithmetic of ``optimizer``."""
    match optimizer:
        case SGD(lr=lr):
            return sgd.update(lr)
        case Add():
            return add.update
