"""Rows whose labels nobody knows, in their order: what is predicted.

Text is read once, from front to end, as it comes, be it packed or from a pipe; other formats a piece at a
time. What is in memory at once are `MOST` rows, or fewer where they are wide.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Final, NamedTuple, Self, TypeAlias

import numpy as np

from psworker.data import Batch, arrays, parquet
from psworker.data.bad_rows import skipped_kinds
from psworker.data.columns import Columns, columns_of
from psworker.data.csv import table_under
from psworker.data.features import Design, design_of, most_rows
from psworker.data.files import File, LocalFile, found, streamed, unpacked
from psworker.data.json_lines import cells_of, csv_line
from psworker.data.libsvm import LibsvmTable, content
from psworker.data.lines import LineChunks, is_text
from psworker.data.rows import Fault, Kind, Position, Rows
from psworker.data.survey import Adjustment, Survey, survey_of
from psworker.data.tabular import with_all_numbers
from psworker.errors import DataError, JobError
from psworker.job import DataSettings
from psworker.job.data import end_of, format_of
from psworker.online.records import LineSplitter

__all__ = ["FORMATS", "MOST", "Lost", "Piece", "Trained", "read_unlabelled"]

FORMATS: Final = ("csv", "json", "libsvm", "parquet", "npy", "npz")

MOST: Final = 1024
"""Rows of a piece."""

_BLOCK: Final = 1 << 16
_JSON_ENDS: Final = (".json", ".jsonl", ".ndjson")

Line: TypeAlias = tuple[int, str]
"""A line that is not blank, and its number, from 1 on."""

Found: TypeAlias = tuple[Rows, list[Fault]]


class Lost(NamedTuple):
    """A row that cannot be predicted."""

    kind: Kind
    error: DataError


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some rows in their order.

    `batch`: those that can be read; its labels mean nothing. `lost`: what is wrong with each of the others,
    by their places among all rows of the piece, ascending.
    """

    batch: Batch
    lost: Mapping[int, Lost]

    def __len__(self) -> int:
        return len(self.batch) + len(self.lost)

    def before(self, place: int) -> Self:
        """The rows before that place."""
        lost = {at: one for at, one in self.lost.items() if at < place}
        return type(self)(self.batch.take(np.arange(place - len(lost))), lost)


@dataclass(frozen=True, slots=True)
class Trained:
    """What rows have to be like: those that a job was trained on.

    `data`: its columns, and what is done about bad rows. `form`: that of what has no name that says it.
    `fields`: the columns of a CSV line, where no header names them. `adjustment`: of numbers, as a survey has
    said; None: there was none.
    """

    data: DataSettings
    form: str = "csv"
    fields: tuple[str, ...] = ()
    adjustment: Adjustment | None = None


def read_unlabelled(
    trained: Trained, places: str | Iterable[str], form: str | None = None
) -> Iterator[Piece]:
    """Read rows as a job's data has them; the target may be missing. Blank lines are no rows.

    Args:
        trained: what rows have to be like.
        places: "-" for standard input, a file, a pattern, a URL, or several of these, read one after the
            other.
        form: one of `FORMATS`; None: what the end of a name says.

    Raises:
        DataError: something cannot be read; or a row, unless `on-error` or `missing` say to leave such rows
            out: those before it have been given out.
        JobError: the format has not what the job's features are made of.
    """
    trained = replace(trained, data=replace(trained.data, partition="leases", class_weights="none"))
    for place in [places] if isinstance(places, str) else places:
        if place == "-":
            with _standard_input() as opened:
                yield from _lines_of(trained, "standard input", opened, form or trained.form)
            continue
        for file in found(place):
            yield from _rows_of(trained, file, form or _format_of(file.path) or trained.form)


def _format_of(path: str) -> str | None:
    return "json" if end_of(path) in _JSON_ENDS else format_of(path)


@contextmanager
def _standard_input() -> Iterator[BinaryIO]:
    with open(0, "rb", buffering=0, closefd=False) as opened:
        yield opened


def _rows_of(trained: Trained, file: File, form: str) -> Iterator[Piece]:
    if form == "parquet":
        table = parquet.table_of(trained.data, unpacked(file), labelled=False)
        reading = _under(table.columns, trained, file.path)
        for rows in table.in_order(reading.most):
            yield from reading.pieces(rows, lambda index: Position(file.path, row=index + 1))
    elif form in ("npy", "npz"):
        yield from _arrays(trained, file, form)
    else:
        with streamed(file) as opened:
            yield from _lines_of(trained, file.path, opened, form)


# --- from rows to batches


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What is made of the rows of one file."""

    design: Design
    survey: Survey
    adjustment: Adjustment
    skipped: frozenset[Kind]

    @property
    def most(self) -> int:
        """Rows that are read at once."""
        return min(MOST, most_rows(self.design.features))

    def pieces(self, found: Found, position: Callable[[int], Position]) -> Iterator[Piece]:
        """The rows as a piece; those before the first bad one that is not to be left out, and its error."""
        rows, lacking = with_all_numbers(found[0], self.survey)
        x, keys = self.design.of(rows, self.adjustment.numbers(rows.numbers))
        batch = Batch(x, np.zeros(len(rows), np.float32), keys)
        faults = sorted(found[1] + lacking, key=lambda fault: fault.index)
        bad = [fault.index for fault in faults]
        places = np.searchsorted(np.sort([*rows.index.tolist(), *bad]), bad).tolist()
        lost = {
            place: Lost(fault.kind, _error(fault, position(fault.index)))
            for place, fault in zip(places, faults, strict=True)
        }
        piece = Piece(batch, lost)
        for place, one in lost.items():
            if one.kind not in self.skipped:
                yield piece.before(place)
                raise one.error
        yield piece


def _error(fault: Fault, at: Position) -> DataError:
    return DataError(at.path, at.line, fault.reason, column=fault.column, row=at.row)


def _under(columns: Columns, trained: Trained, path: str) -> _Reading:
    names = columns.numeric
    return _reading(design_of(columns, trained.data), trained, path, names, len(names))


def _reading(
    design: Design, trained: Trained, path: str, names: tuple[str, ...] | None, numeric: int
) -> _Reading:
    """Say what is made of rows with so many numbers, whose columns have these names, if they have any."""
    adjustment = trained.adjustment
    expected = None if adjustment is None else adjustment.width
    if expected not in (None, numeric):
        reason = f"has {numeric} columns of numbers, and the job was trained on {expected}; give just these"
        raise DataError(path, None, reason)
    survey = survey_of(trained.data, path, names, numeric)
    return _Reading(design, survey, adjustment or survey.known(), skipped_kinds(trained.data))


# --- arrays


def _arrays(trained: Trained, file: File, form: str) -> Iterator[Piece]:
    data = trained.data
    if data.categorical or data.text:
        raise JobError(f"{file.path}: {form} has numbers only, and the job has texts; take CSV or Parquet")
    table, width = arrays.table_of(unpacked(file), packed=form == "npz", chunk_rows=MOST)
    if data.columns and len(data.columns) != width:
        columns = ", ".join(data.columns)
        raise DataError(file.path, None, f"rows of {width} numbers; expected {len(data.columns)}: {columns}")
    unnamed = not data.columns or data.kind in ("npy", "npz")
    names = tuple(f"x{column}" for column in range(width)) if unnamed else data.columns  # as in training
    design = Design(width, names if data.hashed else (), hashed=data.hashed)
    reading = _reading(design, trained, file.path, data.columns or None, width)
    for chunk in range(table.chunks):
        yield from reading.pieces(table.read(chunk, np.arange, None), partial(table.position, chunk))


# --- lines


@dataclass(frozen=True, slots=True, eq=False)
class _Lines:
    """What lines are: `parsed` makes rows of them, `rest` are those after the header, if there is one."""

    parsed: Callable[[Sequence[Line]], Found]
    reading: _Reading
    rest: Sequence[Line]


def _lines_of(trained: Trained, path: str, opened: BinaryIO, form: str) -> Iterator[Piece]:
    if form not in ("csv", "json", "libsvm"):
        raise DataError(path, None, f"{form} is no format of lines, which a pipe has; write it into a file")
    lines: _Lines | None = None
    for given in _numbered(path, opened):
        rest: Sequence[Line] = given
        if lines is None:
            lines = _beginning(trained, path, form, given)
            rest = lines.rest
        for begin in range(0, len(rest), lines.reading.most):
            found = lines.parsed(rest[begin : begin + lines.reading.most])
            yield from lines.reading.pieces(found, lambda number: Position(path, line=number))


def _numbered(path: str, opened: BinaryIO) -> Iterator[list[Line]]:
    """The lines as they come, at least one at once."""
    splitter, number, ended = LineSplitter(path), 0, False
    while not ended:
        block = opened.read(_BLOCK)
        ended = not block
        lines = []
        for record in splitter.feed(block) if block else splitter.rest():
            number += 1
            text = record.text.decode(errors="surrogateescape")
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip(" \r"):
                lines.append((number, text))
        if lines:
            yield lines


def _beginning(trained: Trained, path: str, form: str, given: Sequence[Line]) -> _Lines:
    """Say what lines are that begin with these."""
    data = trained.data
    if form == "libsvm":
        return _libsvm(trained, path, given)
    if form == "json":
        if not (data.columns or data.categorical or data.text):
            raise JobError(f"{path}: the job's features have no names, and JSON's have; take csv or npy")
        listed = dict.fromkeys((*data.columns, *data.categorical, *data.text))
        header, line, rest = csv_line(tuple(listed)), None, given
    else:
        header, line, rest = _header(trained, path, given)
    nothing = LineChunks(LocalFile(path), 0, 0, 1)  # the lines are given
    table, columns = table_under(data, header, nothing, line, labelled=False)

    def parsed(lines: Sequence[Line]) -> Found:
        lines, faults = _as_csv(lines, table.header) if form == "json" else (lines, [])
        rows, more = table.parsed([number for number, _ in lines], [text for _, text in lines])
        return rows, [*faults, *more]

    return _Lines(parsed, _under(columns, trained, path), rest)


def _header(trained: Trained, path: str, given: Sequence[Line]) -> tuple[str, int | None, Sequence[Line]]:
    """The header of CSV lines, the line that it is in, and the lines that follow it.

    Where lines have `fields` that no header names, they may still have one, and may lack the target.
    """
    data, fields = trained.data, trained.fields
    number, first = given[0]
    if not is_text(first):
        raise DataError(path, number, "not UTF-8; convert the file to UTF-8")
    if not fields:
        return first, number, given[1:]
    cells = [cell.strip() for cell in next(csv.reader([first]), [])]
    known = columns_of(data, tuple(dict.fromkeys((*fields, *data.columns))), path, None, labelled=False)
    if set(known.inputs) <= set(cells):
        return first, number, given[1:]
    if len(cells) == len(fields) - 1:
        fields = tuple(name for name in fields if name != data.target)
    return csv_line(fields), None, given


def _as_csv(lines: Sequence[Line], names: Sequence[str]) -> tuple[list[Line], list[Fault]]:
    """Objects as lines of a CSV file, and what is wrong with those that are none."""
    made, faults = [], []
    for number, text in lines:
        try:
            made.append((number, csv_line(cells_of(text, names))))
        except ValueError as error:
            faults.append(Fault(number, "fields", str(error)))
    return made, faults


def _libsvm(trained: Trained, path: str, given: Sequence[Line]) -> _Lines:
    data = trained.data
    if data.columns or data.categorical or data.text:
        raise JobError(f"{path}: the job's features have names, and libsvm's have none; take csv or json")
    features = None if data.hashed else data.dimensions
    if features is None and not data.hashed:
        raise JobError(
            f"{path}: the job was not trained on libsvm, so nobody knows how wide rows are; take csv or npy"
        )
    design = Design(0, hashed=True) if features is None else Design(features)
    table = LibsvmTable(LineChunks(LocalFile(path), 0, 0, 1), features, ())

    def parsed(lines: Sequence[Line]) -> Found:
        return table.parsed(
            [(number, _unlabelled(text)) for number, line in lines if (text := content(line))]
        )

    return _Lines(parsed, _reading(design, trained, path, None, features or 0), given)


def _unlabelled(text: str) -> str:
    """A libsvm row with 0 for its label, whether it has one or not."""
    first, _, rest = text.partition(" ")
    return f"0 {text if ':' in first else rest}".rstrip()
