"""The L2 penalty that models share: l2/2 |w|^2, on weights and not on biases.

Of hashed features only those of the mini-batch are there to be penalised: a feature that is in one
mini-batch of ten is held back a tenth as much as one that is in all.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def penalty(
    l2: float, parameters: Mapping[str, npt.NDArray[Any]], weights: Iterable[str]
) -> tuple[float, dict[str, npt.NDArray[Any]]]:
    """The penalty on the parameters that `weights` names, and its gradient: l2 w."""
    if not l2:
        return 0.0, {}
    squares = sum(float(np.vdot(parameters[name], parameters[name])) for name in weights)
    return 0.5 * l2 * squares, {name: l2 * parameters[name] for name in weights}
