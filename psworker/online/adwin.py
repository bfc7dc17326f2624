"""ADWIN: a window over a stream of numbers that lets go of what no longer fits to what comes.

Source: Bifet and Gavaldà, "Learning from Time-Changing Data with Adaptive Windowing", SDM 2007: the window
of section 3, in the memory of section 4 (an exponential histogram), with the bound of equation 3.1 that
knows the variance.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Adwin"]

_CLOCK: Final = 32
"""Numbers between two looks for a change, as in the authors' own code."""

_LEAST: Final = 5
"""Numbers that either side of a cut has at least."""

_SPREAD: Final = 5
"""Buckets of one size that are kept; one more, and the two oldest become one of twice the size."""


class _Row:
    """Buckets of one size, the oldest first: their sums, and their sums of squared deviations."""

    __slots__ = ("deviations", "totals")

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.deviations: list[float] = []


class Adwin:
    """Numbers from 0 to 1, of which as many of the latest are kept as seem to have one mean.

    Memory and time of an update grow with the logarithm of the window's width.

    Args:
        confidence: the bound on the probability that a window of one mean is cut, at each look.

    Attributes:
        width: how many numbers the window has.
    """

    def __init__(self, confidence: float) -> None:
        self.width = 0
        self._confidence = confidence
        self._rows = [_Row()]
        self._total = 0.0
        self._deviation = 0.0  # sum of squared deviations from the mean
        self._ticks = 0

    @property
    def mean(self) -> float:
        """Mean of the window; 0 without numbers."""
        return self._total / self.width if self.width else 0.0

    def update(self, value: float) -> float:
        """Take one number, and return by how much the mean has changed; 0 if it has not.

        The change is what is left of the window minus what was let go of. It is looked for after every
        32 numbers.
        """
        if self.width:
            self._deviation += self.width / (self.width + 1) * (value - self.mean) ** 2
        self.width += 1
        self._total += value
        row = self._rows[0]
        row.totals.append(value)
        row.deviations.append(0.0)
        if len(row.totals) > _SPREAD:
            self._compress()
        self._ticks += 1
        return self._shrink() if self._ticks % _CLOCK == 0 else 0.0

    def _compress(self) -> None:
        for level, row in enumerate(self._rows):
            if len(row.totals) <= _SPREAD:
                return
            if level + 1 == len(self._rows):
                self._rows.append(_Row())  # which the loop comes to next
            first, second = row.totals[:2]
            apart = (first - second) ** 2 / (2 << level)  # n n / (n + n) times that of the means
            larger = self._rows[level + 1]
            larger.totals.append(first + second)
            larger.deviations.append(row.deviations[0] + row.deviations[1] + apart)
            del row.totals[:2], row.deviations[:2]

    def _shrink(self) -> float:
        dropped_total, dropped = 0.0, 0
        while self._has_two_means():
            total, size = self._drop_oldest()
            dropped_total += total
            dropped += size
        return self.mean - dropped_total / dropped if dropped else 0.0

    def _has_two_means(self) -> bool:
        """Whether the window can be cut so that the means differ by more than chance allows."""
        if self.width < 2 * _LEAST:
            return False
        doubt = math.log(2 * math.log(self.width) / self._confidence)
        variance = max(0.0, self._deviation / self.width)
        before, total = 0, 0.0
        for level in range(len(self._rows) - 1, -1, -1):
            for bucket in self._rows[level].totals:
                before += 1 << level
                total += bucket
                after = self.width - before
                if after < _LEAST:
                    return False
                if before < _LEAST:
                    continue
                inverse = 1 / (before - _LEAST + 1) + 1 / (after - _LEAST + 1)
                bound = math.sqrt(2 * inverse * variance * doubt) + 2 / 3 * inverse * doubt
                if abs(total / before - (self._total - total) / after) > bound:
                    return True
        return False

    def _drop_oldest(self) -> tuple[float, int]:
        """Let go of the oldest bucket; return its sum and size."""
        row, size = self._rows[-1], 1 << (len(self._rows) - 1)
        total, deviation = row.totals.pop(0), row.deviations.pop(0)
        while len(self._rows) > 1 and not self._rows[-1].totals:
            self._rows.pop()
        self.width -= size
        self._total -= total
        between = size * self.width / (size + self.width) * (total / size - self.mean) ** 2
        self._deviation = max(0.0, self._deviation - deviation - between)
        return total, size
