"""Linear regression on a quantile."""

from dataclasses import dataclass

from psworker.models.linear_scores import LinearScores
from psworker.models.losses import Losses, quantile
from psworker.models.scored import Array
from psworker.models.settings import check_above_zero, check_not_negative
from psworker.models.tasks import Regression


@dataclass(frozen=True, slots=True)
class QuantileRegression(LinearScores, Regression):
    """z = x w + b is the `quantile` of y given x: loss = mean of q (y - z) or (1 - q) (z - y), + l2/2 |w|^2.

    The first where y > z, the second where it is not: so a share q of the y is below z. 0.5 is the median,
    and the loss half the absolute error. Source: Koenker and Bassett, "Regression quantiles", 1978.
    Parameters: see `LinearScores`. Raises ValueError if `quantile` is not between 0 and 1, or `l2` negative
    or not finite.
    """

    features: int
    quantile: float = 0.5
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_above_zero("quantile", self.quantile)
        if self.quantile >= 1:
            raise ValueError(f"quantile is {self.quantile!r}; expected a number between 0 and 1")
        check_not_negative("l2", self.l2)

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.quantile`."""
        return quantile(z, y, self.quantile)
