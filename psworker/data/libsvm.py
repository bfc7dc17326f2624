"""Examples from files in LIBSVM's format, read chunk by chunk; dense, or with the indices as keys.

A row is `label index:value index:value ...`; indices start at 1 and ascend, what is not there is 0,
and `#` begins a comment. Source: Chang and Lin, "LIBSVM: A Library for Support Vector Machines", 2011.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.features import Design
from psworker.data.files import File
from psworker.data.lines import LineChunks, is_text, line_number, open_lines
from psworker.data.numbers import number_fault
from psworker.data.rows import Entries, Fault, Kind, Position, Rows, Wanted, as_target
from psworker.data.split import Holdout
from psworker.data.survey import survey_of
from psworker.data.tables import joined
from psworker.data.tabular import TabularSource, open_table
from psworker.errors import DataError
from psworker.job import DataSettings, nearest

MAX_DENSE = 1 << 30
"""Bytes of the largest dense batch; wide rows need fewer of them per chunk."""

_LARGEST_KEY = (1 << 64) - 1
_EXACT = float(1 << 53)
_INDEX = re.compile("[0-9]{1,18}")
_SPACE, _COLON, _NEWLINE = b" :\n"


@dataclass(frozen=True, slots=True)
class LibsvmTable:
    """Chunks of a LIBSVM file; feature j of a batch is the file's index j + 1.

    `features` None: any index is a feature, with itself as its key.
    """

    lines: LineChunks
    features: int | None
    class_names: tuple[str, ...]

    @property
    def chunks(self) -> int:
        """See `Table.chunks`."""
        return self.lines.chunks

    def position(self, chunk: int, index: int) -> Position:
        """See `Table.position`; `index` is that of a line of the chunk."""
        offset, _ = self.lines.read(chunk, "surrogateescape")
        return Position(self.lines.path, line_number(self.lines.file, offset) + index)

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[Rows, list[Fault]]:
        """See `Table.read`; no column cuts the data into parts.

        Only the rows asked for are parsed; errors in others are not seen.
        """
        if part is not None:
            raise IndexError(f"part {part} of a chunk of {self.lines.path}, which has none")
        _, lines = self.lines.read(chunk, "surrogateescape")
        rows = [(number, text) for number, line in enumerate(lines) if (text := content(line))]
        mine = [rows[row] for row in wanted(len(rows))]
        self._check_size(len(mine))
        return self.parsed(mine)

    def parsed(self, rows: Sequence[tuple[int, str]]) -> tuple[Rows, list[Fault]]:
        """Numbered lines, as `content` leaves them, as rows, and what is wrong with those that are none."""
        try:
            return self._parse(rows), []
        except ValueError:
            found = [(number, self._fault(text)) for number, text in rows]
            good = [row for row, (_, fault) in zip(rows, found, strict=True) if fault is None]
            return self._parse(good), [Fault(number, *fault) for number, fault in found if fault is not None]

    def _check_size(self, rows: int) -> None:
        row_bytes = 4 * (self.features or 0)
        if rows * row_bytes > MAX_DENSE:
            raise DataError(
                self.lines.path,
                None,
                f"{rows} rows of {self.features} features do not fit into "
                f"{MAX_DENSE >> 30} GiB; "
                f"set [data] chunk-rows to {MAX_DENSE // row_bytes} or less, or hashed = true",
            )

    def _parse(self, rows: Sequence[tuple[int, str]]) -> Rows:
        """Rows; ValueError, of whatever text, if there is an error in them.

        All numbers are parsed in one call. That they stand where they should is seen from what
        separates them: a space is followed by a colon, and only a space is.
        """
        texts = [text for _, text in rows]
        if not texts:
            return self._rows([], np.empty(0), np.zeros(1, np.intp), np.empty(0), np.empty(0))
        text = "\n".join(self._with_class_indices(texts)) + "\n"
        marks = np.frombuffer(text.encode(), np.uint8)  # UnicodeEncodeError, too, is a ValueError
        marks = marks[(marks == _SPACE) | (marks == _COLON) | (marks == _NEWLINE)]
        if marks[0] == _COLON or not np.array_equal(marks[:-1] == _SPACE, marks[1:] == _COLON):
            raise ValueError("not label index:value ...")
        numbers = np.loadtxt([text.replace(":", " ").replace("\n", " ")], comments=None, ndmin=1)
        # The comparison is false for NaN as well. Indices may be larger.
        if len(numbers) != len(marks) or not (abs(numbers) <= np.finfo(np.float32).max).all():
            raise ValueError("a number is missing, or not finite")
        # They are label, index, value, index, value ... of all rows; row i ends at ends[i].
        ends = np.flatnonzero(marks == _NEWLINE)
        begins = np.append(0, ends[:-1] + 1)
        index, value = np.delete(numbers, begins).reshape(-1, 2).T
        starts = np.append(0, np.cumsum((ends - begins) // 2))
        most = _LARGEST_KEY if self.features is None else self.features
        in_range = (index >= 1) & (index <= most) & (index == np.floor(index))
        within = np.diff(np.repeat(np.arange(len(ends)), np.diff(starts))) == 0
        if not in_range.all() or ((np.diff(index) < 0) & within).any():
            raise ValueError("an index is out of range or order")
        exact = _exact(texts) if (index >= _EXACT).any() else index.astype(np.uint64)
        if ((exact[1:] <= exact[:-1]) & within).any():
            raise ValueError("an index is out of order")
        return self._rows([number for number, _ in rows], numbers[begins], starts, exact, value)

    def _rows(
        self,
        numbers: Sequence[int],
        labels: npt.NDArray[np.float64],
        starts: npt.NDArray[np.intp],
        index: npt.NDArray[np.uint64] | npt.NDArray[np.float64],
        value: npt.NDArray[np.float64],
    ) -> Rows:
        """Row i has the indices and values at starts[i] up to starts[i + 1]."""
        target = as_target(labels, self.class_names)
        where = np.array(numbers, np.int64)
        if self.features is None:
            entries = Entries(starts, index.astype(np.uint64), value.astype(np.float32))
            return Rows(where, np.empty((len(labels), 0), np.float32), target, entries=entries)
        x = np.zeros((len(labels), self.features), np.float32)
        x[np.repeat(np.arange(len(labels)), np.diff(starts)), index.astype(np.intp) - 1] = value
        return Rows(where, x, target)

    def _with_class_indices(self, texts: Sequence[str]) -> Sequence[str]:
        if not self.class_names:
            return texts
        indices = {name: str(index) for index, name in enumerate(self.class_names)}
        split = (text.partition(" ") for text in texts)
        # An unknown label becomes a text that is not a number.
        return [f"{indices.get(label, '?')}{space}{rest}" for label, space, rest in split]

    def _fault(self, text: str) -> tuple[Kind, str] | None:
        if not is_text(text):
            return "encoding", "not UTF-8; convert the file to UTF-8"
        label, *pairs = text.split(" ")
        if self.class_names and label not in self.class_names:
            known = nearest(label, self.class_names)
            return "target", f'the label "{label[:80]}" is not in [data] classes{known}'
        if not self.class_names and (fault := number_fault(label)):
            remedy = "list the labels in [data] classes, or correct it"
            return "target", f'the label "{label[:80]}" {fault}; {remedy}'
        before = 0
        for pair in pairs:
            index, colon, value = pair.partition(":")
            if not (colon and _INDEX.fullmatch(index)):
                return "entry", f'"{pair[:80]}" is not index:value; write, for instance, 3:0.5'
            if self.features is not None and not 1 <= int(index) <= self.features:
                reason = f"index {index} is not in 1..{self.features}; correct it or [data] dimensions"
                return "entry", reason
            if int(index) <= before:
                return "entry", f"index {index} comes after {before}; sort the row, each index once"
            before = int(index)
            if fault := number_fault(value):
                return "number", f'the value "{value[:80]}" of index {index} {fault}; correct the row'
        return None


def open_libsvm(data: DataSettings, files: Sequence[File], *, seed: int, holdout: Holdout) -> TabularSource:
    """Open LIBSVM files; without `data.dimensions` dense ones are read once for the largest index.

    Raises DataError if a file cannot be read, or no row has a feature.
    """
    chunks = [open_lines(file, data.chunk_rows, header=False)[1] for file in files]
    features = None if data.hashed else data.dimensions or _largest_index(chunks, data)
    if features is not None and 4 * features > MAX_DENSE:
        raise DataError(
            files[0].path,
            None,
            f"rows of {features} features are too wide to be made dense; "
            f"at most {MAX_DENSE // 4}, correct the largest index or [data] dimensions, or set hashed = true",
        )
    design = Design(0, hashed=True) if features is None else Design(features)
    survey = survey_of(data, files[0].path, None, features or 0)
    table = joined([LibsvmTable(lines, features, data.classes) for lines in chunks])
    return open_table(table, design, survey, data, seed=seed, holdout=holdout)


def _largest_index(files: Sequence[LineChunks], data: DataSettings) -> int:
    largest = max(_largest_of(lines, stop=data.on_error == "stop") for lines in files)
    if not largest:
        raise DataError(files[0].path, None, "no row has a feature; is this label index:value ...?")
    return largest


def _largest_of(lines: LineChunks, *, stop: bool) -> int:
    largest = 0
    for chunk in range(lines.chunks):
        offset, texts = lines.read(chunk, "surrogateescape")
        for number, text in enumerate(texts):
            # Indices ascend, which is checked when the row is read: the last one is the largest.
            before, colon, _ = content(text).rpartition(":")
            index = before.rpartition(" ")[2]
            if _INDEX.fullmatch(index):
                largest = max(largest, int(index))
            elif colon and stop and is_text(text):
                line = line_number(lines.file, offset) + number
                raise DataError(lines.path, line, f'"{index[:80]}" is not an index from 1 on')
    return largest


def _exact(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """All indices as they are written: a float64 has 53 bits."""
    pairs = (pair for text in texts for pair in text.split(" ")[1:])
    return np.fromiter((int(pair.partition(":")[0]) for pair in pairs), np.uint64)


def content(line: str) -> str:
    """A line without comment and with single spaces; empty if there is nothing else on it."""
    return " ".join(line.partition("#")[0].split())
