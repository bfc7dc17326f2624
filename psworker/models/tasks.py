"""What scores are for: a number, or one of two classes or more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.models.labels import class_indices
from psworker.models.losses import Losses, logistic, sigmoid, softmax
from psworker.models.measuring import classification_measures, ranking_measures, regression_measures
from psworker.models.scored import Array, Parameters, Scored, Share
from psworker.models.weighting import mean


class Regression(Scored):
    """The score (n,) is the prediction."""

    __slots__ = ()

    def labels(self, batch: Batch) -> Array:
        """The labels as float32; class indices, too, are numbers."""
        return batch.y.astype(np.float32, copy=False)

    def measures(self, z: Array, y: Array, share: Share) -> dict[str, float]:
        """ "mse" and "mae", and what RMSE and R2 are made of."""
        return regression_measures(z, y, share)

    def predicted(self, z: Array) -> Array:
        """The scores, float32."""
        return z.astype(np.float32, copy=False)


class Classification(Scored):
    """Scores (n,): class 1 is predicted where they are above 0; (n, k): the first of the largest is."""

    __slots__ = ()
    classes: int | None

    def labels(self, batch: Batch) -> Array:
        """Class indices, int64. Raises DataError for a label that is none."""
        return class_indices(batch.y, self.classes or 2)

    def measures(self, z: Array, y: Array, share: Share) -> dict[str, float]:
        """The accuracy, what F1 is made of and, of two classes, what AUC is."""
        classes = self.classes or 2
        measures = classification_measures(self.predicted(z), y, share, classes)
        if classes == 2:
            measures |= ranking_measures(z if z.ndim == 1 else z[:, 1] - z[:, 0], y, share)
        return measures

    def predicted(self, z: Array) -> Array:
        """Class indices, int64."""
        return (z > 0).astype(np.int64) if z.ndim == 1 else z.argmax(axis=1)


class Probabilistic(Classification):
    """Scores are log-odds: of class 1 against class 0, or of each of more classes against all."""

    __slots__ = ()

    def losses(self, z: Array, y: Array) -> Losses:
        """The negative log-likelihood."""
        return logistic(z, y.astype(z.dtype)) if z.ndim == 1 else softmax(z, y)

    def measures(self, z: Array, y: Array, share: Share) -> dict[str, float]:
        """ "log-loss", the loss without any penalty, beside what all classifiers measure."""
        likelihood, _ = self.losses(z, y)
        return {"log-loss": mean(likelihood, share)} | Classification.measures(self, z, y, share)

    def probabilities(self, parameters: Parameters, batch: Batch) -> npt.NDArray[np.float32]:
        """See `ProbableModel.probabilities`."""
        z, _ = self.forward(parameters, batch)
        if z.ndim == 1:
            second = sigmoid(z)
            return np.stack([1 - second, second], axis=1).astype(np.float32)
        exp = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(exp / exp.sum(axis=1, keepdims=True), np.float32)
