"""Rows as their file has them, before they are features: the one form that all formats are read into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["fields", "number", "missing", "target", "encoding", "entry"]
"""What can be wrong with a row: its number of fields, a number, no number, the target, bytes, index:value."""

Wanted: TypeAlias = Callable[[int], npt.NDArray[np.intp]]
"""Given how many rows a chunk has: which of them are asked for, ascending."""

Target: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.int64]"

UNKNOWN = -1
"""The class index of a label that is none of the classes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the row `index` of a chunk, in `column` if it is one column."""

    index: int
    kind: Kind
    reason: str
    column: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A column of texts: that of row i is values[codes[i]]. `codes`: (n,) intp."""

    codes: npt.NDArray[np.intp]
    values: Sequence[str]

    def used(self) -> Self:
        """The same without the values that no row has."""
        found = np.flatnonzero(np.bincount(self.codes, minlength=len(self.values)))
        if len(found) == len(self.values):
            return self
        place = np.zeros(len(self.values), np.intp)
        place[found] = np.arange(len(found))
        return type(self)(place[self.codes], [self.values[one] for one in found.tolist()])


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Features that the file names by numbers: row i has those at starts[i] up to starts[i + 1].

    `starts`: (n + 1,) intp. `keys`: (m,) uint64. `values`: (m,) float32.
    """

    starts: npt.NDArray[np.intp]
    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows that were asked for, without those that cannot be read.

    `index`: (n,) int64, which rows of the chunk they are. `numbers`: (n, numeric columns) float32, NaN where
    there is no value. `target`: (n,) int64 class indices, or float32. `categories` and `texts` are the
    columns of these kinds.
    """

    index: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float32]
    target: Target
    categories: tuple[Coded, ...] = ()
    texts: tuple[Coded, ...] = ()
    entries: Entries | None = None

    def __len__(self) -> int:
        return len(self.index)

    def where(self, good: npt.NDArray[np.bool_]) -> Self:
        """Only the rows that are `good`; not of rows with entries."""
        return replace(
            self,
            index=self.index[good],
            numbers=self.numbers[good],
            target=self.target[good],
            categories=tuple(Coded(column.codes[good], column.values) for column in self.categories),
            texts=tuple(Coded(column.codes[good], column.values) for column in self.texts),
        )


@dataclass(frozen=True, slots=True)
class Position:
    """Where a row is: the 1-based line of a text file, or the 1-based row of another one."""

    path: str
    line: int | None = None
    row: int | None = None


class Table(Protocol):
    """The rows of one file, or of several, in chunks."""

    @property
    def chunks(self) -> int:
        """How many chunks there are."""

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[Rows, list[Fault]]:
        """The wanted rows of a chunk that can be read, and what is wrong with the others.

        Raises DataError if nothing of it can be read, IndexError if there is no such chunk or part.
        """

    def position(self, chunk: int, index: int) -> Position:
        """Where the row `index` of a chunk is; it may take as long as reading the file."""


def coded(texts: Sequence[str]) -> Coded:
    """The texts of a column, each distinct one once."""
    place: dict[str, int] = {}
    codes = np.fromiter((place.setdefault(text, len(place)) for text in texts), np.intp, len(texts))
    return Coded(codes, list(place))


def as_target(numbers: npt.NDArray[np.floating[Any]], classes: Sequence[str]) -> Target:
    """Class indices where there are classes, else numbers."""
    return numbers.astype(np.int64) if classes else numbers.astype(np.float32)


def class_target(labels: Coded, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Labels as class indices (n,), UNKNOWN where it is no class."""
    place = {name: index for index, name in enumerate(classes)}
    known = np.fromiter((place.get(value, UNKNOWN) for value in labels.values), np.int64, len(labels.values))
    return known[labels.codes] if len(labels.codes) else np.empty(0, np.int64)


def usable(rows: Rows, columns: Sequence[str] | None, target: str) -> tuple[Rows, list[Fault]]:
    """The rows whose numbers are finite or missing, and that have a target; what is wrong with the others."""
    infinite = np.isinf(rows.numbers)
    known = np.isfinite(rows.target) if rows.target.dtype.kind == "f" else rows.target != UNKNOWN
    good = known & ~infinite.any(1)
    if good.all():
        return rows, []
    faults = []
    for place in np.flatnonzero(~good):
        index = int(rows.index[place])
        if known[place]:
            name = None if columns is None else columns[int(infinite[place].argmax())]
            faults.append(Fault(index, "number", "is not finite as float32; correct the row", name))
        else:
            reason = "no value, or none of [data] classes; correct the row"
            faults.append(Fault(index, "target", reason, target))
    return rows.where(good), faults
