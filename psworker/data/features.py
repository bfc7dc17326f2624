"""From the columns of a file to features: numbers, categories and words, dense or hashed.

A category is the feature "column=value", a word of a text "column=word". Their names are hashed
(`hash_features`), so nobody has to see all the data to number them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys
from psworker.data.columns import Columns
from psworker.data.packed import PackedRows
from psworker.data.rows import Coded, Rows
from psworker.errors import JobError
from psworker.job import DataSettings
from psworker.keys import hash_features

__all__ = ["Design", "buckets_of", "design_of", "most_rows"]

_MOST_CELLS: Final = 1 << 23
"""Of x in the largest dense chunk, 32 MiB, whatever chunk-rows says."""

_PACKED: Final = 2
"""How many times as many cells a chunk of packed rows may have: all there are if it is taken at once."""

_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Entries of x: in `rows`, keys[codes] have `values`; `once`: each row has exactly one, in order."""

    keys: Keys
    codes: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp]
    values: npt.NDArray[np.float32]
    once: bool


@dataclass(frozen=True, slots=True)
class Design:
    """Which columns become which features.

    Dense: a column of x for each of `width` numbers, then `buckets` for all that is hashed (0: nothing is).
    `hashed`: every feature has a key, and there are as many as the data has; the key of a numeric column is
    the hash of its name, one of `numeric`.
    """

    width: int
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    hashed: bool = False
    buckets: int = 0

    @property
    def features(self) -> int:
        """Columns of x; 0 if features have keys."""
        return 0 if self.hashed else self.width + self.buckets

    @property
    def most_rows(self) -> int:
        """Rows of the largest chunk; `packed` ones may be more, for only what is taken is written out."""
        return most_rows(self.features // _PACKED if self.packs else self.features)

    def of(self, rows: Rows, numbers: npt.NDArray[np.float32]) -> tuple[Any, Keys | None]:
        """x and keys of a `Batch`; `numbers` are those of the rows, without missing ones."""
        if self.hashed:
            return self._hashed(rows, numbers)
        if self.packs:
            return self.packed(rows, numbers).written_out(), None
        if not self.buckets:
            return np.ascontiguousarray(numbers), None
        return self._dense(rows, numbers), None

    def _dense(self, rows: Rows, numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Hashed features as columns: feature h adds its value, times a sign, to column h mod buckets.

        With a sign that is as random as the column, what two features in one column add to a dot product
        is 0 in the mean. Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning",
        ICML 2009, equation 1. The sign is the highest bit of the hash, the column comes from the others.
        """
        x = np.zeros((len(rows), self.features), np.float32)
        x[:, : self.width] = numbers
        for block in self._blocks(rows):
            column, sign = self._places(block.keys)
            np.add.at(x, (block.rows, column[block.codes]), block.values * sign[block.codes])
        return x

    @property
    def packs(self) -> bool:
        """Whether rows are dense and mostly 0, as `packed` makes them."""
        return bool(self.buckets and self.categorical and not self.text)

    def packed(self, rows: Rows, numbers: npt.NDArray[np.float32]) -> PackedRows:
        """The rows as `_dense` makes them, not written out; of a design that `packs`."""
        shape = (len(self.categorical), len(rows))
        columns, values = np.empty(shape, np.intp), np.empty(shape, np.float32)
        for number, block in enumerate(self._blocks(rows)):
            column, sign = self._places(block.keys)
            columns[number], values[number] = column[block.codes], sign[block.codes]
        return PackedRows(numbers.astype(np.float32, copy=False), columns, values, self.features)

    def _places(self, keys: Keys) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """The dense column of each hashed feature, and its sign there."""
        low = keys & np.uint64((1 << 63) - 1)
        column = self.width + (low % np.uint64(self.buckets)).astype(np.intp)
        return column, np.where(keys >> np.uint64(63), np.float32(-1), np.float32(1))

    def _hashed(self, rows: Rows, numbers: npt.NDArray[np.float32]) -> tuple[Any, Keys]:
        csr_array = _csr_array()
        names, blocks = hash_features(self.numeric), list(self._blocks(rows))
        every = [names, *(block.keys for block in blocks)]
        keys, column = np.unique(np.concatenate(every), return_inverse=True)
        starts = np.cumsum([0, *map(len, every)])[1:]
        of_blocks = [column[start:][block.codes] for start, block in zip(starts, blocks, strict=False)]
        shape, width = (len(rows), len(keys)), len(names)
        if all(block.once for block in blocks):
            values = np.ones((len(rows), width + len(blocks)), np.float32)
            values[:, :width] = numbers
            columns = np.empty(values.shape, np.int32)
            columns[:, :width] = column[:width]
            for place, of_block in enumerate(of_blocks, width):
                columns[:, place] = of_block
            ends = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(values.shape[1])
            return csr_array((values.ravel(), columns.ravel(), ends), shape=shape), keys
        of_rows = np.repeat(np.arange(len(rows)), width)
        at_rows = np.concatenate([of_rows, *(block.rows for block in blocks)])
        at_columns = np.concatenate([np.tile(column[:width], len(rows)), *of_blocks])
        values = np.concatenate([numbers.ravel(), *(block.values for block in blocks)])
        # SciPy adds up what a row has twice.
        return csr_array((values.astype(np.float32), (at_rows, at_columns)), shape=shape), keys

    def _blocks(self, rows: Rows) -> Iterator[_Block]:
        every, one = np.arange(len(rows)), np.ones(len(rows), np.float32)
        for name, column in zip(self.categorical, rows.categories, strict=True):
            used = column.used()
            keys = hash_features(f"{name}={value}" for value in used.values)
            yield _Block(keys, used.codes, every, one, once=True)
        for name, column in zip(self.text, rows.texts, strict=True):
            yield _of_words(name, column.used())
        if rows.entries is not None:
            keys, codes = np.unique(rows.entries.keys, return_inverse=True)
            of_row = np.repeat(every, np.diff(rows.entries.starts))
            yield _Block(keys, codes, of_row, rows.entries.values, once=False)


def design_of(columns: Columns, data: DataSettings) -> Design:
    """What the settings make of these columns."""
    return Design(
        len(columns.numeric),
        columns.numeric,
        columns.categorical,
        columns.text,
        data.hashed,
        buckets_of(data),
    )


def buckets_of(data: DataSettings) -> int:
    """Dense columns for all that is hashed; 0 where nothing is, or all features have keys."""
    return data.hash_buckets if (data.categorical or data.text) and not data.hashed else 0


def most_rows(width: int) -> int:
    """Rows of the largest dense chunk of so many columns."""
    return max(1, _MOST_CELLS // max(1, width))


def _of_words(name: str, column: Coded) -> _Block:
    """The words of a column of texts, lower-cased, as often as they occur."""
    place: dict[str, int] = {}
    words = [_WORD.findall(text.lower()) for text in column.values]
    codes = _numbers(place.setdefault(word, len(place)) for of_text in words for word in of_text)
    lengths = _numbers(map(len, words))
    starts = np.cumsum(lengths) - lengths
    # Row i has the words of its text: those from starts[code] on, as many as the text has.
    count = lengths[column.codes]
    rows = np.repeat(np.arange(len(count)), count)
    before = np.repeat(np.cumsum(count) - count, count)
    taken = codes[np.repeat(starts[column.codes], count) + np.arange(len(rows)) - before]
    keys = hash_features(f"{name}={word}" for word in place)
    return _Block(keys, taken, rows, np.ones(len(rows), np.float32), once=False)


def _numbers(values: Iterable[int]) -> npt.NDArray[np.intp]:
    return np.fromiter(values, np.intp)


def _csr_array() -> Any:
    try:
        from scipy.sparse import csr_array  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise JobError("[data] hashed = true needs SciPy; pip install 'asyncps[sparse]'") from error
    return csr_array
