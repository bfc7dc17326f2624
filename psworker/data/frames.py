"""Batches of data frames, of pandas, polars, or whatever else has named columns with a `to_numpy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.data.features import Design
from psworker.data.parquet import as_text
from psworker.data.rows import Coded, Rows, Target, as_target, class_target, coded, usable
from psworker.errors import DataError

__all__ = ["batch_of_frame"]

_FRAME = "data frame"


def batch_of_frame(
    frame: Any,
    *,
    target: str | None,
    columns: Sequence[str] = (),
    categorical: Sequence[str] = (),
    text: Sequence[str] = (),
    hashed: bool = False,
    hash_buckets: int = 1024,
    classes: Sequence[str] = (),
    missing: Literal["error", "zero"] = "error",
) -> Batch:
    """Return the rows of a data frame with the same features as a file with these columns has.

    Args:
        frame: has `columns`, `frame[name]` for each of them, and `len`. It is not changed.
        target: the column of the labels; None: nobody knows them, and y is 0.
        columns: the features, in order; empty: all but the target.
        categorical: those of them that are categories.
        text: those of them that are texts, to be cut into words.
        hashed: whether features have keys.
        hash_buckets: dense columns for all that is hashed, where features have none.
        classes: the labels as texts, in the order of class indices; empty: labels are numbers.
        missing: what to do where a number is missing.

    Raises:
        DataError: there is no such column, or a row cannot be used; `row` is its 1-based number.
        JobError: hashed, and SciPy is not installed.
    """
    names = [str(name) for name in frame.columns]
    for name in (*columns, *categorical, *text, *([] if target is None else [target])):
        if name not in names:
            raise DataError(_FRAME, None, f'no column "{name}"; known: {", ".join(names)}')
    others = (target, *categorical, *text)
    numeric = tuple(name for name in columns or names if name not in others)
    rows = Rows(
        np.arange(len(frame)),
        np.column_stack([np.empty((len(frame), 0), np.float32), *(_floats(frame, name) for name in numeric)]),
        _target(frame, target, classes),
        tuple(_coded(frame, name) for name in categorical),
        tuple(_coded(frame, name) for name in text),
    )
    _check(rows, numeric, target, missing)
    buckets = hash_buckets if (categorical or text) and not hashed else 0
    design = Design(len(numeric), numeric, tuple(categorical), tuple(text), hashed, buckets)
    x, keys = design.of(rows, np.nan_to_num(rows.numbers, copy=False))
    return Batch(x, rows.target, keys)


def _check(rows: Rows, numeric: Sequence[str], target: str | None, missing: str) -> None:
    _, faults = usable(rows, numeric, target or "")
    if faults:
        raise DataError(_FRAME, None, faults[0].reason, column=faults[0].column, row=faults[0].index + 1)
    lacking = np.isnan(rows.numbers)
    if missing == "error" and lacking.any():
        row, column = np.argwhere(lacking)[0]
        reason = 'no value; fill it in, or take missing="zero"'
        raise DataError(_FRAME, None, reason, column=numeric[column], row=int(row) + 1)


def _floats(frame: Any, name: str) -> npt.NDArray[np.float32]:
    values = frame[name].to_numpy()
    if values.dtype.kind in "mM":
        reason = f"is a time ({values.dtype}); make what matters of it a number"
        raise DataError(_FRAME, None, reason, column=name)
    try:
        with np.errstate(over="ignore"):
            if values.dtype.kind != "O":
                return np.asarray(values, np.float32)
            # Of a nullable column: None, or pandas.NA, which is nothing that compares.
            return np.array([np.nan if _is_none(value) else value for value in values], np.float32)
    except (TypeError, ValueError) as error:
        reason = f"is no number ({error}); list it as categorical or text, or list the numeric columns"
        raise DataError(_FRAME, None, reason, column=name) from error


def _coded(frame: Any, name: str) -> Coded:
    values = frame[name].to_numpy().tolist()
    return coded(["" if _is_none(value) else as_text(value) for value in values])


def _target(frame: Any, target: str | None, classes: Sequence[str]) -> Target:
    if target is None:
        return as_target(np.zeros(len(frame)), classes)
    return class_target(_coded(frame, target), classes) if classes else _floats(frame, target)


def _is_none(value: object) -> bool:
    """Whether it stands for no value: None, NaN, pandas.NA or pandas.NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value  # noqa: PLR0124
