"""How good predictions are that are made before the label is learnt from, in three ways of forgetting.

Source: Gama, Sebastião and Rodrigues, "On Evaluating Stream Learning Algorithms", Machine Learning 90, 2013.

- whole: the mean over all examples,
- window: over the latest `window` examples,
- faded: S_i = L_i + forget S_(i-1) by N_i = 1 + forget N_(i-1); with 0.999, about the latest thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, Literal

__all__ = ["Over", "Prequential"]

Over = Literal["whole", "window", "faded"]

_MOST: Final = 2048
"""Measures of a model that are kept, ingredients included; a model of one's own may say anything."""

_SMALL: Final = 1e-100
"""What is left of the scale of faded sums when they are written anew."""


class _Sums:
    """Sums of measures, which fade by a factor that all have in common.

    A measure that a mini-batch does not have counts as 0.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weight = 0.0
        self._scale = 1.0

    def fade(self, factor: float) -> None:
        self._scale *= factor
        if self._scale < _SMALL:
            self._sums = {name: total * self._scale for name, total in self._sums.items()}
            self._weight *= self._scale
            self._scale = 1.0

    def add(self, measures: Mapping[str, float], weight: float) -> None:
        weight /= self._scale
        self._weight += weight
        for name, value in measures.items():
            if name in self._sums or len(self._sums) < _MOST:
                self._sums[name] = self._sums.get(name, 0.0) + value * weight

    def mean(self, name: str) -> float | None:
        return self._sums[name] / self._weight if name in self._sums else None

    def means(self) -> dict[str, float]:
        return {name: total / self._weight for name, total in self._sums.items()}


class Prequential:
    """Means of measures over a stream that comes in mini-batches.

    Of a mini-batch only the means are known, so each of its examples counts as that mean; the window is
    kept to whole mini-batches, the fewest latest ones that have at least `window` examples.

    Args:
        window: examples, at least 1.
        forget: the fading factor, above 0, at most 1.

    Attributes:
        examples: how many there were.
    """

    def __init__(self, window: int, forget: float) -> None:
        self.examples = 0
        self._window = window
        self._forget = forget
        self._whole, self._faded = _Sums(), _Sums()
        self._recent: deque[tuple[int, Mapping[str, float]]] = deque()
        self._recently = 0  # examples in ``_recent``

    def add(self, measures: Mapping[str, float], examples: int) -> None:
        """Take the means over a mini-batch of so many examples, at least 1."""
        # Ingredients of an AUC are a thousand numbers, of which a mini-batch has few.
        measures = {name: value for name, value in measures.items() if value or name[0] != "~"}
        self.examples += examples
        self._whole.add(measures, examples)
        faded = self._forget**examples
        self._faded.fade(faded)
        # 1 + forget + ... + forget^(examples - 1)
        self._faded.add(measures, examples if self._forget == 1 else (1 - faded) / (1 - self._forget))
        self._recent.append((examples, measures))
        self._recently += examples
        while self._recently - self._recent[0][0] >= self._window:
            self._recently -= self._recent.popleft()[0]

    def faded(self, name: str) -> float | None:
        """Return the faded mean of one measure; None if there is no such measure."""
        return self._faded.mean(name)

    def means(self, over: Over) -> dict[str, float]:
        """Return the means over the whole stream, the window, or of what has faded."""
        if over == "whole":
            return self._whole.means()
        if over == "faded":
            return self._faded.means()
        recent = _Sums()
        for examples, measures in self._recent:
            recent.add(measures, examples)
        return recent.means()
