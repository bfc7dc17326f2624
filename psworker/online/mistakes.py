"""How wrong each prediction was, from 0 to 1: what drift detectors look at."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Mistakes"]

_SETTLED: Final = 500
"""Distances after which it is known what is usual."""


class Mistakes:
    """Errors of one stream's predictions.

    Of classes an error is 0 or 1. Of numbers it is e / (e + s), where e is the distance from the label and s
    the mean of the first 500 distances, which give no errors themselves: so it needs no unit, and stays as it
    is while the distances do. A mini-batch's loss can be taken as such a distance.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def of_classes(self, predicted: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n,) and (n,) class indices: 1 where they differ."""
        wrong: npt.NDArray[np.bool_] = predicted != y
        return wrong.astype(np.float64)

    def of_distances(self, distances: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n,) distances as (n,) errors, or (0,) at first. Where one is not finite the error is 1."""
        distances = distances.astype(np.float64)
        finite = np.isfinite(distances)
        if self._count < _SETTLED:
            self._total += float(distances[finite].sum())
            self._count += int(finite.sum())
            return np.empty(0)
        usual = self._total / self._count
        errors = np.ones(len(distances))
        known = distances[finite]
        errors[finite] = np.divide(known, known + usual, out=np.zeros_like(known), where=known + usual > 0)
        return errors
