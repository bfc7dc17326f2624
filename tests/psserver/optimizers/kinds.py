"""Every optimizer with settings that all matter, and how a test drives a rule by itself."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.optimizers import (
    DCSGD,
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
)
from psserver.optimizers import Moment, hyper_of, rule_of

Array = npt.NDArray[Any]

EVERY: Final[tuple[Optimizer, ...]] = (
    Add(),
    SGD(0.1),
    Momentum(0.1, 0.8),
    Nesterov(0.1, 0.8),
    Adagrad(0.1, 0.5, 1e-3),
    RMSProp(0.1, 0.9, 1e-3),
    Adam(0.1, 0.8, 0.95, 1e-3),
    AdamW(0.1, 0.8, 0.95, 1e-3, 0.05),
    FTRL(0.1, 0.5, l1=0.3, l2=0.2),
    DCSGD(0.1, 0.7),
)

NAMES: Final = [optimizer.name for optimizer in EVERY]


class Parameters:
    """Values and slots, as a table keeps them, which a rule updates."""

    def __init__(self, optimizer: Optimizer, values: Array) -> None:
        self.rule = rule_of(optimizer)
        self.h = hyper_of(optimizer, Moment())
        self.values = values.copy()
        self.updates = 0
        self.a, self.b = (slot.copy() for slot in self.rule.start(values, self.h))

    def update(self, gradient: Array, backup: Array | None = None) -> None:
        """Apply a gradient, which is left as it is, and so are the values of before."""
        self.updates += 1
        h: Any = tuple(map(float, self.rule.at(self.updates, self.h)))
        a = self.values if backup is None else backup
        if self.rule.slots:
            a = self.a
        values, a, self.b = self.rule.step(self.values, gradient.copy(), a, self.b, h)
        if self.rule.slots:
            self.a = a
        self.values = values.copy()

    def update_all(self, gradients: Iterable[Array]) -> Array:
        """Apply one gradient after the other, and return the values."""
        for gradient in gradients:
            self.update(gradient)
        return self.values


def gradients(count: int, size: int, dtype: Any = np.float64) -> list[Array]:
    """Return gradients of about 1, in which some numbers are zero now and then."""
    rng = np.random.default_rng(7)
    drawn = rng.normal(size=(count, size)) * (rng.random((count, size)) > 0.2)
    return list(drawn.astype(dtype))


def values(size: int, dtype: Any = np.float64) -> Array:
    """Return values of about 1, the first of them zero."""
    drawn = np.random.default_rng(8).normal(size=size)
    drawn[0] = 0.0
    return drawn.astype(dtype)
