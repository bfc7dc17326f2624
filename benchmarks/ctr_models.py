"""Models of clicks whose parameters are rows of a sparse table: a row a feature, which is there or not."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from benchmarks.ctr_features import Examples

Floats = npt.NDArray[np.float32]


class Model(Protocol):
    """Logits and gradients of a mini-batch, of the rows that it needs and no others."""

    @property
    def dim(self) -> int:
        """Numbers in a row."""

    def logits(self, design: csr_array, rows: Floats) -> Floats:
        """Return `(n,)` for a `design` of `(n, u)` ones and `rows` of `(u, dim)`."""

    def gradient(self, examples: Examples, rows: Floats) -> Floats:
        """Return that of the log-loss, summed over the examples, `(u, dim)`."""


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """The logit is the sum of the weights of an example's features."""

    dim: int = 1

    def logits(self, design: csr_array, rows: Floats) -> Floats:
        """Return `(n,)`; see `Model`."""
        logits: Floats = design @ rows[:, 0]
        return logits

    def gradient(self, examples: Examples, rows: Floats) -> Floats:
        """Return `(u, 1)`; see `Model`."""
        error = probabilities(self.logits(examples.design, rows)) - examples.clicks
        gradient: Floats = examples.design.T @ error
        return gradient[:, None]


@dataclass(frozen=True, slots=True)
class FactorizationMachine:
    """Of degree 2 (Rendle 2010): a weight, and a vector whose products with the others' are added, too.

    The sum over all pairs <v_i, v_j> of an example's features is (|sum v_i|^2 - sum |v_i|^2) / 2, and its
    gradient in v_i is (sum v_j) - v_i.
    """

    factors: int = 8

    @property
    def dim(self) -> int:
        """One weight and the vector."""
        return 1 + self.factors

    def logits(self, design: csr_array, rows: Floats) -> Floats:
        """Return `(n,)`; see `Model`."""
        return self._logits_and_sums(design, rows)[0]

    def gradient(self, examples: Examples, rows: Floats) -> Floats:
        """Return `(u, 1 + factors)`; see `Model`."""
        logits, sums = self._logits_and_sums(examples.design, rows)
        error = probabilities(logits) - examples.clicks
        sums[:, 0] = 1.0  # the gradient in the weight; it comes with one product for all columns
        gradient: Floats = examples.design.T @ (error[:, None] * sums)
        gradient[:, 1:] -= gradient[:, :1] * rows[:, 1:]
        return gradient

    def _logits_and_sums(self, design: csr_array, rows: Floats) -> tuple[Floats, Floats]:
        """Return the logits, and the sums of an example's rows, `(n, 1 + factors)`."""
        sums: Floats = design @ rows
        squares: Floats = design @ np.square(rows[:, 1:]).sum(axis=1)
        return sums[:, 0] + (np.square(sums[:, 1:]).sum(axis=1) - squares) / 2, sums


def probabilities(logits: Floats) -> Floats:
    """Return the logistic function of each logit."""
    probability: Floats = np.exp(-logits)
    probability += 1
    return np.reciprocal(probability, out=probability)
