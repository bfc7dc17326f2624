"""Which settings to try next. Pure state machines: no clock, no process, no randomness of their own.

A search asks an engine for settings and tells it the value that came of them; less is better, and infinity
is what diverged. Several may be asked for before the first is told.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Final, Protocol

from protocol.errors import BadRequest
from psctl.tune.space import Choices, Settings, Space, draw

__all__ = ["Engine", "Grid", "Random", "drawn"]

_ATTEMPTS: Final = 100  # at settings that were not tried yet; lists may be short


class Engine(Protocol):
    """What a search is led by."""

    @property
    def total(self) -> int:
        """How many trials there will be at most."""

    def ask(self) -> Settings | None:
        """Return what to try next, which was never tried yet; None: nothing, at least until more is told."""

    def tell(self, settings: Settings, value: float) -> None:
        """Take the value of settings that were asked for."""


class Grid:
    """Every combination of the values of lists, the last setting changing fastest.

    Raises:
        BadRequest: there is a range, which has no end of values.
    """

    def __init__(self, space: Space) -> None:
        for name, dimension in space.items():
            if not isinstance(dimension, Choices):
                raise BadRequest(
                    "a grid needs a list of values, or a number of points in the range, as in "
                    f"{name}={dimension.low:g}..{dimension.high:g}{':log' if dimension.log else ''}:5; "
                    "or take --search random",
                    field="--try",
                    value=name,
                )
        values = [dimension.values for dimension in space.values() if isinstance(dimension, Choices)]
        self.total = math.prod(map(len, values))
        self._left = (
            tuple(zip(space, combination, strict=True)) for combination in itertools.product(*values)
        )

    def ask(self) -> Settings | None:
        """See ``Engine.ask``."""
        return next(self._left, None)

    def tell(self, settings: Settings, value: float) -> None:
        """Take a value, from which a grid learns nothing."""


class Random:
    """``trials`` settings drawn independently (Bergstra and Bengio, JMLR 13, 2012), none of them twice.

    With a few settings that matter among several, these are tried with more different values than a grid of
    as many trials has.
    """

    def __init__(self, space: Space, trials: int, randomness: random.Random) -> None:
        self.total = trials
        self._left = itertools.islice(drawn(space, randomness), trials)

    def ask(self) -> Settings | None:
        """See ``Engine.ask``."""
        return next(self._left, None)

    def tell(self, settings: Settings, value: float) -> None:
        """Take a value, from which nothing follows for the next."""


def drawn(space: Space, randomness: random.Random) -> Iterator[Settings]:
    """Yield settings at random, all different; it ends when new ones are hard to find."""
    seen: set[Settings] = set()
    missed = 0
    while missed < _ATTEMPTS:
        settings = tuple((name, draw(dimension, randomness)) for name, dimension in space.items())
        if settings in seen:
            missed += 1
            continue
        missed = 0
        seen.add(settings)
        yield settings
