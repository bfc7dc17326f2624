"""Nesterov's momentum ("A method for solving the convex programming problem with convergence rate
O(1/k^2)", 1983), in terms of the point ahead, at which the gradients are (Sutskever et al. 2013, section 2).

The learning rate is outside of the velocity, as in PyTorch: a change of it takes effect at once.
"""

from __future__ import annotations

from protocol.optimizers import Nesterov
from psserver.optimizers.rule import Hyper, Number, hyper

__all__ = ["numbers", "step"]


def numbers(optimizer: Nesterov, rate: float) -> Hyper:
    """Return ``(lr, momentum)``; by default they are 0.01 and 0.9."""
    return hyper(rate, optimizer.momentum)


def step(p: Number, g: Number, a: Number, b: Number, h: Hyper) -> tuple[Number, Number, Number]:
    """Do ``v <- momentum * v + g; p <- p - lr * (g + momentum * v)``; ``a`` is ``v``, which begins at 0."""
    a *= h[1]
    a += g
    g += a * h[1]
    g *= -h[0]
    g += p
    return g, a, b
