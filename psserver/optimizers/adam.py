"""Adam (Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015) and AdamW (Loshchilov and
Hutter, "Decoupled weight decay regularization", ICLR 2019): Adam is AdamW with a weight decay of 0.

The corrections for the moments' beginning at 0 are the same for all numbers of an update. They are taken
into the learning rate and eps, once: with ``c1 = 1 - beta1 ** t`` and ``c2 = 1 - beta2 ** t``,

    lr * (m / c1) / (sqrt(v / c2) + eps) = (lr * sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2)).
"""

from __future__ import annotations

import math

import numpy as np

from protocol.optimizers import Adam, AdamW
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["at", "numbers", "step"]


def numbers(optimizer: Adam | AdamW, rate: float) -> Hyper:
    """Return ``(lr, eps, 1 - beta1, 1 - beta2, log(beta1), log(beta2), 1 - lr * weight_decay)``.

    By default lr is 0.001, the betas are 0.9 and 0.999, eps is 1e-8, and the weight decay 0.01 in AdamW.
    """
    decay = optimizer.weight_decay if isinstance(optimizer, AdamW) else 0.0
    return hyper(
        rate,
        optimizer.eps,
        1.0 - optimizer.beta1,
        1.0 - optimizer.beta2,
        _log(optimizer.beta1),
        _log(optimizer.beta2),
        1.0 - rate * decay,
    )


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


def at(t: Number, h: Hyper) -> Hyper:
    """Return ``h`` with lr and eps corrected for update ``t``.

    ``-expm1(t * log(beta))`` is ``1 - beta ** t`` without the loss of digits where that is small.
    """
    c1 = -np.expm1(t * h[4])
    root = np.sqrt(-np.expm1(t * h[5]))
    return (h[0] * root / c1, h[1] * root, h[2], h[3], h[4], h[5], h[6], h[7])


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do ``m <- beta1 * m + (1 - beta1) * g; v <- beta2 * v + (1 - beta2) * g ** 2``, and then
    ``p <- p - lr * weight_decay * p - lr * (m / c1) / (sqrt(v / c2) + eps)``.

    ``a`` and ``b`` are ``m`` and ``v``, which begin at 0 and are moved by ``(1 - beta) * (g - m)`` and the
    like: ``v`` never falls below 0.
    """
    change = g - a
    change *= h[2]
    a += change
    g *= g
    g -= b
    g *= h[3]
    b += g
    root = np.sqrt(b)
    root += h[1]
    moved = a * -h[0]
    moved /= root
    moved += p * h[6]
    return moved, a, b
