"""Examples from Parquet files: only the columns that are used, a row group or a slice of one at a time.

A chunk is a row group, or where that has more than `chunk-rows` rows, one of up to 8 equal slices of it. A
slice cannot be read without decoding what comes before it in its row group, which is why there are not
more: what is decoded is 4.5 times as much at the most. Only where a row group has more cells than a chunk may
have (memory is bounded, always) there are as many slices as that takes; its pages are then decoded one after
the other and dropped. Source of the format: Apache Parquet, "Parquet format specification".
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psworker.data.columns import Columns, columns_of, same_columns
from psworker.data.features import design_of, most_rows
from psworker.data.files import File, open_file
from psworker.data.rows import Coded, Fault, Position, Rows, Target, Wanted, class_target, usable
from psworker.data.split import Holdout
from psworker.data.survey import survey_of
from psworker.data.tables import joined
from psworker.data.tabular import TabularSource, open_table
from psworker.errors import DataError
from psworker.job import DataSettings

__all__ = ["ParquetTable", "open_parquet", "table_of"]

_MOST_SLICES: Final = 8
_BATCH: Final = 1 << 16  # rows that are decoded at once where a slice is looked for
_BUFFER: Final = 1 << 20  # bytes that are read at once


@dataclass(frozen=True, slots=True, eq=False)
class ParquetTable:
    """Chunks of a Parquet file.

    `metadata` is what pyarrow keeps of the file's footer. Row group g has chunks starts[g] up to
    starts[g + 1].
    """

    file: File
    metadata: Any
    header: tuple[str, ...]
    columns: Columns
    class_names: tuple[str, ...]
    starts: tuple[int, ...]

    @property
    def chunks(self) -> int:
        """See `Table.chunks`."""
        return self.starts[-1]

    def position(self, chunk: int, index: int) -> Position:
        """See `Table.position`."""
        group, begin, _ = self._slice(chunk)
        before = sum(self.metadata.row_group(one).num_rows for one in range(group))
        return Position(self.file.path, row=before + begin + index + 1)

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[Rows, list[Fault]]:
        """See `Table.read`; no column cuts the data into parts."""
        if part is not None:
            raise IndexError(f"part {part} of a chunk of {self.file.path}, which has none")
        group, begin, end = self._slice(chunk)
        with _reading(self.file) as opened:
            table = self._decoded(opened, group, begin, end)
            mine = wanted(end - begin)
            if len(mine) < end - begin:
                table = table.take(mine)
            return self._rows(table, mine.astype(np.int64))

    def in_order(self, most: int) -> Iterator[tuple[Rows, list[Fault]]]:
        """All rows, at most so many at once, and what is wrong with others; `index` counts from the first.

        Each page is decoded once. Raises as `read` does.
        """
        import pyarrow as pa  # noqa: PLC0415 (an extra)

        begin = 0
        with _reading(self.file) as opened:
            file = self._parquet(opened)
            used = list(self.columns.used)
            for batch in file.iter_batches(most, columns=used, use_threads=False):
                index = np.arange(begin, begin + batch.num_rows)
                yield self._rows(pa.Table.from_batches([batch]), index)
                begin += batch.num_rows

    def _rows(self, table: Any, index: npt.NDArray[np.int64]) -> tuple[Rows, list[Fault]]:
        rows = Rows(
            index,
            self._numbers(table),
            self._target(table),
            tuple(_coded(table[name]) for name in self.columns.categorical),
            tuple(_coded(table[name]) for name in self.columns.text),
        )
        return usable(rows, self.columns.numeric, self.columns.target or "")

    def _slice(self, chunk: int) -> tuple[int, int, int]:
        """The row group of a chunk, and its rows in there: from, and up to."""
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of {self.file.path}, which has {self.chunks}")
        group = bisect.bisect_right(self.starts, chunk) - 1
        count = self.metadata.row_group(group).num_rows
        slices = self.starts[group + 1] - self.starts[group]
        number = chunk - self.starts[group]
        return group, count * number // slices, count * (number + 1) // slices

    def _decoded(self, opened: Any, group: int, begin: int, end: int) -> Any:
        import pyarrow as pa  # noqa: PLC0415 (an extra)

        file = self._parquet(opened)
        used = list(self.columns.used)
        if end - begin == self.metadata.row_group(group).num_rows:
            return file.read_row_group(group, columns=used, use_threads=False)
        pieces, at = [], 0
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=used, use_threads=False):
            low, high = max(begin - at, 0), min(end - at, batch.num_rows)
            if low < high:
                pieces.append(batch.slice(low, high - low))
            at += batch.num_rows
            if at >= end:
                break
        return pa.Table.from_batches(pieces)

    def _parquet(self, opened: Any) -> Any:
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 (an extra)

        texts = [*self.columns.categorical, *self.columns.text]
        texts += [self.columns.target] if self.class_names and self.columns.target else []
        return ParquetFile(
            opened, metadata=self.metadata, read_dictionary=texts, buffer_size=_BUFFER, pre_buffer=False
        )

    def _numbers(self, table: Any) -> npt.NDArray[np.float32]:
        numbers = np.empty((table.num_rows, len(self.columns.numeric)), np.float32)
        for place, name in enumerate(self.columns.numeric):
            numbers[:, place] = _floats(table[name])
        return numbers

    def _target(self, table: Any) -> Target:
        if self.columns.target is None:
            return np.zeros(table.num_rows, np.float32)
        column = table[self.columns.target]
        return class_target(_coded(column), self.class_names) if self.class_names else _floats(column)


def open_parquet(data: DataSettings, files: Sequence[File], *, seed: int, holdout: Holdout) -> TabularSource:
    """Read the footers and find the columns.

    Raises DataError if pyarrow is not installed, a file cannot be read, a column has no type that can be
    used, the files differ in their columns, or there is no row.
    """
    tables = [table_of(data, file) for file in files]
    first, path = tables[0], files[0].path
    for table in tables[1:]:
        same_columns(table.header, table.file.path, None, first.header, path)
    if not sum(table.chunks for table in tables):
        raise DataError(path, None, "the file has no rows; write at least one example into it")
    columns = first.columns
    survey = survey_of(data, path, columns.numeric, len(columns.numeric))
    # Tools that write many files at once leave some without rows.
    whole = joined([table for table in tables if table.chunks])
    return open_table(
        whole, design_of(columns, data), survey, data, seed=seed, holdout=holdout, columns=columns.inputs
    )


def table_of(data: DataSettings, file: File, *, labelled: bool = True) -> ParquetTable:
    """The rows of one file. Raises as `open_parquet` does."""
    try:
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise DataError(file.path, None, "needs pyarrow; pip install 'asyncps[parquet]'") from error
    with _reading(file) as opened:
        parquet = ParquetFile(opened)
        metadata, schema = parquet.metadata, parquet.schema_arrow
    columns = columns_of(data, schema.names, file.path, None, labelled=labelled)
    for name in columns.used:
        as_text = name not in columns.numeric and (name != columns.target or bool(data.classes))
        fault = _type_fault(schema.field(name).type, as_text=as_text, target=name == columns.target)
        if fault:
            raise DataError(file.path, None, fault, column=name)
    # What is decoded are often doubles, and is there twice for a moment.
    most = min(most_rows(2 * len(columns.used)), design_of(columns, data).most_rows)
    counts = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    slices = (max(min(-(-count // data.chunk_rows), _MOST_SLICES), -(-count // most)) for count in counts)
    starts = tuple(itertools.accumulate(slices, initial=0))
    return ParquetTable(
        file, metadata, tuple(schema.names), columns, data.classes if labelled else (), starts
    )


@contextmanager
def _reading(file: File) -> Iterator[Any]:
    with open_file(file) as opened:
        try:
            yield opened
        except (ValueError, OSError) as error:  # pyarrow's errors are of these kinds
            raise DataError(file.path, None, f"cannot be read as Parquet: {error}") from error


def _type_fault(kind: Any, *, as_text: bool, target: bool) -> str | None:
    """What keeps a column of this type from being used."""
    from pyarrow import types  # noqa: PLC0415 (an extra)

    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    number = number or types.is_decimal(kind) or types.is_null(kind)
    text = _is_text(kind.value_type if types.is_dictionary(kind) else kind)
    if types.is_temporal(kind):
        return f"is a time ({kind}); write what matters of it as a number (the hour, the days since a date)"
    if not number and not text and not types.is_dictionary(kind):
        return f"is of type {kind}; expected numbers or texts: leave it out of [data] columns, or convert it"
    if as_text or number:
        return None
    if target:
        return f"is of type {kind}; list the labels in [data] classes"
    return f"is of type {kind}; list it in [data] categorical or text, or list the numeric columns in columns"


def _is_text(kind: Any) -> bool:
    from pyarrow import types  # noqa: PLC0415 (an extra)

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _floats(column: Any) -> npt.NDArray[np.float32]:
    """A numeric column as (n,) float32, NaN for null."""
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    numbers: npt.NDArray[np.float32] = column.cast(pa.float32(), safe=False).to_numpy()
    return numbers


def _coded(column: Any) -> Coded:
    """A column as texts, "" for null. Whole numbers are written without a point, as a CSV file has them."""
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # without rows, it has no chunk
        return Coded(np.empty(0, np.intp), [])
    values = whole.dictionary.to_pylist()
    if whole.dictionary.null_count or not _is_text(whole.dictionary.type):
        values = [as_text(value) for value in values]
    codes = whole.indices.fill_null(len(values)).to_numpy(zero_copy_only=False).astype(np.intp)
    return Coded(codes, [*values, ""] if whole.null_count else values)


def as_text(value: object) -> str:
    """A value of a category as text."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
