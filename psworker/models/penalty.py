"""The L2 penalty that all the models share: l2/2 |w|^2, on weights and not on the bias."""

import math

import numpy as np
import numpy.typing as npt


def check_l2(l2: float) -> None:
    """Raise ValueError unless `l2` is a finite number of at least 0."""
    if isinstance(l2, bool) or not isinstance(l2, int | float) or not 0 <= l2 < math.inf:
        raise ValueError(f"l2 is {l2!r}; expected a finite number, at least 0")


def penalty(l2: float, weights: npt.NDArray[np.float32]) -> float:
    """l2/2 |w|^2 for weights of any shape."""
    return 0.5 * l2 * float(np.vdot(weights, weights)) if l2 else 0.0
