"""What an optimizer is to those who apply it: a few pure functions of numbers, and the numbers they take.

The functions of a rule are written once and run in two ways: on 1-d NumPy arrays, where the parameters are
dense, and compiled by Numba on single numbers, for the rows of sparse tables. So they have no branches and no
numbers of their own, which would turn float32 into float64 there: what is constant comes with ``h``.

Augmented assignment (``a += x``) works in place on an array, and makes no temporary of it; on a number it is
plain assignment. So a rule may spoil ``g``, and makes the new slots of ``a`` and ``b`` in their memory,
which its caller has copied for it. It never writes to ``p``, which may be read meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Hyper", "Moment", "Penalty", "Rule", "as_is", "hyper", "no_slots", "zeros"]

Hyper: TypeAlias = tuple[float, float, float, float, float, float, float, float]
"""The numbers that a rule takes. The first is the learning rate now, the rest is the rule's own."""

Number: TypeAlias = Any
"""A 1-d array of float32 or float64, or one such number."""


class Moment(NamedTuple):
    """When an update comes.

    Attributes:
        step: the step that its gradient is of.
        staleness: how many updates its worker had not read.
        now: seconds, for what expires.
        rate: what the job's learning rates are multiplied by.
    """

    step: int = 0
    staleness: float = 0.0
    now: float = 0.0
    rate: float = 1.0


class Penalty(NamedTuple):
    """What is done to a gradient before the rule sees it, in this order.

    Attributes:
        clip_value: each of its numbers is kept within plus and minus this; infinity: as they are.
        clip_norm: it is scaled to this length if it is longer; infinity: it is not.
        l1, l2: ``l2 * p + l1 * sign(p)`` is added to it.
    """

    clip_value: float
    clip_norm: float
    l1: float
    l2: float


@dataclass(frozen=True, slots=True)
class Rule:
    """The arithmetic of an optimizer, elementwise.

    Attributes:
        number: its place in ``RULES``.
        slots: names of what is kept for each parameter, none to two.
        counts: it has to know the number of the update, as Adam does.
        needs_backup: its slot ``a`` is what the worker had read, and not kept.
        start: ``start(p, h) -> a, b``: the slots of a new parameter; in place of none, anything.
        at: ``at(t, h) -> h``: the numbers for update ``t``, the first being 1. Only if it ``counts``.
        step: ``step(p, g, a, b, h) -> p, a, b``: one update.
        hyper: ``hyper(optimizer, rate) -> h``, for a learning rate of now.
    """

    number: int
    slots: tuple[str, ...]
    counts: bool
    needs_backup: bool
    start: Callable[[Number, Hyper], tuple[Number, Number]]
    at: Callable[[Number, Hyper], Hyper]
    step: Callable[[Number, Number, Number, Number, Hyper], tuple[Number, Number, Number]]
    hyper: Callable[[Any, float], Hyper]

    @property
    def sums(self) -> bool:
        """Whether it takes deltas, of which a synchronous step adds up what the workers push."""
        return self.number == 0


def hyper(*numbers: float) -> Hyper:
    """Return up to eight numbers, with zeros for the rest."""
    h: Any = (*numbers, *(0.0 for _ in range(8 - len(numbers))))
    return h  # type: ignore[no-any-return]


def zeros(p: Number, h: Hyper) -> tuple[Number, Number]:
    """Return slots that begin at zero."""
    zero = p - p
    return zero, zero


def no_slots(p: Number, h: Hyper) -> tuple[Number, Number]:
    """Return in the place of slots what is not looked at."""
    return p, p


def as_is(t: Number, h: Hyper) -> Hyper:
    """Return the numbers for update ``t`` of a rule that does not count."""
    return h
