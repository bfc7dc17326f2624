"""Which rows are held out: decided row by row, from nothing but seed, chunk and row."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from psworker.job import Fold

Split = Literal["train", "holdout"]
"""The rows to train on, or those kept back for evaluation; together they are all rows."""

Holdout: TypeAlias = float | Fold
"""What is held out: a fraction in [0, 1) of the rows, or one fold of them."""


def rows_of(split: Split, count: int, *, seed: int, chunk: int, holdout: Holdout) -> npt.NDArray[np.intp]:
    """Which of a chunk's `count` rows belong to `split`: row numbers, ascending.

    Row r of chunk c is held out if and only if hash(seed, c, r) < holdout * 2^64, so that every worker
    decides alike, whoever reads the chunk and however often. Of fold i of k it is, if the hash is in the i-th
    of k equal parts of [0, 2^64): every row is in one fold, and the first of k folds is the fraction 1 / k.

    The hash chains splitmix64 over the three numbers. Source: Steele, Lea and Flood, "Fast Splittable
    Pseudorandom Number Generators", OOPSLA 2014; the constants are those of Vigna's splitmix64.c.
    """
    key = _splitmix64(np.array([seed], np.uint64))
    key = _splitmix64(key ^ np.uint64(chunk))
    hashes = _splitmix64(key ^ np.arange(count, dtype=np.uint64))
    low, high = _range(holdout)
    held_out = hashes - np.uint64(low) < np.uint64(high - low)  # what is below `low` wraps to the far end
    return np.flatnonzero(held_out if split == "holdout" else ~held_out)


def _range(holdout: Holdout) -> tuple[int, int]:
    """The hashes that are held out, from the first up to, but not including, the second."""
    if isinstance(holdout, Fold):
        return (holdout.number - 1) * 2**64 // holdout.of, holdout.number * 2**64 // holdout.of
    return 0, int(holdout * 2**64)


def _splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output of splitmix64 for each state; arrays, unlike scalars, wrap without a warning."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
