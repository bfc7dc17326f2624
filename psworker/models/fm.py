"""Factorization machines, for numbers and for two classes."""

from __future__ import annotations

from dataclasses import dataclass

from psworker.models.factor_scores import FactorScores
from psworker.models.losses import Losses, squared
from psworker.models.scored import Array
from psworker.models.settings import check_above_zero, check_count, check_not_negative
from psworker.models.tasks import Probabilistic, Regression


@dataclass(frozen=True, slots=True)
class FactorizationMachine(FactorScores, Regression):
    """The scores and the penalty of `FactorScores`, loss = mean 1/2 (z - y)^2 + penalty.

    Raises ValueError if `rank` is not a whole number above 0, `std` not above 0, or `l2` negative or not
    finite.
    """

    features: int
    rank: int = 8
    l2: float = 0.0
    std: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_factors(self.rank, self.l2, self.std)

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.squared`."""
        return squared(z, y)


@dataclass(frozen=True, slots=True)
class FactorizationClassifier(FactorScores, Probabilistic):
    """The scores and the penalty of `FactorScores`, loss = mean [log(1 + e^z) - y z] + penalty, for labels
    0 and 1.

    Raises ValueError as `FactorizationMachine`, or if there are not 2 classes.
    """

    features: int
    classes: int = 2
    rank: int = 8
    l2: float = 0.0
    std: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_factors(self.rank, self.l2, self.std)
        if self.classes != 2:
            raise ValueError(f"classes is {self.classes}; a factorization machine has 2, or predicts numbers")


def check_factors(rank: int, l2: float, std: float) -> None:
    """Raise ValueError for settings of `FactorScores` that make no sense."""
    check_count("rank", rank)
    check_not_negative("l2", l2)
    check_above_zero("std", std)


def fm(
    features: int,
    classes: int | None = None,
    rank: int = 8,
    l2: float = 0.0,
    std: float = 0.01,
    seed: int = 0,
) -> FactorizationMachine | FactorizationClassifier:
    """Return the factorization machine for data of so many classes; None: y are numbers."""
    if classes is None:
        return FactorizationMachine(features, rank, l2, std, seed)
    return FactorizationClassifier(features, classes, rank, l2, std, seed)
