"""FTRL-proximal (McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, algorithm 1).

With alpha the learning rate, the paper keeps ``z`` and ``n``, and has in each round

    s = (sqrt(n + g ** 2) - sqrt(n)) / alpha;  z <- z + g - s * p;  n <- n + g ** 2
    p <- 0 if |z| <= l1, else -(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2).

Here ``z`` is ``alpha`` times that of the paper, which takes alpha out of ``s`` and of the division:

    z <- z + alpha * g - (sqrt(n + g ** 2) - sqrt(n)) * p
    p <- -(z - clip(z, -alpha * l1, alpha * l1)) / (beta + sqrt(n) + alpha * l2).

While alpha is constant the two are the same. Where a schedule changes it, only the weight of a new gradient
changes; in the paper's terms all parameters would be scaled, without any gradient, in proportion to it.
"""

from __future__ import annotations

import numpy as np

from protocol.optimizers import FTRL
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "start", "step"]


def numbers(optimizer: FTRL, rate: float) -> Hyper:
    """Return ``(alpha now, beta + alpha * l2, alpha * l1, -alpha * l1)`` with the alpha of the settings.

    By default alpha is 0.1, beta is 1, l1 and l2 are 0.
    """
    threshold = optimizer.lr * optimizer.l1
    return hyper(rate, optimizer.beta + optimizer.lr * optimizer.l2, threshold, -threshold)


def start(p: Number, h: Hyper) -> tuple[Number, Number]:
    """Return the ``z`` of which ``p`` follows, and ``n = 0``."""
    z = p * -h[1]
    z -= np.sign(p) * h[2]
    return z, p - p


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do one round as above; ``a`` is ``z`` and ``b`` is ``n``."""
    change = np.sqrt(b)
    b += g * g
    root = np.sqrt(b)
    change -= root
    change *= p
    a += change
    g *= h[0]
    a += g
    root += h[1]
    moved = np.minimum(a, h[2])
    moved = np.maximum(moved, h[3])
    moved -= a
    moved /= root
    return moved, a, b
