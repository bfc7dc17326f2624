"""A look at a stream of predictions for a change of what is to be learnt."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from psworker.job import StreamSettings
from psworker.online.adwin import Adwin
from psworker.online.mistakes import Mistakes
from psworker.online.page_hinkley import PageHinkley

__all__ = ["Watch"]


class _Detector(Protocol):
    def update(self, value: float) -> float: ...


class Watch:
    """Watches the error of predictions from now on, until it has risen.

    Args:
        settings: which detector, and how sure it is to be.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._mistakes = Mistakes()
        self._detector: _Detector = (
            Adwin(settings.drift_confidence)
            if settings.drift == "adwin"
            else PageHinkley(settings.drift_tolerance, settings.drift_threshold)
        )

    def see(self, predicted: npt.NDArray[Any] | None, y: npt.NDArray[Any], loss: float) -> float:
        """Look at a mini-batch; return by how much the error, from 0 to 1, has risen, 0 if it has not.

        Args:
            predicted: (n,) class indices or numbers; None: the model does not predict, look at the loss.
            y: (n,) the labels.
            loss: the mean over the mini-batch.
        """
        if predicted is None:
            errors = self._mistakes.of_distances(np.array([loss]))
        elif predicted.dtype.kind in "iu":
            errors = self._mistakes.of_classes(predicted, y)
        else:
            errors = self._mistakes.of_distances(np.abs(predicted.astype(np.float64) - y))
        for error in errors.tolist():
            rise = self._detector.update(error)
            if rise > 0:  # a fall is what learning is for
                return rise
        return 0.0
