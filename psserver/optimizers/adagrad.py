"""Adagrad with a diagonal (Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and
stochastic optimization", JMLR 2011).
"""

from __future__ import annotations

import numpy as np

from protocol.optimizers import Adagrad
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "start", "step"]


def numbers(optimizer: Adagrad, rate: float) -> Hyper:
    """Return ``(lr, eps, initial)``; by default they are 0.01, 1e-10 and 0."""
    return hyper(rate, optimizer.eps, optimizer.initial)


def start(p: Number, h: Hyper) -> tuple[Number, Number]:
    """Return ``n = initial``, and no second slot."""
    n = p - p
    n += h[2]
    return n, p


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do ``n <- n + g ** 2; p <- p - lr * g / (sqrt(n) + eps)``; ``a`` is ``n``."""
    a += g * g
    root = np.sqrt(a)
    root += h[1]
    g *= -h[0]
    g /= root
    g += p
    return g, a, b
