"""Descent that makes up for delay (Zheng et al., "Asynchronous stochastic gradient descent with delay
compensation", ICML 2017): DC-ASGD-c, with a constant lambda.
"""

from __future__ import annotations

from protocol.optimizers import DCSGD
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "step"]


def numbers(optimizer: DCSGD, rate: float) -> Hyper:
    """Return ``(lr, lam)``; by default they are 0.01 and 0.04."""
    return hyper(rate, optimizer.lam)


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do ``p <- p - lr * (g + lam * g ** 2 * (p - q))``; ``a`` is ``q``, what the worker had read."""
    delay = p - a
    delay *= g
    delay *= g
    delay *= h[1]
    g += delay
    g *= -h[0]
    g += p
    return g, a, b
