"""Which columns of a file are the target, numbers, categories and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psworker.errors import DataError
from psworker.job import DataSettings, nearest

__all__ = ["Columns", "columns_of", "same_columns"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; `numeric` in the order of the features. `target` None: nobody knows the labels."""

    target: str | None
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    text: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those that are features, or become some."""
        return (*self.numeric, *self.categorical, *self.text)

    @property
    def used(self) -> tuple[str, ...]:
        """All of them, the target last."""
        return self.inputs if self.target is None else (*self.inputs, self.target)


def columns_of(
    data: DataSettings, header: Sequence[str], path: str, line: int | None, *, labelled: bool = True
) -> Columns:
    """The columns that are used of a file with this header, which is in `line` of it.

    Not `labelled`: the target may be missing, and is no column that is used.

    Raises DataError if one is missing or has no name of its own, or there is no feature.
    """
    named = [("target", data.target)] if labelled else []
    named += [("columns", name) for name in data.columns]
    named += [("categorical", name) for name in data.categorical] + [("text", name) for name in data.text]
    # The column that cuts the data may be text, and is a feature only where it is said to be one.
    if data.hash_column is not None:
        named.append(("partition", data.hash_column))
    for key, name in named:
        if name not in header:
            reason = f'no column "{name}", which [data] {key} names{nearest(name, header)}'
            raise DataError(path, line, reason)
    others = (data.target, data.hash_column, *data.categorical, *data.text)
    listed = data.columns or tuple(name for name in header if name not in others)
    numeric = tuple(name for name in listed if name not in (*data.categorical, *data.text))
    columns = Columns(data.target if labelled else None, numeric, data.categorical, data.text)
    if "" in columns.used:
        reason = "a column has no name (a saved index?); name it, or list [data] columns"
        raise DataError(path, line, reason)
    for name in (*columns.used, *filter(None, [data.hash_column])):
        if header.count(name) > 1:
            raise DataError(path, line, f'two columns are named "{name}"; rename one')
    if not columns.inputs:
        other = " and that of [data] partition" if data.hash_column else ""
        raise DataError(path, line, f"no column but the target{other}; add a column for each feature")
    return columns


def same_columns(
    header: Sequence[str], path: str, line: int | None, first: Sequence[str], first_path: str
) -> None:
    """Raise DataError, which names both files, unless their headers are the same."""
    if tuple(header) == tuple(first):
        return
    pairs = zip((*first, "nothing"), (*header, "nothing"), strict=False)
    number, (there, here) = next(pair for pair in enumerate(pairs, 1) if pair[1][0] != pair[1][1])
    reason = f'column {number} is "{here}", but "{there}" in {first_path}; all files need the same columns'
    raise DataError(path, line, reason)
