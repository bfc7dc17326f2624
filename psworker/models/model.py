"""What a model is. Any class with these methods will do; it need not inherit anything."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch


class Model(Protocol):
    """Something that can be trained by pushing its gradients."""

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """The initial values by name, the same on every call and every worker."""

    def gradients(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
        """The gradient of the batch's mean loss, by the names and shapes of `parameters`, and that loss.

        The arrays are new on each call: the last ones may still be on their way to the servers.

        `parameters` are read-only. The built-in models raise ValueError for an empty batch and
        DataError for labels that they have no class for.
        """


@runtime_checkable
class EvaluatedModel(Model, Protocol):
    """A model that can also say how good it is."""

    def evaluate(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> dict[str, float]:
        """Means over the batch's rows, "loss" among them, so that batches merge by a weighted mean.

        Raises as `gradients` does.
        """
