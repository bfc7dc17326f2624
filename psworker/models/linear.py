"""Linear regression by gradients, with and without an L2 penalty."""

from dataclasses import dataclass

from psworker.models.linear_scores import LinearScores
from psworker.models.losses import Losses, squared
from psworker.models.scored import Array
from psworker.models.settings import check_not_negative
from psworker.models.tasks import Regression


@dataclass(frozen=True, slots=True)
class LinearRegression(LinearScores, Regression):
    """Least squares: z = x w + b, loss = mean 1/2 (z - y)^2 + l2/2 |w|^2.

    With r = z - y: dw = x' r / n + l2 w, db = mean r. With l2 > 0 this is ridge regression (Hoerl and Kennard
    1970); scikit-learn's `Ridge(alpha)` is l2 = alpha / n. Parameters: see `LinearScores`.
    Raises ValueError if `l2` is negative or not finite.
    """

    features: int
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("l2", self.l2)

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.squared`."""
        return squared(z, y)


def ridge(features: int, l2: float = 0.01) -> LinearRegression:
    """Return linear regression with a penalty unless one says otherwise."""
    return LinearRegression(features, l2)
