"""Linear support vector machines."""

from dataclasses import dataclass

import numpy as np

from psworker.models.labels import check_classes
from psworker.models.linear_scores import LinearScores
from psworker.models.losses import Losses, hinge, squared_hinge
from psworker.models.scored import Array
from psworker.models.settings import check_not_negative, check_one_of
from psworker.models.tasks import Classification

_LOSSES = {"hinge": hinge, "squared-hinge": squared_hinge}


@dataclass(frozen=True, slots=True)
class SupportVectorMachine(LinearScores, Classification):
    """z = x w + b, loss = mean max(0, 1 - s z) + l2/2 |w|^2 with s = 1 for class 1 and -1 for class 0.

    Of more classes than two each has a z of its own against all the others (one-versus-rest), and the
    losses are added; the class with the largest z is predicted. With `loss` "squared-hinge" the maximum is
    squared. scikit-learn's `LinearSVC(C)` is l2 = 1 / (C n). Sources: Cortes and Vapnik, "Support-vector
    networks", 1995; trained so: Shalev-Shwartz et al., "Pegasos", 2007. Parameters: see `LinearScores`.
    Raises ValueError for another loss, fewer than 2 classes, or an `l2` that is negative or not finite.
    """

    features: int
    classes: int | None = None
    l2: float = 0.0
    loss: str = "hinge"

    def __post_init__(self) -> None:
        check_not_negative("l2", self.l2)
        check_one_of("loss", self.loss, tuple(_LOSSES))
        if self.classes is not None:
            check_classes(self.classes)

    @property
    def outputs(self) -> int | None:
        """One score of two classes, otherwise one a class."""
        return None if self.classes in (None, 2) else self.classes

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.hinge` and `losses.squared_hinge`."""
        loss = _LOSSES[self.loss]
        if z.ndim == 1:
            return loss(z, y.astype(z.dtype))
        values, slopes = loss(z, (y[:, np.newaxis] == np.arange(z.shape[1])).astype(z.dtype))
        return values.sum(axis=1), slopes
