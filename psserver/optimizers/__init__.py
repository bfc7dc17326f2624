"""Optimizers: what one update does to a parameter. They know neither shards nor shapes nor tables.

Each optimizer is a file of functions, which work on whole arrays as on single numbers; ``rule.py`` says how
they are written. To add one: its settings in ``protocol.optimizers``, its file here, a line in ``RULES``.
"""

from __future__ import annotations

import math
from typing import Final

from protocol.optimizers import (
    DCSGD,
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Descent,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
)
from psserver.optimizers import adagrad, adam, add, dcsgd, ftrl, momentum, nesterov, rmsprop, sgd
from psserver.optimizers.rule import Hyper, Moment, Penalty, Rule, as_is, no_slots, zeros
from psserver.optimizers.schedules import rate

__all__ = [
    "NO_PENALTY",
    "RULES",
    "Hyper",
    "Moment",
    "Penalty",
    "Rule",
    "hyper_of",
    "is_steady",
    "penalty_of",
    "rule_of",
]

RULES: Final[tuple[Rule, ...]] = (
    Rule(0, (), False, False, no_slots, as_is, add.step, add.numbers),
    Rule(1, (), False, False, no_slots, as_is, sgd.step, sgd.numbers),
    Rule(2, ("velocity",), False, False, zeros, as_is, momentum.step, momentum.numbers),
    Rule(3, ("velocity",), False, False, zeros, as_is, nesterov.step, nesterov.numbers),
    Rule(4, ("squares",), False, False, adagrad.start, as_is, adagrad.step, adagrad.numbers),
    Rule(5, ("squares",), False, False, zeros, as_is, rmsprop.step, rmsprop.numbers),
    Rule(6, ("mean", "squares"), True, False, zeros, adam.at, adam.step, adam.numbers),
    Rule(7, ("z", "n"), False, False, ftrl.start, as_is, ftrl.step, ftrl.numbers),
    Rule(8, (), False, True, no_slots, as_is, dcsgd.step, dcsgd.numbers),
)

_RULES: Final[dict[type[Optimizer], Rule]] = dict(
    zip((Add, SGD, Momentum, Nesterov, Adagrad, RMSProp, Adam, FTRL, DCSGD), RULES, strict=True)
) | {AdamW: RULES[6]}

NO_PENALTY: Final = Penalty(math.inf, math.inf, 0.0, 0.0)


def rule_of(optimizer: Optimizer) -> Rule:
    """Return the arithmetic of ``optimizer``."""
    return _RULES[type(optimizer)]


def hyper_of(optimizer: Optimizer, moment: Moment) -> Hyper:
    """Return the numbers that the rule of ``optimizer`` takes in an update at ``moment``.

    With ``scale_by_staleness`` the learning rate is divided by the staleness, where that is more than 1
    (Zhang, Gupta, Lian and Liu, "Staleness-aware async-SGD for distributed deep learning", IJCAI 2016).
    """
    now = rate(optimizer, moment.step)
    if isinstance(optimizer, Descent):
        now *= moment.rate
        if optimizer.scale_by_staleness:
            now /= max(1.0, moment.staleness)
    return rule_of(optimizer).hyper(optimizer, now)


def is_steady(optimizer: Optimizer) -> bool:
    """Return whether ``hyper_of`` gives the same numbers at every moment with the same rate."""
    if not isinstance(optimizer, Descent):
        return True
    return optimizer.schedule is None and not optimizer.warmup and not optimizer.scale_by_staleness


def penalty_of(optimizer: Optimizer) -> Penalty:
    """Return what is done to a gradient before the rule of ``optimizer`` sees it."""
    if not isinstance(optimizer, Descent):
        return NO_PENALTY
    of_rule = isinstance(optimizer, FTRL)
    return Penalty(
        optimizer.clip_value or math.inf,
        optimizer.clip_norm or math.inf,
        0.0 if of_rule else optimizer.l1,
        0.0 if of_rule else optimizer.l2,
    )
