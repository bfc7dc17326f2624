"""Binary logistic regression."""

from dataclasses import dataclass

from psworker.models.linear_scores import LinearScores
from psworker.models.settings import check_not_negative
from psworker.models.tasks import Probabilistic


@dataclass(frozen=True, slots=True)
class LogisticRegression(LinearScores, Probabilistic):
    """Labels 0 and 1: z = x w + b, loss = mean [log(1 + e^z) - y z] + l2/2 |w|^2.

    With r = sigmoid(z) - y: dw = x' r / n + l2 w, db = mean r. Source: Cox, "The regression analysis of
    binary sequences", 1958. Parameters: see `LinearScores`. Raises ValueError if `l2` is negative or not
    finite, or the data has not 2 classes.
    """

    features: int
    classes: int | None = None
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("l2", self.l2)
        if self.classes not in (None, 2):
            raise ValueError(f'classes is {self.classes}; logistic regression has 2, use kind = "softmax"')
