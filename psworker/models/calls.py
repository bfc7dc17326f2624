"""Call a model, which may be anyone's code, and say what is wrong with what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import shorten
from psworker.data.batch import Batch
from psworker.errors import DataError, ModelError
from psworker.models.model import EvaluatedModel, Model, PredictingModel, PreparedModel, ProbableModel

__all__ = ["gradients_of", "measures_of", "predictions_of", "prepared_of", "probabilities_of"]

Arrays = Mapping[str, npt.NDArray[Any]]


def gradients_of(model: Model, parameters: Arrays, batch: Batch) -> tuple[Arrays, float]:
    """Return the model's gradients, checked against its parameters, and its loss.

    Raises:
        ModelError: it raised, or returned other names, shapes or dtypes than the parameters'.
        DataError: it has no class for a label.
    """
    name = _name(model, "gradients")
    with _blaming(name):
        returned = model.gradients(parameters, batch)
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
    if not _is_number(loss):
        raise ModelError(f"{name} returned {type(loss).__name__} as the loss; it is a number")
    return gradients, float(loss)


def measures_of(model: EvaluatedModel, parameters: Arrays, batch: Batch) -> dict[str, float]:
    """Return what the model measures on held-out rows.

    Raises:
        ModelError: it raised, or returned something else than numbers by name.
        DataError: it has no class for a label.
    """
    name = _name(model, "evaluate")
    with _blaming(name):
        returned: object = model.evaluate(parameters, batch)
    if not isinstance(returned, Mapping) or not all(_is_number(value) for value in returned.values()):
        raise ModelError(f"{name} returned {shorten(repr(returned))}; it returns numbers by name")
    return {str(key): float(value) for key, value in returned.items()}


def predictions_of(model: PredictingModel, parameters: Arrays, batch: Batch) -> npt.NDArray[Any]:
    """Return (n,) predictions: class indices or numbers.

    Raises:
        ModelError: it raised, or returned something else.
    """
    name = _name(model, "predict")
    with _blaming(name):
        returned = np.asarray(model.predict(parameters, batch))
    if returned.shape != (len(batch),) or returned.dtype.kind not in "iuf":
        raise ModelError(
            f"{name} returned shape {returned.shape} and dtype {returned.dtype}; "
            f"it returns {len(batch)} class indices or numbers, one for each row"
        )
    return returned


def probabilities_of(model: ProbableModel, parameters: Arrays, batch: Batch) -> npt.NDArray[Any]:
    """Return (n, classes) probabilities.

    Raises:
        ModelError: it raised, or returned something else.
    """
    name = _name(model, "probabilities")
    with _blaming(name):
        returned = np.asarray(model.probabilities(parameters, batch))
    if returned.ndim != 2 or len(returned) != len(batch) or returned.dtype.kind != "f":
        raise ModelError(
            f"{name} returned shape {returned.shape} and dtype {returned.dtype}; "
            f"it returns {len(batch)} rows of probabilities, a column for each class"
        )
    return returned


def prepared_of(model: PreparedModel, batch: Batch) -> Model:
    """Return the model to train.

    Raises:
        ModelError: it raised.
        DataError: it cannot be made of these rows.
    """
    with _blaming(_name(model, "prepared")):
        return model.prepared(batch)


def _name(model: object, method: str) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}.{method}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.floating | np.integer)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        # What overflows is looked at where it leads to: a loss, or a push that is refused.
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:
        raise ModelError(f"{name} raised {type(error).__name__}: {error}") from error
