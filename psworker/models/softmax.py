"""Softmax regression (multinomial logistic regression)."""

from dataclasses import dataclass

from psworker.models.labels import check_classes
from psworker.models.linear_scores import LinearScores
from psworker.models.settings import check_not_negative
from psworker.models.tasks import Probabilistic


@dataclass(frozen=True, slots=True)
class SoftmaxRegression(LinearScores, Probabilistic):
    """Classes 0..k-1: z = x w + b, loss = mean [log sum_k e^z_k - z_y] + l2/2 |w|^2.

    With p = softmax(z) and e_y the one-hot label: dw = x' (p - e_y) / n + l2 w, db = mean (p - e_y).
    Parameters: see `LinearScores`.
    Raises ValueError if there are fewer than 2 classes, or `l2` is negative or not finite.
    """

    features: int
    classes: int
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("l2", self.l2)
        check_classes(self.classes)

    @property
    def outputs(self) -> int:
        """One score a class."""
        return self.classes
