"""The test of Page and Hinkley for a rise of the mean of a stream of numbers.

Sources: Page, "Continuous Inspection Schemes", Biometrika 41, 1954; in the form with a running mean of Mouss
et al., "Test of Page-Hinckley, an Approach for Fault Detection in an Agro-Alimentary Production System",
2004.
"""

from __future__ import annotations

from typing import Final

__all__ = ["PageHinkley"]

_LEAST: Final = 30
"""Numbers before the first alarm: the mean of fewer says little."""


class PageHinkley:
    """Sums up how far numbers are above their mean: m_t = sum of (x_i - mean_i - tolerance).

    An alarm is when m_t is more than `threshold` above its least value so far; all begins anew then.

    Args:
        tolerance: a rise of the mean that is none.
        threshold: larger, later and surer.
    """

    def __init__(self, tolerance: float, threshold: float) -> None:
        self._tolerance = tolerance
        self._threshold = threshold
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._sum = 0.0
        self._least = 0.0

    def update(self, value: float) -> float:
        """Take one number, and return by how much it is above the mean at an alarm; 0 if there is none."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum += value - self._mean - self._tolerance
        self._least = min(self._least, self._sum)
        if self._count < _LEAST or self._sum - self._least <= self._threshold:
            return 0.0
        rise = (self._sum - self._least) / self._count
        self._begin()
        return rise
