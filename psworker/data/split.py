"""Which rows are held out: decided row by row, from nothing but seed, chunk and row."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "holdout"]
"""The rows to train on, or those kept back for evaluation; together they are all rows."""


def rows_of(split: Split, count: int, *, seed: int, chunk: int, holdout: float) -> npt.NDArray[np.intp]:
    """Which of a chunk's `count` rows belong to `split`: row numbers, ascending.

    Row r of chunk c is held out if and only if hash(seed, c, r) < holdout * 2^64, so that every worker
    decides alike, whoever reads the chunk and however often. `holdout` is in [0, 1).

    The hash chains splitmix64 over the three numbers. Source: Steele, Lea and Flood, "Fast Splittable
    Pseudorandom Number Generators", OOPSLA 2014; the constants are those of Vigna's splitmix64.c.
    """
    key = _splitmix64(np.array([seed], np.uint64))
    key = _splitmix64(key ^ np.uint64(chunk))
    hashes = _splitmix64(key ^ np.arange(count, dtype=np.uint64))
    held_out = hashes < np.uint64(int(holdout * 2**64))
    return np.flatnonzero(held_out if split == "holdout" else ~held_out)


def _splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output of splitmix64 for each state; arrays, unlike scalars, wrap without a warning."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
