"""Successive halving: many settings with few epochs, the best of them with more. Pure.

    round 0          n settings               R / eta^k epochs each
    round i          the best n / eta^i       R / eta^(k - i) epochs, trained anew
    round k          the best n / eta^k       R epochs

A round begins when all of the one before have been told. What diverged goes no further.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from psctl.tune.engines import drawn
from psctl.tune.space import Settings, Space

__all__ = ["EPOCHS", "Halving"]

EPOCHS: Final = "train.epochs"


class Halving:
    """Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", AISTATS 2016, algorithm 1.

    With a share of 1 / ``eta`` that is kept, and the rounds of one bracket of Hyperband (Li et al., JMLR 18,
    2018). Each round trains anew with more epochs, which needs no checkpoints and keeps schedules of the
    learning rate whole; going on would save at most 1 / ``eta`` of a round.

    Args:
        space: what is searched; it may not have the epochs.
        trials: settings of the first round.
        epochs: R, of the last round.
        randomness: draws the settings.
        eta: 2 or more.
    """

    def __init__(
        self, space: Space, trials: int, epochs: int, randomness: random.Random, *, eta: int = 3
    ) -> None:
        first = list(itertools.islice(drawn(space, randomness), trials))
        rounds = 1 + min(_whole_log(len(first), eta), _whole_log(epochs, eta))
        self._rounds = deque(
            (len(first) // eta**number, round(epochs / eta ** (rounds - 1 - number)))
            for number in range(rounds)
        )
        self.total = sum(settings for settings, _ in self._rounds)
        self._to_ask: deque[Settings] = deque()
        self._pending: set[Settings] = set()
        self._told: dict[Settings, float] = {}
        self._begin(first)

    def ask(self) -> Settings | None:
        """See ``Engine.ask``: settings, and the epochs of the round."""
        if not self._to_ask and not self._pending and self._rounds:
            sound = [settings for settings, value in self._told.items() if value < math.inf]
            self._begin([settings[:-1] for settings in sorted(sound, key=self._told.__getitem__)])
        if not self._to_ask:
            return None
        settings = self._to_ask.popleft()
        self._pending.add(settings)
        return settings

    def tell(self, settings: Settings, value: float) -> None:
        """See ``Engine.tell``. NaN is as infinity."""
        self._pending.remove(settings)
        self._told[settings] = math.inf if math.isnan(value) else value

    def _begin(self, best_first: Sequence[Settings]) -> None:
        count, epochs = self._rounds.popleft()
        self._told.clear()
        self._to_ask.extend((*settings, (EPOCHS, epochs)) for settings in best_first[:count])


def _whole_log(number: int, base: int) -> int:
    """Return the largest k with base ** k <= number; 0 for less than 1."""
    return next(k for k in itertools.count() if base ** (k + 1) > number)
