"""The learning rate of a step."""

from __future__ import annotations

import math

from protocol.optimizers import Cosine, Descent, InverseSqrt, Optimizer, Schedule, Step

__all__ = ["factor", "rate"]


def rate(optimizer: Optimizer, step: int) -> float:
    """Return the learning rate of ``optimizer`` in ``step``, the first being 0.

    With ``w`` steps of warm-up and the schedule's factor ``f`` it is

        lr * (step + 1) / w     if step < w, and then
        lr * f(step - w).

    ``add`` has none, and 1 in place of it.
    """
    if not isinstance(optimizer, Descent):
        return 1.0
    lr: float = optimizer.lr
    if step < optimizer.warmup:
        return lr * ((step + 1) / optimizer.warmup)
    if optimizer.schedule is None:
        return lr
    return lr * factor(optimizer.schedule, step - optimizer.warmup)


def factor(schedule: Schedule, s: int) -> float:
    """Return what the learning rate is multiplied by ``s`` steps after the end of the warm-up, from 0 to 1.

    The equations are those of the schedules' docstrings.
    """
    match schedule:
        case Step(every=every, factor=each):
            return float(each ** (s // every))
        case Cosine(steps=steps, floor=floor):
            return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * min(s / steps, 1.0))) / 2.0
        case InverseSqrt(steps=steps):
            return math.sqrt(steps / (steps + s))
