"""The multi-class perceptron, trained in mini-batches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch, require_rows
from psworker.models.labels import check_classes, class_indices
from psworker.models.penalty import check_l2, penalty


@dataclass(frozen=True, slots=True)
class Perceptron:
    """Classes 0..k-1: z = x w + b, prediction q = argmax z, loss = mean (z_q - z_y) + l2/2 |w|^2.

    The subgradient moves the weights of a wrong prediction away and those of the label nearer:
    dw = x' (e_q - e_y) / n + l2 w, db = mean (e_q - e_y), with one-hot e. With plain SGD and
    batches of one row this is the perceptron rule. Parameters: w (features, classes),
    b (classes,), float32.
    Sources: Rosenblatt, "The Perceptron", 1958; for more than two classes Collins, "Discriminative
    Training Methods for Hidden Markov Models", EMNLP 2002.
    Raises ValueError if there are fewer than 2 classes, or `l2` is negative or not finite.
    """

    features: int
    classes: int
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)
        check_classes(self.classes)

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Zeros; the first of equals is predicted, so all but class 0 begin as mistakes."""
        return {
            "w": np.zeros((self.features, self.classes), np.float32),
            "b": np.zeros(self.classes, np.float32),
        }

    def gradients(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
        """See `Model.gradients`."""
        z, y = self._scores(parameters, batch)
        w = parameters["w"]
        rows = np.arange(len(batch))
        predicted = z.argmax(axis=1)
        step = np.zeros_like(z)
        step[rows, predicted] += 1
        step[rows, y] -= 1
        step /= len(batch)
        gradients = {"w": batch.x.T @ step + np.float32(self.l2) * w, "b": step.sum(axis=0)}
        return gradients, float((z[rows, predicted] - z[rows, y]).mean()) + penalty(self.l2, w)

    def evaluate(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> dict[str, float]:
        """Means over the rows: "loss" and "accuracy"."""
        z, y = self._scores(parameters, batch)
        loss = float((z.max(axis=1) - z[np.arange(len(batch)), y]).mean())
        return {
            "loss": loss + penalty(self.l2, parameters["w"]),
            "accuracy": float((z.argmax(axis=1) == y).mean()),
        }

    def _scores(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        require_rows(batch)
        y = class_indices(batch.y, self.classes)
        return batch.x @ parameters["w"] + parameters["b"], y
