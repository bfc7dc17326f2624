"""How good predictions of clicks are."""

import numpy as np
import numpy.typing as npt

_LEAST = 1e-7  # a probability of 0 or 1 in float32 is not meant as certainty


def log_loss(probability: npt.NDArray[np.floating], clicks: npt.NDArray[np.integer]) -> float:
    """Return the mean of -log of the probability that was given to what came."""
    certain = np.clip(probability.astype(np.float64), _LEAST, 1 - _LEAST)
    return float(-np.log(np.where(clicks, certain, 1 - certain)).mean())


def area_under_curve(score: npt.NDArray[np.floating], clicks: npt.NDArray[np.integer]) -> float:
    """Return the probability that a click has a higher score than another view; equal scores count half.

    Raises ValueError unless there are clicks and others.
    """
    clicked = clicks.astype(bool)
    positive = int(clicked.sum())
    negative = clicked.size - positive
    if not positive or not negative:
        raise ValueError("clicks: expected some 0 and some 1; there is no order otherwise")
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = count.cumsum() - (count - 1) / 2  # of each distinct score, from 1; the mean of equal ones
    return float((rank[place][clicked].sum() - positive * (positive + 1) / 2) / (positive * negative))
