"""Softmax regression (multinomial logistic regression)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch, require_rows
from psworker.models.labels import check_classes, class_indices
from psworker.models.penalty import check_l2, penalty


@dataclass(frozen=True, slots=True)
class SoftmaxRegression:
    """Classes 0..k-1: z = x w + b, loss = mean [log sum_k e^z_k - z_y] + l2/2 |w|^2.

    With p = softmax(z) and e_y the one-hot label: dw = x' (p - e_y) / n + l2 w, db = mean (p - e_y).
    The largest z is subtracted from each row first, so nothing overflows. Parameters:
    w (features, classes), b (classes,), float32.
    Raises ValueError if there are fewer than 2 classes, or `l2` is negative or not finite.
    """

    features: int
    classes: int
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)
        check_classes(self.classes)

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Zeros; the loss is convex."""
        return {
            "w": np.zeros((self.features, self.classes), np.float32),
            "b": np.zeros(self.classes, np.float32),
        }

    def gradients(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
        """See `Model.gradients`."""
        z, y = self._shifted_logits(parameters, batch)
        w = parameters["w"]
        rows = np.arange(len(batch))
        exp = np.exp(z)
        total = exp.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - z[rows, y]).mean()) + penalty(self.l2, w)
        residual = exp / total
        residual[rows, y] -= 1
        residual /= len(batch)
        gradients = {
            "w": batch.x.T @ residual + np.float32(self.l2) * w,
            "b": residual.sum(axis=0),
        }
        return gradients, loss

    def evaluate(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> dict[str, float]:
        """Means over the rows: "loss" and "accuracy"; the class of the largest z is predicted."""
        z, y = self._shifted_logits(parameters, batch)
        log_likelihood = z[np.arange(len(batch)), y] - np.log(np.exp(z).sum(axis=1))
        return {
            "loss": float(-log_likelihood.mean()) + penalty(self.l2, parameters["w"]),
            "accuracy": float((z.argmax(axis=1) == y).mean()),
        }

    def _shifted_logits(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The logits, each row's largest 0, and the labels; neither loss nor prediction changes."""
        require_rows(batch)
        y = class_indices(batch.y, self.classes)
        z = batch.x @ parameters["w"] + parameters["b"]
        z -= z.max(axis=1, keepdims=True)
        return z, y
