"""Clicks that look like Criteo's, of a model that is known: the best possible log-loss is, too.

13 numeric columns are counts with a long tail, some of them missing; 26 categorical columns have Criteo's
cardinalities and Zipf's law. The logit is a sum of weights: of each number's logarithm (or of its absence),
of each category, and of a few pairs of columns, whose interaction is the product of two short vectors as in a
factorization machine. Weights and vectors are hashes of column and category: no table of millions is needed.
Chunk number n of a seed is always the same, whoever makes it and in whatever order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.sparse_systems.workload import zipf_ranks
from protocol.tables import hash_keys

Floats = npt.NDArray[np.float64]

CHUNK_EXAMPLES: Final = 8192

NUMERIC: Final = 13
CARDINALITIES: Final = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
"""Distinct categories of each column in the Kaggle Display Advertising Challenge."""

_CLICK_RATE = 0.25
_EXPONENT = 1.15  # of Zipf's law
_LOG_MEAN = np.linspace(0.5, 4.0, NUMERIC)  # of the numbers' logarithms
_LOG_SPREAD = np.linspace(0.7, 1.8, NUMERIC)
_MISSING = np.linspace(0.0, 0.45, NUMERIC)  # the share of each column
_NUMERIC_SCALE = 0.15  # standard deviation of the logit that one column is good for
_CATEGORY_SCALE = 0.18
_PAIRS = ((5, 13), (16, 21), (8, 22), (19, 24))  # categorical columns that interact
_FACTORS = 3
_PAIR_SCALE = 0.8
_PILOT_EXAMPLES = 50_000

# Parts of the stream, so that no chunk of one is like a chunk of another.
_TRAIN, _HELD_OUT, _PILOT = range(3)


class Chunk(NamedTuple):
    """Examples as they come: nothing is hashed, scaled or cut into ranges yet.

    `numbers` is float32 `(n, 13)`, NaN where missing; `categories` is int32 `(n, 26)`, numbers below the
    column's cardinality; `clicks` is uint8 `(n,)`, 0 or 1; `probability` is float32 `(n,)`, of a click given
    all that the example says: no learner sees it.
    """

    numbers: npt.NDArray[np.float32]
    categories: npt.NDArray[np.int32]
    clicks: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clicks:
    """The stream of `seed`; `intercept` makes a click as frequent as it is in Criteo's logs."""

    seed: int
    intercept: float

    @classmethod
    def of_seed(cls, seed: int) -> "Clicks":
        """Return the stream with the intercept that gives a quarter of clicks."""
        rng = np.random.default_rng([seed, _PILOT])
        logits = logits_of(*_draw(rng, _PILOT_EXAMPLES))
        least, most = -20.0, 20.0
        for _ in range(50):  # bisection
            middle = (least + most) / 2
            least, most = (
                (middle, most) if _sigmoid(logits + middle).mean() < _CLICK_RATE else (least, middle)
            )
        return cls(seed, middle)

    def train(self, number: int) -> Chunk:
        """Return chunk `number` of the examples to learn from."""
        return self._chunk(_TRAIN, number)

    def held_out(self, number: int) -> Chunk:
        """Return chunk `number` of the examples to be judged by."""
        return self._chunk(_HELD_OUT, number)

    def _chunk(self, part: int, number: int) -> Chunk:
        rng = np.random.default_rng([self.seed, part, number])
        numbers, categories = _draw(rng, CHUNK_EXAMPLES)
        probability = _sigmoid(logits_of(numbers, categories) + self.intercept)
        clicks = rng.random(CHUNK_EXAMPLES) < probability
        return Chunk(numbers, categories, clicks.astype(np.uint8), probability.astype(np.float32))


def _draw(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    logs = _LOG_MEAN + _LOG_SPREAD * rng.standard_normal((count, NUMERIC))
    numbers = np.floor(np.exp(logs)).astype(np.float32)
    numbers[rng.random((count, NUMERIC)) < _MISSING] = np.nan
    uniform = rng.random((len(CARDINALITIES), count))
    ranks = [
        zipf_ranks(column, cardinality, _EXPONENT)
        for column, cardinality in zip(uniform, CARDINALITIES, strict=True)
    ]
    return numbers, np.stack(ranks, axis=1).astype(np.int32)


def logits_of(numbers: npt.NDArray[np.float32], categories: npt.NDArray[np.int32]) -> Floats:
    """Return the true logit of each example, without the intercept, float64 `(n,)`."""
    logit = _numeric_logits(numbers)
    for column in range(len(CARDINALITIES)):
        logit += _CATEGORY_SCALE * _deviates(column, categories[:, column], 0)
    for one, other in _PAIRS:
        product = sum(
            _deviates(one, categories[:, one], factor) * _deviates(other, categories[:, other], factor)
            for factor in range(1, _FACTORS + 1)
        )
        logit += _PAIR_SCALE / np.sqrt(_FACTORS) * product
    return logit


def _numeric_logits(numbers: npt.NDArray[np.float32]) -> Floats:
    columns = np.arange(NUMERIC)
    slopes, absent = _deviates(100, columns, 0), _deviates(101, columns, 0)
    scaled = (np.log1p(numbers.astype(np.float64)) - _LOG_MEAN) / _LOG_SPREAD
    terms = np.where(np.isnan(scaled), absent, slopes * scaled)
    total: Floats = _NUMERIC_SCALE * terms.sum(axis=1)
    return total


def _deviates(column: int, category: npt.NDArray[np.integer], which: int) -> Floats:
    """Return uniform deviates of mean 0 and variance 1 that belong to the categories: they are hashes."""
    salt = np.uint64((column << 8 | which) << 40)
    uniform = hash_keys(hash_keys(category.astype(np.uint64) ^ salt)) / 2.0**64
    deviates: Floats = np.sqrt(12.0) * (uniform - 0.5)
    return deviates


def _sigmoid(logits: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-logits))
    return probability


def write_chunks(chunks: Iterable[Chunk], directory: Path, name: str) -> list[Path]:
    """Write each chunk to a file, for readers that are to have it without making it."""
    paths = []
    for number, chunk in enumerate(chunks):
        paths.append(directory / f"{name}-{number:05}.npz")
        np.savez(paths[-1], **chunk._asdict())
    return paths


def read_chunk(path: Path) -> Chunk:
    """Return what was written to `path`."""
    with np.load(path) as arrays:
        return Chunk(*(arrays[field] for field in Chunk._fields))


def concatenate(chunks: Sequence[Chunk]) -> Chunk:
    """Return the examples of all `chunks` as one."""
    return Chunk(*(np.concatenate(arrays) for arrays in zip(*chunks, strict=True)))
