"""Passive-aggressive classification: each example is put right with the smallest change that will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from protocol.optimizers import SGD, Optimizer
from psworker.data.batch import Batch, Design
from psworker.models.labels import check_classes
from psworker.models.linear_scores import LinearScores
from psworker.models.losses import Losses, margin
from psworker.models.scored import Array, Parameters
from psworker.models.settings import check_above_zero
from psworker.models.tasks import Classification
from psworker.models.weighting import mean, shares

_BLOCK: Final = 256
"""Rows whose inner products are computed at a time."""


@dataclass(frozen=True, slots=True)
class PassiveAggressive(LinearScores, Classification):
    """PA-I for classes: z = x w + b, and the margin of an example is z_y - z_r, r the best other class.

    loss = max(0, 1 - margin); tau = min(c, loss / (2 (|x|^2 + 1))); w_y += tau x, w_r -= tau x, and b
    likewise, as of a feature that is always 1. A row's weight multiplies its `c`; of two classes the
    difference of the two w does what the binary PA-I does with 2 c. Source: Crammer et al., "Online
    passive-aggressive algorithms", 2006, sections 3 and 8.

    The rows of a mini-batch are taken one after the other, each with what those before it have changed, so
    that one worker does just what the algorithm says, whatever the size of its mini-batches. What came of
    them is pushed as one gradient to plain descent with a learning rate of 1: in a synchronous step the
    mean of the workers' changes (iterative parameter mixing; McDonald, Hall and Mann 2010), otherwise each.

    Parameters: w (features, classes), b (classes,), float32, from zero.
    Raises ValueError if `c` is not above 0, or there are fewer than 2 classes.
    """

    features: int
    classes: int | None = None
    c: float = 1.0

    l2 = 0.0
    optimizer: ClassVar[Optimizer] = SGD(lr=1.0)

    def __post_init__(self) -> None:
        check_above_zero("c", self.c)
        if self.classes is not None:
            check_classes(self.classes)

    @property
    def outputs(self) -> int:
        """One score a class."""
        return self.classes or 2

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.margin`."""
        return margin(z, y)

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, Array], float]:
        """See `Model.gradients`: what was there before the rows less what is after; their mean loss."""
        share, y = shares(batch), self.labels(batch)
        most = np.full(len(batch), self.c) if batch.weight is None else self.c * batch.weight
        w, b = parameters["w"], parameters["b"]
        losses = np.empty(len(batch))
        for start in range(0, len(batch), _BLOCK):
            rows = slice(start, start + _BLOCK)
            x = batch.x[rows]
            changes, losses[rows] = _steps(x @ w + b, _inner_products(x), y[rows], most[rows])
            changes = changes.astype(w.dtype)
            w, b = w + x.T @ changes, b + changes.sum(axis=0)
        return {"w": parameters["w"] - w, "b": parameters["b"] - b}, mean(losses, share)


def _steps(z: Array, inner: Array, y: Array, most: Array) -> tuple[Array, Array]:
    """Take rows one after the other, and return what each adds of itself to each class, and its loss.

    `z` (n, k) are the scores before the first, `inner` (n, n) the rows' inner products, `most` (n,) the
    largest tau of each: so scores follow from changes, and the weights need not be touched.
    """
    changes = np.zeros(z.shape)
    losses = np.zeros(len(z))
    for row, label in enumerate(y):
        scores = z[row] + inner[row, :row] @ changes[:row]
        right = scores[label]
        scores[label] = -np.inf
        rival = scores.argmax()
        losses[row] = max(0.0, 1 - (right - scores[rival]))
        tau = min(most[row], losses[row] / (2 * inner[row, row]))
        changes[row, label] += tau
        changes[row, rival] -= tau
    return changes, losses


def _inner_products(x: Design) -> Array:
    """The rows' inner products (n, n), with a feature more that is 1 everywhere."""
    products = x @ x.T
    dense = products if isinstance(products, np.ndarray) else products.toarray()
    return dense.astype(np.float64) + 1
