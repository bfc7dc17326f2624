"""From lines to batches: columns separated as in a CSV file, or one JSON object a line.

A JSON object becomes a line of its columns, so that what [data] says of columns is done to both.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from psworker.data import Batch
from psworker.data.bad_rows import BadRows
from psworker.data.columns import columns_of
from psworker.data.csv import CsvTable, table_under
from psworker.data.features import design_of
from psworker.data.files import LocalFile
from psworker.data.json_lines import cells_of, csv_line
from psworker.data.lines import LineChunks
from psworker.data.rows import Fault, Position, Wanted
from psworker.data.rows import Rows as ParsedRows
from psworker.data.survey import survey_of
from psworker.data.tabular import open_table
from psworker.errors import DataError
from psworker.job import DataSettings

__all__ = ["MakeBatch", "Rows"]


class MakeBatch(Protocol):
    """Makes batches of lines."""

    def __call__(self, lines: Sequence[bytes], at: Callable[[int], Position] | None = None) -> Batch:
        """Return the batch; ``at`` says where a line is, by its index.

        Raises:
            DataError: for what is no example, unless [data] on-error says to leave it out.
        """


@dataclass(frozen=True, slots=True)
class Rows:
    """What lines are and what is made of them.

    `name` is their stream's, for errors; `json`: each is an object. `fields` are the columns of a CSV line in
    their order, separated by commas; empty: a header names them.
    """

    data: DataSettings
    name: str
    json: bool = False
    fields: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are features, or become some: those listed, or all fields but the target."""
        data = self.data
        listed = tuple(dict.fromkeys((*data.columns, *data.categorical, *data.text)))
        known = dict.fromkeys((*(self.fields or listed), data.target))
        return columns_of(data, tuple(known), self.name, None).inputs

    @property
    def features(self) -> int:
        """Columns of a batch's x; 0 if features are hashed."""
        data = replace(self.data, columns=self.columns)
        return design_of(columns_of(data, (*self.columns, data.target), self.name, None), data).features

    def under(self, header: str | None, bad_rows: BadRows | None = None) -> MakeBatch:
        """Return what makes batches of lines under this header; None: there is none.

        Args:
            header: a line that names the columns.
            bad_rows: counts what is left out; None: nobody asks.

        Raises:
            DataError: a column is missing.
        """
        data = replace(self.data, columns=self.columns)
        names, separator = self._layout(header)
        lines = LineChunks(LocalFile(self.name), 0, 0, 1)  # there is no file: they are given
        table, columns = table_under(data, csv_line(names, separator), lines, None)
        survey = survey_of(data, self.name, columns.numeric, len(columns.numeric))
        nothing = _Lines(table, str, (), (), self._anywhere)
        source = open_table(nothing, design_of(columns, data), survey, data, seed=0, holdout=0.0)
        source = replace(source, bad_rows=bad_rows or BadRows(data, endless=True))
        as_csv = self._as_csv()

        def batch(lines: Sequence[bytes], at: Callable[[int], Position] | None = None) -> Batch:
            decoded = [line.decode(errors="surrogateescape") for line in lines]
            there = [number for number, text in enumerate(decoded) if text.strip(" \r")]
            texts = [decoded[number] for number in there]
            made = replace(source, table=_Lines(table, as_csv, texts, there, at or self._anywhere))
            return made.read(0, "train")

        return batch

    def _anywhere(self, number: int) -> Position:
        return Position(self.name)

    def _layout(self, header: str | None) -> tuple[tuple[str, ...], str]:
        """The columns of a line in their order, and what is between them."""
        if self.json:
            return (*self.columns, self.data.target), ","
        if header is None:
            return self.fields, ","
        separator = max(",;\t", key=header.count)
        try:
            names = next(csv.reader([header], delimiter=separator, strict=True))
        except csv.Error as error:
            raise DataError(self.name, None, f"the header cannot be split into columns: {error}") from error
        return tuple(name.strip() for name in names), separator

    def _as_csv(self) -> Callable[[str], str]:
        """What makes a CSV line of a line; it raises ValueError for one that is no JSON object."""
        if not self.json:
            return str
        names = (*self.columns, self.data.target)
        return lambda text: csv_line(cells_of(text, names))


class _Lines:
    """A `Table` of one chunk: some lines, of which text i is the one numbered `numbers[i]`."""

    chunks = 1

    def __init__(
        self,
        table: CsvTable,
        as_csv: Callable[[str], str],
        texts: Sequence[str],
        numbers: Sequence[int],
        at: Callable[[int], Position],
    ) -> None:
        self._table = table
        self._as_csv = as_csv
        self._texts = texts
        self._numbers = numbers
        self._at = at

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[ParsedRows, list[Fault]]:
        """See `Table.read`."""
        numbers, lines, faults = [], [], []
        for number in wanted(len(self._texts)).tolist():
            try:
                lines.append(self._as_csv(self._texts[number].removesuffix("\r")))
            except ValueError as error:
                faults.append(Fault(number, "fields", str(error)))
            else:
                numbers.append(number)
        rows, more = self._table.parsed(numbers, lines)
        return rows, [*faults, *more]

    def position(self, chunk: int, index: int) -> Position:
        """See `Table.position`."""
        return self._at(self._numbers[index])
