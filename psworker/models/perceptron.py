"""The multi-class perceptron, trained in mini-batches."""

from dataclasses import dataclass

from psworker.models.labels import check_classes
from psworker.models.linear_scores import LinearScores
from psworker.models.losses import Losses, perceptron
from psworker.models.scored import Array
from psworker.models.settings import check_not_negative
from psworker.models.tasks import Classification


@dataclass(frozen=True, slots=True)
class Perceptron(LinearScores, Classification):
    """Classes 0..k-1: z = x w + b, prediction q = argmax z, loss = mean (z_q - z_y) + l2/2 |w|^2.

    The subgradient moves the weights of a wrong prediction away and those of the label nearer: dw = x' (e_q
    - e_y) / n + l2 w, db = mean (e_q - e_y), with one-hot e. With plain SGD and batches of one row this is
    the perceptron rule. The first of equals is predicted, so all but class 0 begin as mistakes. Sources:
    Rosenblatt, "The Perceptron", 1958; for more than two classes Collins, "Discriminative Training Methods
    for Hidden Markov Models", EMNLP 2002. Parameters: see `LinearScores`. Raises ValueError if there are
    fewer than 2 classes, or `l2` is negative or not finite.
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

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.perceptron`."""
        return perceptron(z, y)
