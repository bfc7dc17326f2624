"""Examples from CSV files: a header line, then one row per line, read chunk by chunk.

The separator is a comma, or a semicolon or tab if the header has more of these. Fields may be quoted
with double quotes, but have no line ends in them. Blank lines are passed over.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from psworker.data.columns import Columns, columns_of, same_columns
from psworker.data.features import buckets_of, design_of, most_rows
from psworker.data.files import File
from psworker.data.lines import LineChunks, is_text, line_number, open_lines
from psworker.data.numbers import number_fault
from psworker.data.partition import part_of
from psworker.data.rows import (
    UNKNOWN,
    Coded,
    Fault,
    Kind,
    Position,
    Rows,
    Target,
    Wanted,
    as_target,
    class_target,
    coded,
)
from psworker.data.split import Holdout
from psworker.data.survey import survey_of
from psworker.data.tables import joined
from psworker.data.tabular import TabularSource, open_table
from psworker.errors import DataError
from psworker.job import DataSettings, nearest


@dataclass(frozen=True, slots=True)
class CsvTable:
    """Chunks of a CSV file.

    `numeric`, `categorical`, `text` and `target` are places in the header; without a `target` it is 0.
    `hashed` is the column that cuts the rows into `parts`; None: they are not cut.
    """

    lines: LineChunks
    separator: str
    header: tuple[str, ...]
    numeric: tuple[int, ...]
    categorical: tuple[int, ...]
    text: tuple[int, ...]
    target: int | None
    class_names: tuple[str, ...]
    missing: frozenset[str]
    hashed: int | None
    parts: int

    @property
    def chunks(self) -> int:
        """See `Table.chunks`."""
        return self.lines.chunks

    def position(self, chunk: int, index: int) -> Position:
        """See `Table.position`; `index` is that of a line of the chunk."""
        offset, _ = self.lines.read(chunk, "surrogateescape")
        return Position(self.lines.path, line_number(self.lines.file, offset) + index)

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[Rows, list[Fault]]:
        """See `Table.read`. Only the rows asked for are parsed; errors in others are not seen."""
        _, lines = self.lines.read(chunk, "surrogateescape")
        rows = [number for number, line in enumerate(lines) if line.strip(" ")]
        numbers = [rows[row] for row in wanted(len(rows))]
        if part is not None:
            if self.hashed is None or not 0 <= part < self.parts:
                raise IndexError(f"part {part} of a chunk of {self.lines.path}, which has {self.parts}")
            numbers = [number for number in numbers if self._is_of(part, self.hashed, lines[number])]
        return self.parsed(numbers, [lines[number] for number in numbers])

    def parsed(self, numbers: Sequence[int], texts: Sequence[str]) -> tuple[Rows, list[Fault]]:
        """The lines `texts` as rows of these `numbers`, and what is wrong with those that are none."""
        try:
            return self._parse(numbers, texts), []
        except ValueError:
            return self._parse_carefully(numbers, texts)

    def _is_of(self, part: int, column: int, text: str) -> bool:
        """Whether a row is of `part`. What cannot be told is of the first, to be refused there, and once."""
        value = self._value(column, text)
        return part == (0 if value is None else part_of(value, self.parts))

    def _value(self, column: int, text: str) -> str | None:
        """What a row has in `column`; None if it cannot be cut into as many columns as the header has."""
        if not is_text(text):
            return None
        if '"' not in text:
            whole = text.count(self.separator) == len(self.header) - 1
            return text.split(self.separator, column + 1)[column].strip() if whole else None
        try:
            fields = _fields(text, self.separator)
        except ValueError:
            return None
        return fields[column].strip() if len(fields) == len(self.header) else None

    # --- all rows at once

    def _parse(self, numbers: Sequence[int], texts: Sequence[str]) -> Rows:
        """Rows all of which have all their numbers; ValueError, of whatever text, if there are others."""
        if not all(map(is_text, texts)):
            raise ValueError("not UTF-8")
        # Counting separators will do, except where quotes may hide some; a quote left open, which
        # would swallow the line end, is a ValueError here.
        separators = len(self.header) - 1
        if any(
            (text.count(self.separator) != separators or '"' in text)
            and len(_fields(text, self.separator)) != len(self.header)
            for text in texts
        ):
            raise ValueError("ragged")
        cells = [self._split(text) for text in texts] if self._needs_texts else []
        target: Target
        if self.target is None:
            target, table = np.zeros(len(texts), np.float32), self._numbers(texts, self.numeric)
        elif self.class_names:
            target = class_target(_column(cells, self.target), self.class_names)
            if (target == UNKNOWN).any():
                raise ValueError("an unknown class")
            table = self._numbers(texts, self.numeric)
        else:
            table = self._numbers(texts, (*self.numeric, self.target))
            target, table = table[:, -1].copy(), table[:, :-1]
        return Rows(_index(numbers), table, target, *self._texts(cells))

    @property
    def _needs_texts(self) -> bool:
        return bool(self.class_names or self.categorical or self.text)

    def _numbers(self, texts: Sequence[str], columns: Sequence[int]) -> npt.NDArray[np.float32]:
        if not texts or not columns:
            return np.empty((len(texts), len(columns)), np.float32)
        table = np.loadtxt(
            texts,
            np.float32,
            comments=None,
            delimiter=self.separator,
            usecols=columns,
            ndmin=2,
            encoding=None,
            quotechar='"',
        )
        if not np.isfinite(table).all():
            raise ValueError("not finite")
        return table

    def _texts(self, cells: Sequence[Sequence[str]]) -> tuple[tuple[Coded, ...], tuple[Coded, ...]]:
        """The columns of categories and of texts."""
        return (
            tuple(_column(cells, place) for place in self.categorical),
            tuple(_column(cells, place) for place in self.text),
        )

    def _split(self, text: str) -> list[str]:
        return _fields(text, self.separator) if '"' in text or "\r" in text else text.split(self.separator)

    # --- row by row

    def _parse_carefully(self, numbers: Sequence[int], texts: Sequence[str]) -> tuple[Rows, list[Fault]]:
        """The rows that can be read, and what is wrong with the others."""
        good: list[int] = []
        cells: list[list[str]] = []
        values: list[list[float]] = []
        faults: list[Fault] = []
        for number, text in zip(numbers, texts, strict=True):
            found = self._row(number, text)
            if isinstance(found, Fault):
                faults.append(found)
            else:
                good.append(number)
                cells.append(found[0])
                values.append(found[1])
        table = np.array(values, np.float32).reshape(len(good), len(self.numeric) + 1)
        target = as_target(table[:, -1], self.class_names)
        return Rows(_index(good), table[:, :-1], target, *self._texts(cells)), faults

    def _row(self, number: int, text: str) -> tuple[list[str], list[float]] | Fault:
        """The fields of a row, and its numbers, the target last; or what is wrong with it."""
        if not is_text(text):
            return Fault(number, "encoding", "not UTF-8; convert the file to UTF-8")
        try:
            fields = self._split(text)
        except ValueError as error:
            return Fault(number, "fields", str(error))
        if len(fields) != len(self.header):
            has = f"the row has {len(fields)} values, the header {len(self.header)}"
            return Fault(number, "fields", f"{has}; give each column one value")
        values = []
        for place in self.numeric:
            value = self._number(fields[place])
            if value is None:
                fault = number_fault(fields[place].strip())
                return self._fault(number, "number", place, f"{fault}; {_NO_NUMBER}", fields)
            values.append(value)
        if self.target is None:
            return fields, [*values, 0.0]
        return self._labelled(number, fields, values, self.target)

    def _labelled(
        self, number: int, fields: list[str], values: list[float], target: int
    ) -> tuple[list[str], list[float]] | Fault:
        label = fields[target].strip()
        value = self._label(label)
        if value is None and label in self.missing:
            name = self.header[target]
            return Fault(number, "target", "no value; fill it in or remove the row", name)
        if value is None:
            return self._fault(number, "target", target, self._label_fault(label), fields)
        return fields, [*values, value]

    def _number(self, cell: str) -> float | None:
        """A finite float32, NaN for a missing value, None for what is neither."""
        try:
            value = float(cell)
            if abs(value) <= _LARGEST and "_" not in cell and cell.isascii():
                return value
        except ValueError:
            pass
        return math.nan if cell.strip() in self.missing else None

    def _label(self, label: str) -> float | None:
        if self.class_names:
            return self.class_names.index(label) if label in self.class_names else None
        value = self._number(label)
        return None if value is None or math.isnan(value) else value

    def _label_fault(self, label: str) -> str:
        if self.class_names:
            return f"is not in [data] classes{nearest(label, self.class_names)}"
        return f"{number_fault(label)}; list the labels in [data] classes, or correct the row"

    def _fault(self, number: int, kind: Kind, place: int, reason: str, fields: Sequence[str]) -> Fault:
        cell = fields[place].strip()
        shown = f'"{cell[:80]}" {reason}' if cell else reason
        return Fault(number, kind, shown, self.header[place])


_NO_NUMBER: Final = (
    "correct the row, or the job: a column of words goes into [data] categorical or text, or out of columns"
)
_LARGEST = float(np.finfo(np.float32).max)


def open_csv(
    data: DataSettings, files: Sequence[File], *, seed: int, holdout: Holdout, parts: int
) -> TabularSource:
    """Read the headers and find the columns.

    Raises DataError if that is not possible, or the headers differ.
    """
    opened = [_open(data, file, parts) for file in files]
    (first, columns), path = opened[0], files[0].path
    for other, _ in opened[1:]:
        same_columns(other.header, other.lines.path, 1, first.header, path)
    design = design_of(columns, data)
    survey = survey_of(data, path, columns.numeric, len(columns.numeric))
    table = joined([table for table, _ in opened])
    return open_table(table, design, survey, data, seed=seed, holdout=holdout, columns=columns.inputs)


def _open(data: DataSettings, file: File, parts: int) -> tuple[CsvTable, Columns]:
    rows = min(data.chunk_rows, most_rows(buckets_of(data)))
    first, lines = open_lines(file, rows, header=True)
    return table_under(data, first, lines, 1, parts)


def table_under(
    data: DataSettings,
    first: str,
    lines: LineChunks,
    line: int | None,
    parts: int = 1,
    *,
    labelled: bool = True,
) -> tuple[CsvTable, Columns]:
    """The rows of `lines` under the header `first`, which is their line `line`. Raises as `open_csv` does."""
    path = lines.path
    separator = max(",;\t", key=first.count)  # the first of equals: a comma
    try:
        header = tuple(name.strip() for name in _fields(first, separator))
    except ValueError as error:
        raise DataError(path, line, str(error)) from error
    columns = columns_of(data, header, path, line, labelled=labelled)

    def places(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(map(header.index, names))

    table = CsvTable(
        lines,
        separator,
        header,
        places(columns.numeric),
        places(columns.categorical),
        places(columns.text),
        None if columns.target is None else header.index(columns.target),
        data.classes if labelled else (),
        frozenset(data.missing_values),
        None if data.hash_column is None else header.index(data.hash_column),
        parts,
    )
    return table, columns


def _index(numbers: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _column(cells: Sequence[Sequence[str]], place: int) -> Coded:
    return coded([row[place].strip() for row in cells])


def _fields(text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"cannot be split into fields ({error}); check its quotes, and that no field has a line end in it"
        ) from error
