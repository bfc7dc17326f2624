"""Call a model, which may be anyone's code, and say what is wrong with what it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.errors import DataError, ModelError
from psworker.models.model import Model

__all__ = ["gradients_of"]

Arrays = Mapping[str, npt.NDArray[Any]]


def gradients_of(model: Model, parameters: Arrays, batch: Batch) -> tuple[Arrays, float]:
    """Return the model's gradients, checked against its parameters, and its loss.

    Raises:
        ModelError: it raised, or returned other names, shapes or dtypes than the parameters'.
        DataError: it has no class for a label.
    """
    name = f"{type(model).__module__}.{type(model).__qualname__}.gradients"
    try:
        returned = model.gradients(parameters, batch)
    except DataError:
        raise
    except Exception as error:
        raise ModelError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], Mapping):
        raise ModelError(
            f"{name} returned {type(returned).__name__}; it returns the gradients by name, and the loss"
        )
    gradients, loss = returned
    for key, gradient in gradients.items():
        if key not in parameters:
            raise ModelError(f"{name} returned {key!r}; the parameters are {', '.join(parameters)}")
        expected, found = parameters[key], np.asarray(gradient)
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise ModelError(
                f"{name} returned {key!r} of shape {found.shape} and dtype {found.dtype}; "
                f"the parameter has {expected.shape} and {expected.dtype}"
            )
    if not isinstance(loss, int | float | np.floating | np.integer):
        raise ModelError(f"{name} returned {type(loss).__name__} as the loss; it is a number")
    return gradients, float(loss)
