"""The same logistic regression in one process: the rows of the table in arrays, by the number of the token.

It knows how many categories each column has, so it needs neither hashes nor an index; that is what one
machine has for itself. Its log-loss is the oracle for the parameter server's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.ctr_data import Chunk, read_chunk
from benchmarks.ctr_features import SIZES, examples_of, place_of, tokens_of
from benchmarks.ctr_learners.interface import MINIBATCH
from benchmarks.ctr_models import LogisticRegression, probabilities


class SingleMachine:
    """FTRL-Proximal (McMahan et al. 2013) with neither l1 nor l2, a step a mini-batch."""

    def __init__(self, lr: float, beta: float) -> None:
        self._lr = lr
        self._beta = beta
        self._model = LogisticRegression()

    def start(self, segments: Sequence[Sequence[Path]], held_out: Chunk) -> float:
        """Make the arrays."""
        places = int(SIZES.sum())
        self._sums = np.zeros(places, np.float32)
        self._squares = np.zeros(places, np.float32)
        self._held_out = examples_of(tokens_of(held_out), held_out.clicks, place_of)
        return 0.0

    def learn(self, segment: Sequence[Path]) -> None:
        """Learn from the examples of the next segment."""
        for path in segment:
            chunk = read_chunk(path)
            tokens = tokens_of(chunk)
            for begin in range(0, len(tokens), MINIBATCH):
                some = slice(begin, begin + MINIBATCH)
                examples = examples_of(tokens[some], chunk.clicks[some], place_of)
                weights = self._weights(examples.keys)
                gradient = self._model.gradient(examples, weights[:, None])[:, 0]
                self._step(examples.keys, weights, gradient)

    def predict(self) -> npt.NDArray[np.float32]:
        """Return the probability of a click for each held-out example."""
        rows = self._weights(self._held_out.keys)[:, None]
        return probabilities(self._model.logits(self._held_out.design, rows))

    def stop(self) -> None:
        """Nothing outlives this process."""

    def _weights(self, places: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        weights = self._sums.take(places)
        weights *= -self._lr
        weights /= self._beta + np.sqrt(self._squares.take(places))
        return weights

    def _step(
        self,
        places: npt.NDArray[np.uint64],
        weights: npt.NDArray[np.float32],
        gradient: npt.NDArray[np.float32],
    ) -> None:
        before = self._squares.take(places)
        after = before + gradient * gradient
        sigma = (np.sqrt(after) - np.sqrt(before)) / self._lr
        self._sums[places] = self._sums.take(places) + gradient - sigma * weights
        self._squares[places] = after
