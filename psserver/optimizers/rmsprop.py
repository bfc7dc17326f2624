"""RMSProp (Tieleman and Hinton, "Neural networks for machine learning", lecture 6.5, 2012)."""

from __future__ import annotations

import numpy as np

from protocol.optimizers import RMSProp
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "step"]


def numbers(optimizer: RMSProp, rate: float) -> Hyper:
    """Return ``(lr, eps, 1 - decay)``; by default they are 0.01, 1e-8 and 0.01."""
    return hyper(rate, optimizer.eps, 1.0 - optimizer.decay)


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do ``n <- decay * n + (1 - decay) * g ** 2; p <- p - lr * g / (sqrt(n) + eps)``.

    ``a`` is ``n``, which begins at 0 and is moved by ``(1 - decay) * (g ** 2 - n)``: never below 0.
    """
    change = g * g
    change -= a
    change *= h[2]
    a += change
    root = np.sqrt(a)
    root += h[1]
    g *= -h[0]
    g /= root
    g += p
    return g, a, b
