"""Descent with momentum (Polyak, "Some methods of speeding up the convergence of iteration methods", 1964).

The learning rate is outside of the velocity, as in PyTorch: a change of it takes effect at once.
"""

from __future__ import annotations

from protocol.optimizers import Momentum
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "step"]


def numbers(optimizer: Momentum, rate: float) -> Hyper:
    """Return ``(lr, momentum)``; by default they are 0.01 and 0.9."""
    return hyper(rate, optimizer.momentum)


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do ``v <- momentum * v + g; p <- p - lr * v``; ``a`` is ``v``, which begins at 0."""
    a *= h[1]
    a += g
    moved = a * -h[0]
    moved += p
    return moved, a, b
