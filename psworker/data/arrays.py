"""Examples from NumPy's files: x.npy and y.npy, or both in one .npz.

Rows of an .npy file lie one after the other, so a chunk is read from where it is and nothing else is. The
arrays of an .npz are unpacked first, as `spool` does. Source of the format: NumPy Enhancement Proposal 1.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psworker.data.features import Design, most_rows
from psworker.data.files import File, expand, open_file
from psworker.data.parquet import as_text
from psworker.data.rows import Fault, Position, Rows, Target, Wanted, class_target, coded, usable
from psworker.data.split import Holdout
from psworker.data.spool import spool
from psworker.data.survey import survey_of
from psworker.data.tables import joined
from psworker.data.tabular import TabularSource, open_table
from psworker.errors import DataError
from psworker.job import DataSettings

__all__ = ["ArraysTable", "open_npy", "open_npz", "table_of"]

_REMEDY: Final = "save it with numpy.save"


@dataclass(frozen=True, slots=True)
class _Array:
    """An array in a file: `shape` and `dtype`, row by row from byte `offset` on."""

    file: File
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Rows [begin, end)."""
        count = int(np.prod(self.shape[1:], dtype=np.int64))
        row = count * self.dtype.itemsize
        with open_file(self.file) as opened:
            opened.seek(self.offset + begin * row)
            data = opened.read((end - begin) * row)
        if len(data) < (end - begin) * row:
            raise DataError(self.file.path, None, f"the file ends in its row {begin + 1} or later; {_REMEDY}")
        return np.frombuffer(data, self.dtype).reshape(end - begin, count)


@dataclass(frozen=True, slots=True)
class ArraysTable:
    """Chunk i is rows [i * chunk_rows, (i + 1) * chunk_rows) of both; without a `y` the target is 0."""

    x: _Array
    y: _Array | None
    chunk_rows: int
    class_names: tuple[str, ...]

    @property
    def chunks(self) -> int:
        """See `Table.chunks`."""
        return -(-self.x.shape[0] // self.chunk_rows)

    def position(self, chunk: int, index: int) -> Position:
        """See `Table.position`."""
        return Position(self.x.file.path, row=chunk * self.chunk_rows + index + 1)

    def read(self, chunk: int, wanted: Wanted, part: int | None) -> tuple[Rows, list[Fault]]:
        """See `Table.read`; no column cuts the data into parts."""
        if part is not None:
            raise IndexError(f"part {part} of a chunk of {self.x.file.path}, which has none")
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of {self.x.file.path}, which has {self.chunks}")
        begin = chunk * self.chunk_rows
        end = min(begin + self.chunk_rows, self.x.shape[0])
        mine = wanted(end - begin)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            numbers = self.x.rows(begin, end)[mine].astype(np.float32)
        target: Target = np.zeros(len(mine), np.float32)
        if self.y is not None:
            target = self._target(self.y.rows(begin, end)[mine, 0])
        return usable(Rows(mine.astype(np.int64), numbers, target), None, "y")

    def _target(self, labels: npt.NDArray[Any]) -> Target:
        if not self.class_names:
            return labels.astype(np.float32)
        return class_target(coded([as_text(label) for label in labels.tolist()]), self.class_names)


def open_npy(data: DataSettings, files: Sequence[File], *, seed: int, holdout: Holdout) -> TabularSource:
    """Open x.npy; [data] target names y.npy, as many files as there are of x.

    Raises DataError if one cannot be read, they do not fit together, or there is no row.
    """
    if not data.target.endswith(".npy"):
        reason = f'[data] target = "{data.target}" is no .npy file; set it to the file of the labels'
        raise DataError(files[0].path, None, reason)
    labels = expand(data.target)
    if len(labels) != len(files):
        raise DataError(
            files[0].path,
            None,
            f"{len(files)} files of x, but {len(labels)} of y in [data] target; give one for each",
        )
    pairs = [(_array(x), _array(y)) for x, y in zip(files, labels, strict=True)]
    return _source(data, pairs, seed=seed, holdout=holdout)


def open_npz(data: DataSettings, files: Sequence[File], *, seed: int, holdout: Holdout) -> TabularSource:
    """Unpack the arrays `x` and `y` of each file. Raises as `open_npy` does."""
    pairs = [(_array(_member(file, "x")), _array(_member(file, "y"))) for file in files]
    return _source(data, pairs, seed=seed, holdout=holdout)


def table_of(file: File, *, packed: bool, chunk_rows: int) -> tuple[ArraysTable, int]:
    """The rows of an x.npy, or of the array `x` of a `packed` .npz, and how many columns they have.

    Raises DataError if they cannot be read.
    """
    x = _array(_member(file, "x") if packed else file)
    width = int(np.prod(x.shape[1:], dtype=np.int64))
    return ArraysTable(x, None, min(chunk_rows, most_rows(width)), ()), width


def _source(
    data: DataSettings, pairs: Sequence[tuple[_Array, _Array]], *, seed: int, holdout: Holdout
) -> TabularSource:
    first = pairs[0][0]
    width = int(np.prod(first.shape[1:], dtype=np.int64))
    for x, y in pairs:
        if x.shape[1:] != first.shape[1:]:
            reason = f"rows are of shape {x.shape[1:]}, but of {first.shape[1:]} in {first.file.path}"
            raise DataError(x.file.path, None, f"{reason}; all files need the same columns")
        if y.shape not in ((x.shape[0],), (x.shape[0], 1)):
            reason = f"x is of shape {x.shape}, but y of {y.shape}; expected ({x.shape[0]},)"
            raise DataError(y.file.path, None, reason)
    if not width or not any(x.shape[0] for x, _ in pairs):
        raise DataError(first.file.path, None, f"x is of shape {first.shape}; give at least one example")
    rows = min(data.chunk_rows, most_rows(width))
    table = joined([ArraysTable(x, y, rows, data.classes) for x, y in pairs if x.shape[0]])
    names = tuple(f"x{column}" for column in range(width)) if data.hashed else ()
    design = Design(width, names, hashed=data.hashed)
    survey = survey_of(data, first.file.path, None, width)
    return open_table(table, design, survey, data, seed=seed, holdout=holdout)


def _array(file: File) -> _Array:
    with open_file(file) as opened:
        try:
            version = np.lib.format.read_magic(opened)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, by_columns, dtype = read[version](opened)
        except (KeyError, ValueError) as error:
            raise DataError(file.path, None, f"not an .npy file ({error}); {_REMEDY}") from error
        if by_columns and len(shape) > 1:
            reason = "the array lies column by column; save numpy.ascontiguousarray of it"
            raise DataError(file.path, None, reason)
        if dtype.kind not in "biuf" or not shape:
            reason = f"an array of {dtype} and shape {shape}; expected rows of numbers"
            raise DataError(file.path, None, reason)
        return _Array(file, opened.tell(), shape, dtype)


def _member(file: File, name: str) -> File:
    with open_file(file) as opened:
        try:
            with zipfile.ZipFile(opened) as packed, packed.open(f"{name}.npy") as member:
                return spool(file.path, member)
        except KeyError as error:
            reason = f'no array "{name}"; save it with numpy.savez(file, x=..., y=...)'
            raise DataError(file.path, None, reason) from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(file.path, None, f"not an .npz file ({error}); {_REMEDY}z") from error
