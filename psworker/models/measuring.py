"""What an evaluation measures of scores and labels, as means over the rows, which merge.

Names that begin with "~" are for `protocol.measures.derived`, which makes R2, F1 and AUC of them.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.measures import F1_CLASSES, SCORE_BINS
from psworker.models.weighting import mean

_OCTAVES: Final = (-20.0, -6.0, 10.0, 30.0)
_BIN_NAMES: Final = tuple([f"~{name}.{bin}" for bin in range(SCORE_BINS)] for name in ("pos", "neg"))
_BINS: Final = (0.0, 14.0, 242.0, 256.0)


def regression_measures(
    z: npt.NDArray[Any], y: npt.NDArray[Any], share: npt.NDArray[np.float64]
) -> dict[str, float]:
    """The means of (z - y)^2, of |z - y|, and of y and y^2."""
    wide = y.astype(np.float64)
    residual = z - wide
    return {
        "mse": mean(residual**2, share),
        "mae": mean(np.abs(residual), share),
        "~y": mean(wide, share),
        "~yy": mean(wide**2, share),
    }


def classification_measures(
    predicted: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    share: npt.NDArray[np.float64],
    classes: int,
) -> dict[str, float]:
    """The accuracy, and what F1 is made of, where there are no more classes than it is measured for."""
    right = predicted == y
    measures = {"accuracy": mean(right, share)}
    if classes > F1_CLASSES:
        return measures
    for name, labels, rows in (("tp", y, right), ("fp", predicted, ~right), ("fn", y, ~right)):
        counted = np.bincount(labels, weights=share * rows, minlength=classes)
        measures.update({f"~{name}.{number}": float(count) for number, count in enumerate(counted)})
    return measures


def ranking_measures(
    z: npt.NDArray[Any], y: npt.NDArray[np.int64], share: npt.NDArray[np.float64]
) -> dict[str, float]:
    """What the AUC is made of: how the scores (n,) of the classes 1 and 0 are spread over the bins."""
    bins = score_bins(z)
    measures: dict[str, float] = {}
    for names, rows in zip(_BIN_NAMES, (y == 1, y == 0), strict=True):
        counted = np.bincount(bins, weights=share * rows, minlength=SCORE_BINS)
        measures.update(zip(names, counted.tolist(), strict=True))
    return measures


def score_bins(z: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The bin of each score, 0 to 511, ascending with the score whatever its scale.

    256 bins for each sign, by log2 |z|: 14.25 to the octave (5 % wide) from 2^-6 to 2^10, and one to the
    octave from 2^-20 and to 2^30; what is nearer to 0 or further away is in the first and the last of them.
    A score of 0 counts as positive.
    """
    half = SCORE_BINS // 2
    octave = np.log2(np.maximum(np.abs(z.astype(np.float64)), 1e-300))
    place = np.nan_to_num(np.interp(octave, _OCTAVES, _BINS)).astype(np.int64).clip(max=half - 1)
    return np.where(z < 0, half - 1 - place, half + place)
