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
from psworker.data.rows import Coded, Rows
from psworker.errors import JobError
from psworker.job import DataSettings
from psworker.keys import hash_features

__all__ = ["Design", "buckets_of", "design_of", "most_rows"]

_MOST_CELLS: Final = 1 << 23
"""Of x in the largest dense chunk, 32 MiB, whatever chunk-rows says."""

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

    def of(self, rows: Rows, numbers: npt.NDArray[np.float32]) -> tuple[Any, Keys | None]:
        """x and keys of a `Batch`; `numbers` are those of the rows, without missing ones."""
        if self.hashed:
            return self._hashed(rows, numbers)
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
            low = block.keys & np.uint64((1 << 63) - 1)
            column = self.width + (low % np.uint64(self.buckets)).astype(np.intp)
            sign = np.where(block.keys >> np.uint64(63), np.float32(-1), np.float32(1))
            place = (block.rows, column[block.codes])
            signed = block.values * sign[block.codes]
            if block.once:
                x[place] += signed
            else:
                np.add.at(x, place, signed)
        return x

    def _hashed(self, rows: Rows, numbers: npt.NDArray[np.float32]) -> tuple[Any, Keys]:
        csr_array = _csr_array()
        blocks = [*self._of_numbers(numbers), *self._blocks(rows)]
        keys, column = np.unique(
            np.concatenate([np.empty(0, np.uint64), *(block.keys for block in blocks)]), return_inverse=True
        )
        starts = np.cumsum([0, *(len(block.keys) for block in blocks)])
        columns = [column[start:][block.codes] for start, block in zip(starts[:-1], blocks, strict=True)]
        shape = (len(rows), len(keys))
        if blocks and all(block.once for block in blocks):
            values = np.stack([block.values for block in blocks], axis=1)
            indices = np.stack(columns, axis=1).astype(np.int32)
            ends = np.arange(0, values.size + 1, len(blocks), dtype=np.int32)
            return csr_array((values.ravel(), indices.ravel(), ends), shape=shape), keys
        values = np.concatenate([np.empty(0, np.float32), *(block.values for block in blocks)])
        place = (
            np.concatenate([np.empty(0, np.intp), *(block.rows for block in blocks)]),
            np.concatenate([np.empty(0, np.intp), *columns]),
        )
        return csr_array((values, place), shape=shape), keys  # which adds up what a row has twice

    def _of_numbers(self, numbers: npt.NDArray[np.float32]) -> Iterator[_Block]:
        every = np.arange(len(numbers))
        code = np.zeros(len(numbers), np.intp)
        for name, values in zip(self.numeric, numbers.T, strict=True):
            yield _Block(hash_features([name]), code, every, values, once=True)

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
