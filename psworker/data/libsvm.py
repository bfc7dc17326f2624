"""Examples from a file in LIBSVM's format, read chunk by chunk and made dense.

A row is `label index:value index:value ...`; indices start at 1 and ascend, what is not there is 0,
and `#` begins a comment. Source: Chang and Lin, "LIBSVM: A Library for Support Vector Machines", 2011.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.data.lines import LineChunks, line_number, open_lines
from psworker.data.numbers import number_fault
from psworker.data.split import Split, rows_of
from psworker.errors import DataError
from psworker.job import DataSettings, nearest

MAX_DENSE = 1 << 30
"""Bytes of the largest dense batch; wide rows need fewer of them per chunk."""

_INDEX = re.compile("[0-9]{1,18}")
_SPACE, _COLON, _NEWLINE = b" :\n"


@dataclass(frozen=True, slots=True)
class LibsvmSource:
    """Chunks of a LIBSVM file; feature j of a batch is the file's index j + 1."""

    lines: LineChunks
    features: int
    class_names: tuple[str, ...]
    seed: int
    holdout: float

    @property
    def classes(self) -> int | None:
        """See `Source.classes`: known where [data] classes lists them."""
        return len(self.class_names) or None

    @property
    def chunks(self) -> int:
        """See `Source.chunks`."""
        return self.lines.chunks

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        """See `Source.read`; no column cuts the data into parts.

        Only the rows of `split` are parsed; errors in others are not seen.
        """
        if part is not None:
            raise IndexError(f"part {part} of a chunk of {self.lines.path}, which has none")
        offset, lines = self.lines.read(chunk)
        rows = [(number, text) for number, line in enumerate(lines) if (text := _content(line))]
        mine = rows_of(split, len(rows), seed=self.seed, chunk=chunk, holdout=self.holdout)
        numbers = [rows[row][0] for row in mine]
        texts = [rows[row][1] for row in mine]
        row_bytes = 4 * self.features
        if len(texts) * row_bytes > MAX_DENSE:
            raise DataError(
                self.lines.path,
                None,
                f"{len(texts)} rows of {self.features} features do not fit into "
                f"{MAX_DENSE >> 30} GiB; "
                f"set [data] chunk-rows to {MAX_DENSE // row_bytes} or less",
            )
        try:
            return self._parse(texts)
        except ValueError as error:
            raise self._explain(offset, numbers, texts) from error

    def _parse(self, texts: Sequence[str]) -> Batch:
        """Rows as a dense batch; ValueError, of whatever text, if there is an error in them.

        All numbers are parsed in one call. That they stand where they should is seen from what
        separates them: a space is followed by a colon, and only a space is.
        """
        if not texts:
            x = np.empty((0, self.features), np.float32)
            return Batch(x, np.empty(0, np.int64) if self.class_names else np.empty(0, np.float32))
        text = "\n".join(self._with_class_indices(texts)) + "\n"
        marks = np.frombuffer(text.encode(), np.uint8)
        marks = marks[(marks == _SPACE) | (marks == _COLON) | (marks == _NEWLINE)]
        if marks[0] == _COLON or not np.array_equal(marks[:-1] == _SPACE, marks[1:] == _COLON):
            raise ValueError("not label index:value ...")
        numbers = np.loadtxt([text.replace(":", " ").replace("\n", " ")], comments=None, ndmin=1)
        # The comparison is false for NaN as well.
        if len(numbers) != len(marks) or not (abs(numbers) <= np.finfo(np.float32).max).all():
            raise ValueError("a number is missing, or not finite")
        return self._dense(numbers, np.flatnonzero(marks == _NEWLINE))

    def _dense(self, numbers: npt.NDArray[np.float64], ends: npt.NDArray[np.intp]) -> Batch:
        """`numbers` are label, index, value, index, value ... of all rows; row i ends at ends[i]."""
        starts = np.append(0, ends[:-1] + 1)
        labels = numbers[starts]
        index, value = np.delete(numbers, starts).reshape(-1, 2).T
        row = np.repeat(np.arange(len(ends)), (ends - starts) // 2)
        in_range = (index >= 1) & (index <= self.features) & (index == np.floor(index))
        if not in_range.all() or ((np.diff(index) <= 0) & (np.diff(row) == 0)).any():
            raise ValueError("an index is out of range or order")
        x = np.zeros((len(ends), self.features), np.float32)
        x[row, index.astype(np.intp) - 1] = value
        return Batch(x, labels.astype(np.int64 if self.class_names else np.float32))

    def _with_class_indices(self, texts: Sequence[str]) -> Sequence[str]:
        if not self.class_names:
            return texts
        indices = {name: str(index) for index, name in enumerate(self.class_names)}
        split = (text.partition(" ") for text in texts)
        # An unknown label becomes a text that is not a number.
        return [f"{indices.get(label, '?')}{space}{rest}" for label, space, rest in split]

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
        label, *pairs = text.split(" ")
        if self.class_names and label not in self.class_names:
            known = nearest(label, self.class_names)
            return f'the label "{label[:80]}" is not in [data] classes{known}'
        if not self.class_names and (fault := number_fault(label)):
            return f'the label "{label[:80]}" {fault}; list the labels in [data] classes, or correct it'
        before = 0
        for pair in pairs:
            index, colon, value = pair.partition(":")
            if not (colon and _INDEX.fullmatch(index)):
                return f'"{pair[:80]}" is not index:value; write, for instance, 3:0.5'
            if not 1 <= int(index) <= self.features:
                return f"index {index} is not in 1..{self.features}; correct it or [data] dimensions"
            if int(index) <= before:
                return f"index {index} comes after {before}; sort the row, each index once"
            before = int(index)
            if fault := number_fault(value):
                return f'the value "{value[:80]}" of index {index} {fault}; correct the row'
        return None


def open_libsvm(data: DataSettings, *, seed: int, holdout: float) -> LibsvmSource:
    """Open a LIBSVM file; without `data.dimensions` it is read once for its largest index.

    Raises DataError if the file cannot be read, or no row has a feature.
    """
    _, lines = open_lines(data.source, data.chunk_rows, header=False)
    features = data.dimensions or _largest_index(lines)
    if 4 * features > MAX_DENSE:
        raise DataError(
            data.source,
            None,
            f"rows of {features} features are too wide to be made dense; "
            f"at most {MAX_DENSE // 4}, correct the largest index or [data] dimensions",
        )
    return LibsvmSource(lines, features, data.classes, seed, holdout)


def _largest_index(lines: LineChunks) -> int:
    largest = 0
    for chunk in range(lines.chunks):
        offset, texts = lines.read(chunk)
        for number, text in enumerate(texts):
            # Indices ascend, which is checked when the row is read: the last one is the largest.
            before, colon, _ = _content(text).rpartition(":")
            index = before.rpartition(" ")[2]
            if _INDEX.fullmatch(index):
                largest = max(largest, int(index))
            elif colon:
                line = line_number(lines.path, offset) + number
                raise DataError(lines.path, line, f'"{index[:80]}" is not an index from 1 on')
    if not largest:
        raise DataError(lines.path, None, "no row has a feature; is this label index:value ...?")
    return largest


def _content(line: str) -> str:
    """A line without comment and with single spaces; empty if there is nothing else on it."""
    return " ".join(line.partition("#")[0].split())
