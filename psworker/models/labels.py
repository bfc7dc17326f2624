"""Labels as class indices, whatever type the data source gave them."""

import numpy as np
import numpy.typing as npt

from psworker.errors import DataError


def check_classes(classes: int) -> None:
    """Raise ValueError unless `classes` is a whole number of at least 2."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes is {classes!r}; expected a whole number, at least 2")


def class_indices(y: npt.NDArray[np.float32] | npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Labels (n,) as int64 class indices. Raises DataError unless each is a whole number in 0..classes-1."""
    if y.dtype == np.int64:
        valid = y.view(np.uint64) < classes  # those below 0 are far above, so
    else:
        valid = (y >= 0) & (y < classes) & (y == np.floor(y))
    if not valid.all():
        raise DataError(
            "labels",
            None,
            f"{y[~valid][0]:g} is not one of the classes 0..{classes - 1}; "
            "list the labels in [data] classes, correct [model] classes or the data, or take a model of "
            'numbers, such as kind = "linear"',
        )
    return y.astype(np.int64, copy=False)
