"""What a model is. Any class with these methods will do; it need not inherit anything.

A model computes on arrays and knows neither servers nor tables. Of hashed features, the parameters and
gradients that have a row a feature are those of the features that the batch has, `batch.keys`, and no
others: the same code serves both, where it takes the number of features from the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from protocol.optimizers import Optimizer
from protocol.tables import Initial
from psworker.data.batch import Batch

Parameters = Mapping[str, npt.NDArray[Any]]


class Model(Protocol):
    """Something that can be trained by pushing its gradients."""

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """The initial values by name, the same on every call and every worker."""

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """The gradient of the batch's mean loss, by the names and shapes of `parameters`, and that loss.

        The arrays are new on each call: the last ones may still be on their way to the servers.

        `parameters` are read-only. The built-in models raise ValueError for an empty batch and
        DataError for labels that they have no class for.
        """


@runtime_checkable
class EvaluatedModel(Model, Protocol):
    """A model that can also say how good it is."""

    def evaluate(self, parameters: Parameters, batch: Batch) -> dict[str, float]:
        """Means over the batch's rows, "loss" among them, so that batches merge by a weighted mean.

        Raises as `gradients` does.
        """


@runtime_checkable
class PredictingModel(Model, Protocol):
    """A model that can say what it makes of examples whose label nobody knows."""

    def predict(self, parameters: Parameters, batch: Batch) -> npt.NDArray[Any]:
        """(n,): class indices, int64, or numbers, float32. `batch.y` is not looked at."""


@runtime_checkable
class ProbableModel(PredictingModel, Protocol):
    """A classifier that knows how sure it is."""

    def probabilities(self, parameters: Parameters, batch: Batch) -> npt.NDArray[np.float32]:
        """(n, classes): of each class; rows sum to 1."""


@runtime_checkable
class HashedModel(Model, Protocol):
    """A model for hashed features, too: it is made with `features=0`, and has tables.

    The parameters `per_feature` then begin with an axis of length 0, one row a feature: they are
    sparse tables on the servers, of the shape and dtype that is left. Their rows begin with what
    `initial` says, zeros where it says nothing.
    """

    per_feature: tuple[str, ...]
    initial: Mapping[str, Initial]


@runtime_checkable
class OwnRule(Model, Protocol):
    """A model that says itself what the servers do with what it pushes, whatever the job's optimizer."""

    optimizer: Optimizer


@runtime_checkable
class PreparedModel(Model, Protocol):
    """A model that has to see some data before it has initial values."""

    def prepared(self, batch: Batch) -> Model:
        """The model to train, from the training rows of chunk 0, the same on every worker."""
