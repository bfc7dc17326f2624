"""scikit-learn's SGDClassifier on hashed features: the places are the same hashes, cut to fewer bits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from benchmarks.ctr_data import Chunk, read_chunk
from benchmarks.ctr_features import COLUMNS, design_of, key_of, tokens_of
from benchmarks.ctr_learners.interface import BITS, MINIBATCH


class ScikitLearn:
    """Plain SGD, example after example, without a penalty, at the best of some falling and constant rates."""

    def start(self, segments: Sequence[Sequence[Path]], held_out: Chunk) -> float:
        """Make the classifier."""
        from sklearn.linear_model import SGDClassifier

        self._classifier = SGDClassifier(
            loss="log_loss", penalty=None, learning_rate="invscaling", eta0=0.1, power_t=0.25
        )
        self._held_out = _design(tokens_of(held_out))
        return 0.0

    def learn(self, segment: Sequence[Path]) -> None:
        """Learn from the examples of the next segment."""
        for path in segment:
            chunk = read_chunk(path)
            tokens = tokens_of(chunk)
            for begin in range(0, len(tokens), MINIBATCH):
                some = slice(begin, begin + MINIBATCH)
                self._classifier.partial_fit(_design(tokens[some]), chunk.clicks[some], classes=(0, 1))

    def predict(self) -> npt.NDArray[np.float32]:
        """Return the probability of a click for each held-out example."""
        probability: npt.NDArray[np.float32] = self._classifier.predict_proba(self._held_out)[:, 1]
        return probability

    def stop(self) -> None:
        """Nothing outlives this process."""


def _design(tokens: npt.NDArray[np.int32]) -> csr_array:
    """Return the matrix of hashed features, without the intercept: the classifier has one of its own."""
    width = 1 << BITS
    keys = key_of(np.arange(COLUMNS - 1), tokens[:, :-1])
    return design_of((keys & np.uint64(width - 1)).astype(np.int32), width)
