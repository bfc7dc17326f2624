"""Linear regression that outliers do not draw away."""

from dataclasses import dataclass

from psworker.models.linear_scores import LinearScores
from psworker.models.losses import Losses, huber
from psworker.models.scored import Array
from psworker.models.settings import check_above_zero, check_not_negative
from psworker.models.tasks import Regression


@dataclass(frozen=True, slots=True)
class HuberRegression(LinearScores, Regression):
    """z = x w + b, r = z - y, loss = mean of r^2/2 where |r| <= delta, delta (|r| - delta/2) beyond it, +
    l2/2 |w|^2.

    `delta` is in units of y: 1.345 standard deviations of the noise make it 95 % as efficient as least
    squares where there are no outliers. Source: Huber, "Robust estimation of a location parameter", 1964.
    Parameters: see `LinearScores`. Raises ValueError if `delta` is not above 0, or `l2` negative or not
    finite.
    """

    features: int
    delta: float = 1.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_above_zero("delta", self.delta)
        check_not_negative("l2", self.l2)

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.huber`."""
        return huber(z, y, self.delta)
