"""What learners make of a chunk: 39 tokens an example, then keys, places or text, whatever they take."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from benchmarks.ctr_data import CARDINALITIES, NUMERIC, Chunk
from protocol.tables import hash_keys

COLUMNS: Final = NUMERIC + len(CARDINALITIES) + 1
"""The last is the intercept's: its token is always 0."""

_BUCKETS: Final = 64  # of the numbers' logarithms
_STEPS: Final = 2.0  # buckets from a number to e times as much
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklm"  # one for each column but the intercept's

SIZES: Final = np.array([*[4 * _BUCKETS] * NUMERIC, *CARDINALITIES, 1])
"""Tokens of each column that there are at most."""

_BEGINS: Final = SIZES.cumsum() - SIZES

Integers = npt.NDArray[np.integer]
Keys = npt.NDArray[np.uint64]


class Examples(NamedTuple):
    """A mini-batch for a linear algebra of its own distinct keys.

    `keys` is uint64 `(u,)`, distinct; `design` is float32 `(n, u)`, 1 where an example has the key; `clicks`
    is float32 `(n,)`.
    """

    keys: Keys
    design: csr_array
    clicks: npt.NDArray[np.float32]


def tokens_of(chunk: Chunk) -> npt.NDArray[np.int32]:
    """Return the token of each column, int32 `(n, 40)`: numbers are cut into ranges of their logarithm."""
    tokens = np.zeros((len(chunk.clicks), COLUMNS), np.int32)
    logs = np.log1p(chunk.numbers)
    tokens[:, :NUMERIC] = np.where(np.isnan(logs), _BUCKETS, _STEPS * logs)
    tokens[:, NUMERIC:-1] = chunk.categories
    return tokens


def key_of(columns: Integers, tokens: Integers) -> Keys:
    """Return the 64-bit key of each token of a column: no two have the same."""
    return hash_keys(columns.astype(np.uint64) << np.uint64(32) | tokens.astype(np.uint64))


def place_of(columns: Integers, tokens: Integers) -> Keys:
    """Return, in place of keys, places in an array of all tokens that there can be."""
    places: Keys = (_BEGINS[columns] + tokens).astype(np.uint64)
    return places


def examples_of(
    tokens: npt.NDArray[np.int32],
    clicks: npt.NDArray[np.uint8],
    named: Callable[[Integers, Integers], Keys] = key_of,
) -> Examples:
    """Return examples with these tokens `(n, 40)`, whose keys are `named(columns, tokens)`.

    Columns are sorted one by one, in the cache: almost three times as fast as to find the distinct ones of
    all keys together, which took about as long as to have the server sum what is pushed to the same key.
    """
    columns, distinct, places = _distinct(tokens)
    return Examples(named(columns, distinct), design_of(places, len(distinct)), clicks.astype(np.float32))


def _distinct(tokens: npt.NDArray[np.int32]) -> tuple[Integers, Integers, Integers]:
    """Return the column and token of each distinct feature, and the place of each of `tokens` among them."""
    count, columns = tokens.shape
    by_column = np.ascontiguousarray(tokens.T)
    order = by_column.argsort(axis=1)
    order += np.arange(columns)[:, None] * count
    order = order.reshape(-1)
    ordered = by_column.reshape(-1).take(order)
    is_first = np.ones(ordered.size, bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    is_first[::count] = True  # whatever the column before ends with
    places = np.empty(ordered.size, np.int32)
    places[order] = is_first.cumsum(dtype=np.int32) - 1
    firsts = np.flatnonzero(is_first)
    return firsts // count, ordered.take(firsts), places.reshape(columns, count).T


def design_of(places: npt.NDArray[np.integer], width: int) -> csr_array:
    """Return the matrix with ones at `places` `(n, k)` of each row, float32 `(n, width)`."""
    count, each = places.shape
    ones = np.ones(places.size, np.float32)
    begins = np.arange(0, places.size + 1, each, dtype=np.int32)
    return csr_array((ones, places.reshape(-1).astype(np.int32), begins), shape=(count, width))


def lines_of(tokens: npt.NDArray[np.int32], clicks: npt.NDArray[np.uint8] | None) -> str:
    """Return a line of Vowpal Wabbit's text for each example, with a label if there are clicks.

    It has an intercept of its own.
    """
    line = "| " + " ".join(f"{letter}%d" for letter in _LETTERS)
    words = tokens[:, :-1].tolist()
    if clicks is None:
        return "\n".join([*(line % tuple(row) for row in words), ""])
    labels = np.where(clicks, "1 ", "-1 ").tolist()
    rows = zip(labels, words, strict=True)
    return "\n".join([*(label + line % tuple(row) for label, row in rows), ""])
