"""Streams whose concept changes at a known example: two that are drawn, one of real measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["STREAMS", "Stream", "write"]

Array = npt.NDArray[np.float32]
Rows = tuple[Array, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Stream:
    """Examples before and after a change; `rows(concept, count, seed)` draws some of either, 0 or 1."""

    name: str
    label: str
    real: bool
    rows: Callable[[int, int, int], Rows]


def _sea(concept: int, count: int, seed: int) -> Rows:
    """Class 1 where x1 + x2 is above 8 or, after the change, at most 9; a tenth of the labels is wrong."""
    from river.datasets import synth

    x, y = _taken(synth.SEA(variant=concept, seed=seed, noise=0.1), count)
    return (x / 5 - 1).astype(np.float32), 1 - y if concept else y


def _agrawal(concept: int, count: int, seed: int) -> Rows:
    """A loan is given by income and loan and, after the change, to those who did not get one."""
    from river.datasets import synth

    x, y = _taken(synth.Agrawal(classification_function=6, seed=seed), count)
    return (x - _MIDDLE) / _WIDTH, 1 - y if concept else y


# Middle and half width of what Agrawal et al. draw each attribute from.
_MIDDLE = np.array([85e3, 37.5e3, 50, 2, 10, 4, 375e3, 15.5, 25e4], np.float32)
_WIDTH = np.array([65e3, 37.5e3, 30, 2, 10, 4, 375e3, 14.5, 25e4], np.float32)


def _shuttle(concept: int, count: int, seed: int) -> Rows:
    """NASA's space shuttle: is a reading of nine sensors abnormal? After the change, is it normal?"""
    from river import datasets

    x, y = _taken(datasets.Shuttle(), datasets.Shuttle().n_samples)
    middle = np.median(x, axis=0)
    width = np.maximum(np.percentile(abs(x - middle), 90, axis=0), 1)
    x = np.tanh((x - middle) / width).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(x))
    chosen = np.resize(order, count)
    return x[chosen], 1 - y[chosen] if concept else y[chosen]


def _taken(source: Any, count: int) -> Rows:
    rows = list(islice(source, count))
    x = np.array([[float(value) for value in row.values()] for row, _ in rows], np.float32)
    return x, np.array([int(label) for _, label in rows], np.int64)


STREAMS = (
    Stream("sea", "SEA, reversed", False, _sea),
    Stream("agrawal", "Agrawal, reversed", False, _agrawal),
    Stream("shuttle", "Shuttle, reversed", True, _shuttle),
)


def write(path: Path, stream: Stream, counts: tuple[int, ...], seed: int) -> int:
    """Write so many examples of the concepts 0, 1, 0 ... as CSV; return how many features they have."""
    features = 0
    with path.open("w") as file:
        for number, count in enumerate(counts):
            x, y = stream.rows(number % 2, count, 2 * seed + number)
            if not number:
                features = x.shape[1]
                file.write(",".join([*(f"x{n}" for n in range(features)), "y"]) + "\n")
            file.writelines(_lines(x, y))
    return features


def _lines(x: Array, y: npt.NDArray[np.int64]) -> Iterator[str]:
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        yield ",".join([*(f"{value:.5g}" for value in row), str(label)]) + "\n"
