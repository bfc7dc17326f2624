"""Whether numbers are so large, or so unlike each other, that no learning rate suits all columns."""

from __future__ import annotations

from typing import Final

import numpy as np

from psworker.data.source import Source
from psworker.data.tabular import TabularSource

__all__ = ["unscaled"]

_LARGE: Final = 100.0
"""Times 1, or the smallest column. Curvature grows with its square, and a rate above 2 / that diverges."""


def unscaled(source: Source) -> str:
    """What is wrong with the sizes of the columns, and what to do; "" if nothing is, or they are scaled.

    The size of a column is the root of the mean square of its numbers in the first chunk's training rows.
    Columns that are all 0 are left out.

    Raises DataError if the chunk cannot be read.
    """
    if not isinstance(source, TabularSource) or source.survey.scale != "none":
        return ""
    numbers = source.rows(0, "train", counted=False).numbers.astype(np.float64)
    there = ~np.isnan(numbers)
    squares = np.where(there, numbers, 0) ** 2
    sizes = np.sqrt(squares.sum(0) / np.maximum(there.sum(0), 1))
    used = np.flatnonzero(sizes)
    if not len(used):
        return ""
    least, most = used[sizes[used].argmin()], used[sizes[used].argmax()]
    if sizes[most] < _LARGE and sizes[most] < _LARGE * sizes[least]:
        return ""
    others = "" if most == least else f", those of {_name(source, least)} about {sizes[least]:.2g}"
    return (
        f'numbers of {_name(source, most)} are about {sizes[most]:.2g}{others}: set [data] scale = "standard"'
    )


def _name(source: TabularSource, column: int) -> str:
    """How a column is called in messages: by its name, or by its place from 1 on."""
    names = source.survey.columns
    return f"column {column + 1}" if names is None else f'column "{names[column]}"'
