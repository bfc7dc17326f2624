"""Linear regression."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch, require_rows
from psworker.models.penalty import check_l2, penalty


@dataclass(frozen=True, slots=True)
class LinearRegression:
    """Least squares: z = x w + b, loss = mean 1/2 (z - y)^2 + l2/2 |w|^2.

    With r = z - y: dw = x' r / n + l2 w, db = mean r. Parameters: w (features,), b (1,), float32.
    Raises ValueError if `l2` is negative or not finite.
    """

    features: int
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Zeros; the loss is convex."""
        return {"w": np.zeros(self.features, np.float32), "b": np.zeros(1, np.float32)}

    def gradients(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
        """See `Model.gradients`."""
        residual = self._residual(parameters, batch)
        w = parameters["w"]
        scaled = residual / np.float32(len(batch))
        gradients = {
            "w": scaled @ batch.x + np.float32(self.l2) * w,
            "b": scaled.sum(keepdims=True),
        }
        return gradients, 0.5 * _mean_square(residual) + penalty(self.l2, w)

    def evaluate(self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch) -> dict[str, float]:
        """Means over the rows: "loss" and "mse", the mean squared error."""
        mse = _mean_square(self._residual(parameters, batch))
        return {"loss": 0.5 * mse + penalty(self.l2, parameters["w"]), "mse": mse}

    def _residual(
        self, parameters: Mapping[str, npt.NDArray[np.float32]], batch: Batch
    ) -> npt.NDArray[np.float32]:
        require_rows(batch)
        y = batch.y.astype(np.float32, copy=False)
        residual: npt.NDArray[np.float32] = batch.x @ parameters["w"] + parameters["b"] - y
        return residual


def _mean_square(residual: npt.NDArray[np.float32]) -> float:
    # Squares of float32 overflow float32 long before they overflow float64.
    return float(np.square(residual, dtype=np.float64).mean())
