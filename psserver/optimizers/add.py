"""Plain deltas, ``p <- p + g``; integers wrap around as NumPy's do."""

from __future__ import annotations

from protocol.optimizers import Add
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "step"]


def numbers(optimizer: Add, rate: float) -> Hyper:
    """Return nothing but zeros."""
    return hyper()


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Return ``p + g``; there are no slots and no settings."""
    g += p
    return g, a, b
