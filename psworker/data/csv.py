"""Examples from a CSV file: a header line, then one row per line, read chunk by chunk.

The separator is a comma, or a semicolon or tab if the header has more of these. Fields may be quoted
with double quotes, but have no line ends in them. Blank lines are passed over.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.data.lines import LineChunks, line_number, open_lines
from psworker.data.numbers import number_fault
from psworker.data.partition import part_of
from psworker.data.split import Split, rows_of
from psworker.errors import DataError
from psworker.job import DataSettings, nearest

_UNKNOWN_CLASS = -1.0


@dataclass(frozen=True, slots=True)
class CsvSource:
    """Chunks of a CSV file; `used` are the columns of the features, then that of the label.

    `hashed` is the column that cuts the rows into `parts`; None: they are not cut.
    """

    lines: LineChunks
    separator: str
    header: tuple[str, ...]
    used: tuple[int, ...]
    class_names: tuple[str, ...]
    seed: int
    holdout: float
    hashed: int | None
    parts: int

    @property
    def features(self) -> int:
        """See `Source.features`."""
        return len(self.used) - 1

    @property
    def classes(self) -> int | None:
        """See `Source.classes`: known where [data] classes lists them."""
        return len(self.class_names) or None

    @property
    def chunks(self) -> int:
        """See `Source.chunks`."""
        return self.lines.chunks

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        """See `Source.read`. Only the rows asked for are parsed; errors in others are not seen."""
        offset, lines = self.lines.read(chunk)
        rows = [number for number, line in enumerate(lines) if line.strip(" ")]
        mine = rows_of(split, len(rows), seed=self.seed, chunk=chunk, holdout=self.holdout)
        numbers = [rows[row] for row in mine]
        if part is not None:
            if self.hashed is None or not 0 <= part < self.parts:
                raise IndexError(f"part {part} of a chunk of {self.lines.path}, which has {self.parts}")
            numbers = [number for number in numbers if self._is_of(part, self.hashed, lines[number])]
        texts = [lines[number] for number in numbers]
        try:
            table = self._parse(texts)
        except ValueError as error:
            raise self._explain(offset, numbers, texts) from error
        x = np.ascontiguousarray(table[:, :-1])
        y = table[:, -1]
        return Batch(x, y.astype(np.int64) if self.class_names else y.copy())

    def _is_of(self, part: int, column: int, text: str) -> bool:
        """Whether a row is of `part`. What cannot be told is of every part, to be refused there."""
        value = self._value(column, text)
        return value is None or part_of(value, self.parts) == part

    def _value(self, column: int, text: str) -> str | None:
        """What a row has in `column`; None if it cannot be cut into as many columns as the header has."""
        if '"' not in text:
            whole = text.count(self.separator) == len(self.header) - 1
            return text.split(self.separator, column + 1)[column].strip() if whole else None
        try:
            fields = _fields(text, self.separator)
        except ValueError:
            return None
        return fields[column].strip() if len(fields) == len(self.header) else None

    def _parse(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The used columns as (rows, used) float32; ValueError, of whatever text, if there is an error."""
        if not texts:
            return np.empty((0, len(self.used)), np.float32)
        # Counting separators will do, except where quotes may hide some; a quote left open, which
        # would swallow the line end, is a ValueError here.
        separators = len(self.header) - 1
        if any(
            (text.count(self.separator) != separators or '"' in text)
            and len(_fields(text, self.separator)) != len(self.header)
            for text in texts
        ):
            raise ValueError("ragged")
        indices = {name: float(index) for index, name in enumerate(self.class_names)}
        label = self.used[-1]
        table = np.loadtxt(
            texts,
            np.float32,
            comments=None,
            delimiter=self.separator,
            converters={label: lambda text: indices.get(text.strip(), _UNKNOWN_CLASS)} if indices else None,
            usecols=self.used,
            ndmin=2,
            encoding=None,
            quotechar='"',
        )
        if not np.isfinite(table).all() or (indices and (table[:, -1] == _UNKNOWN_CLASS).any()):
            raise ValueError("not finite, or an unknown class")
        return table

    def _explain(self, offset: int, numbers: Sequence[int], texts: Sequence[str]) -> DataError:
        """The slow way to the first line that `_parse` refuses, and what is wrong with it."""
        for number, text in zip(numbers, texts, strict=True):
            try:
                self._parse([text])
            except ValueError as error:
                line = line_number(self.lines.path, offset) + number
                return DataError(self.lines.path, line, self._fault(text) or str(error))
        raise AssertionError("each line can be parsed, but not all of them together")

    def _fault(self, text: str) -> str | None:
        try:
            fields = _fields(text, self.separator)
        except ValueError as error:
            return str(error)
        if len(fields) != len(self.header):
            return (
                f"the row has {len(fields)} values, the header {len(self.header)}; give each column one value"
            )
        for column in self.used:
            fault = self._cell_fault(column, fields[column].strip())
            if fault:
                return fault
        return None

    def _cell_fault(self, column: int, text: str) -> str | None:
        name = self.header[column]
        if not text:
            return f'no value in column "{name}"; fill it in or remove the row'
        if column == self.used[-1] and self.class_names:
            if text in self.class_names:
                return None
            known = nearest(text, self.class_names)
            return f'"{text[:80]}" in column "{name}" is not in [data] classes{known}'
        remedy = (
            "list the labels in [data] classes, or correct the row"
            if column == self.used[-1]
            else "list the numeric columns in [data] columns, or correct the row"
        )
        fault = number_fault(text)
        return fault and f'"{text[:80]}" in column "{name}" {fault}; {remedy}'


def open_csv(data: DataSettings, *, seed: int, holdout: float, parts: int) -> CsvSource:
    """Read the header and find the columns. Raises DataError if that is not possible."""
    path = data.source
    first, lines = open_lines(path, data.chunk_rows, header=True)
    separator = max(",;\t", key=first.count)  # the first of equals: a comma
    try:
        header = tuple(name.strip() for name in _fields(first, separator))
    except ValueError as error:
        raise DataError(path, 1, str(error)) from error
    # The column that cuts the data may be text, and is a feature only where it is said to be one.
    features = data.columns or tuple(name for name in header if name not in (data.target, data.hash_column))
    named = [("target", data.target), *(("columns", name) for name in features)]
    if data.hash_column is not None:
        named.append(("partition", data.hash_column))
    for key, name in named:
        if name not in header:
            reason = f'no column "{name}", which [data] {key} names{nearest(name, header)}'
            raise DataError(path, 1, reason)
        if header.count(name) > 1:
            raise DataError(path, 1, f'two columns are named "{name}"; rename one')
    if "" in features:
        reason = "a column has no name (a saved index?); name it, or list [data] columns"
        raise DataError(path, 1, reason)
    if not features:
        other = " and that of [data] partition" if data.hash_column else ""
        raise DataError(path, 1, f"no column but the target{other}; add a column for each feature")
    used = tuple(header.index(name) for name in (*features, data.target))
    hashed = None if data.hash_column is None else header.index(data.hash_column)
    return CsvSource(lines, separator, header, used, data.classes, seed, holdout, hashed, parts)


def _fields(text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"cannot be split into fields ({error}); check its quotes, and that no field has a line end in it"
        ) from error
