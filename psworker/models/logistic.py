"""Binary logistic regression."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch, require_rows
from psworker.models.labels import class_indices
from psworker.models.penalty import check_l2, penalty


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """Labels 0 and 1: z = x w + b, loss = mean [log(1 + e^z) - y z] + l2/2 |w|^2.

    The bracket is computed as max(z, 0) - y z + log1p(e^-|z|), which never overflows.
    With r = sigmoid(z) - y: dw = x' r / n + l2 w, db = mean r. Parameters: w (features,), b (1,),
    float32. Raises ValueError if `l2` is negative or not finite, or the data has not 2 classes.
    """

    features: int
    classes: int | None = None
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)
        if self.classes not in (None, 2):
            raise ValueError(f'classes is {self.classes}; logistic regression has 2, use kind = "softmax"')

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Zeros; the loss is convex."""
        return {"w": np.zeros(self.features, np.float32), "b": np.zeros(1, np.float32)}

    def gradients(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
        """See `Model.gradients`."""
        z, y = self._logits(parameters, batch)
        w = parameters["w"]
        # sigmoid(z) = (1 + tanh(z/2)) / 2; tanh saturates where e^-z would overflow.
        residual = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * z)) - y
        scaled = residual / np.float32(len(batch))
        gradients = {
            "w": scaled @ batch.x + np.float32(self.l2) * w,
            "b": scaled.sum(keepdims=True),
        }
        return gradients, _loss(z, y) + penalty(self.l2, w)

    def evaluate(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> dict[str, float]:
        """Means over the rows: "loss" and "accuracy"; class 1 is predicted where z > 0."""
        z, y = self._logits(parameters, batch)
        return {
            "loss": _loss(z, y) + penalty(self.l2, parameters["w"]),
            "accuracy": float(((z > 0) == (y == 1)).mean()),
        }

    def _logits(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        require_rows(batch)
        y = class_indices(batch.y, 2).astype(np.float32)
        return batch.x @ parameters["w"] + parameters["b"], y


def _loss(z: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
    return float((np.maximum(z, 0) - y * z + np.log1p(np.exp(-np.abs(z)))).mean())
