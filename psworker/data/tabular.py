"""A source of rows in columns, whatever the format: split, bad rows, missing values, scales, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from psworker.data.bad_rows import BadRows
from psworker.data.batch import Batch
from psworker.data.features import Design
from psworker.data.packed import PackedBatch
from psworker.data.rows import Fault, Rows, Table
from psworker.data.split import Holdout, Split, rows_of
from psworker.data.survey import Adjustment, Survey
from psworker.errors import DataError
from psworker.job import DataSettings

__all__ = ["TabularSource", "open_table", "with_all_numbers"]

_NO_VALUE: Final = 'no value; fill it in, remove the row, or set [data] missing to "zero", "mean" or "skip"'


@dataclass(frozen=True, slots=True, eq=False)
class TabularSource:
    """A `Source` of the rows of `table`.

    `adjustment` is None until the survey is over. `shift`: (numeric,) float64, a value of each column that
    all workers find alike. `columns` are the names of what features are made of, where the files have names.
    """

    table: Table
    design: Design
    survey: Survey
    bad_rows: BadRows
    seed: int
    holdout: Holdout
    adjustment: Adjustment | None
    shift: npt.NDArray[np.float64]
    columns: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        """See `Source.features`."""
        return self.design.features

    @property
    def hashed(self) -> bool:
        """See `Source.hashed`."""
        return self.design.hashed

    @property
    def classes(self) -> int | None:
        """See `Source.classes`: known where [data] classes lists them."""
        return len(self.survey.classes) or None

    @property
    def chunks(self) -> int:
        """See `Source.chunks`."""
        return self.table.chunks

    @property
    def wants_survey(self) -> bool:
        """See `Source.wants_survey`."""
        return self.survey.wanted

    @property
    def skipped(self) -> Mapping[str, int]:
        """See `Source.skipped`."""
        return self.bad_rows.counts

    def skipped_in(self, chunk: int, split: Split, part: int | None = None) -> Mapping[str, int]:
        """See `Source.skipped_in`."""
        return self.bad_rows.of((chunk, split, part))

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        """See `Source.read`. Only the rows asked for are parsed; errors in others are not seen."""
        if self.adjustment is None:
            raise ValueError("the source is not informed; add up the statistics of all chunks first")
        rows = self.rows(chunk, split, part)
        numbers, weight = self.adjustment.numbers(rows.numbers), self.adjustment.weight(rows.target)
        if self.design.packs:
            return PackedBatch(self.design.packed(rows, numbers), rows.target, weight)
        x, keys = self.design.of(rows, numbers)
        return Batch(x, rows.target, keys, weight)

    def statistics(self, chunk: int) -> dict[str, npt.NDArray[np.float64]]:
        """See `Source.statistics`."""
        rows = self.rows(chunk, "train", counted=False)
        return self.survey.statistics(rows, self.shift, chunk, self.chunks)

    def informed(self, totals: Mapping[str, npt.NDArray[Any]]) -> Self:
        """See `Source.informed`."""
        return replace(self, adjustment=self.survey.adjustment(totals))

    def rows(self, chunk: int, split: Split, part: int | None = None, *, counted: bool = True) -> Rows:
        """The rows of a split that can be used, before they are features. Raises as `read` does.

        Those that cannot be are `counted` where a worker's part is read; a survey reads all parts as well.
        """

        def wanted(count: int) -> npt.NDArray[np.intp]:
            return rows_of(split, count, seed=self.seed, chunk=chunk, holdout=self.holdout)

        rows, faults = self.table.read(chunk, wanted, part)
        rows, lacking = with_all_numbers(rows, self.survey)
        faults = sorted(faults + lacking, key=lambda fault: fault.index)
        self.bad_rows.leave_out(
            faults, (chunk, split, part), lambda fault: self._error(chunk, fault), counted=counted
        )
        return rows

    def _error(self, chunk: int, fault: Fault) -> DataError:
        at = self.table.position(chunk, fault.index)
        return DataError(at.path, at.line, fault.reason, column=fault.column, row=at.row)


def with_all_numbers(rows: Rows, survey: Survey) -> tuple[Rows, list[Fault]]:
    """The rows that lack no number, unless missing ones are filled in; what is wrong with the others."""
    if survey.missing in ("zero", "mean") or not np.isnan(rows.numbers).any():
        return rows, []
    lacking = np.isnan(rows.numbers)
    bad = np.logical_or.reduce(lacking, 1)
    columns = survey.columns
    faults = [
        Fault(int(row), "missing", _NO_VALUE, None if columns is None else columns[first])
        for row, first in zip(rows.index[bad], lacking[bad].argmax(1), strict=True)
    ]
    return rows.where(~bad), faults


def open_table(
    table: Table,
    design: Design,
    survey: Survey,
    data: DataSettings,
    *,
    seed: int,
    holdout: Holdout,
    columns: tuple[str, ...] = (),
) -> TabularSource:
    """The source of a table; where a survey is wanted, the first chunk is read once.

    `columns`: the names of what its features are made of, where they have names.

    Raises JobError if what the survey would have to keep is too much, DataError for what `Table.read` does.
    """
    shift = np.zeros(survey.features)
    adjustment = None if survey.wanted else survey.known()
    source = TabularSource(table, design, survey, BadRows(data), seed, holdout, adjustment, shift, columns)
    if not survey.wanted:
        return source
    survey.check(table.chunks)
    return replace(source, shift=_first_values(source.rows(0, "train", counted=False).numbers))


def _first_values(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The first value in each column, 0 where there is none."""
    if not len(numbers):
        return np.zeros(numbers.shape[1])
    there = ~np.isnan(numbers)
    first = numbers[there.argmax(0), np.arange(numbers.shape[1])]
    return np.where(there.any(0), first, 0).astype(np.float64)
