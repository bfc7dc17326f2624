"""Stochastic gradient descent (Robbins and Monro, "A stochastic approximation method", 1951)."""

from __future__ import annotations

from protocol.optimizers import SGD
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "step"]


def numbers(optimizer: SGD, rate: float) -> Hyper:
    """Return ``(lr,)``; lr is 0.01 by default."""
    return hyper(rate)


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Return ``p - lr * g``; there are no slots."""
    g *= -h[0]
    g += p
    return g, a, b
