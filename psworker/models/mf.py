"""Matrix factorization with biases: what a user makes of an item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psworker.data.batch import Batch
from psworker.errors import DataError
from psworker.models.factor_scores import FactorScores
from psworker.models.fm import check_factors
from psworker.models.losses import Losses, squared
from psworker.models.scored import Array, Forward, Parameters
from psworker.models.tasks import Regression


@dataclass(frozen=True, slots=True)
class MatrixFactorization(FactorScores, Regression):
    """z = b + w_u + w_i + v_u . v_i, loss = mean [1/2 (z - y)^2 + l2/2 (w_u^2 + w_i^2 + |v_u|^2 + |v_i|^2)].

    Each row has two features that are not 0, that of the user u and that of the item i, both 1: on such
    rows a factorization machine is just this (Rendle 2010, section V.A), and so it is computed. Source:
    Koren, Bell and Volinsky, "Matrix factorization techniques for recommender systems", 2009, equation 5.
    Parameters: see `FactorScores`; a user or an item that nobody has seen has only what others share, b and
    the other one's w. Raises ValueError as `FactorizationMachine`, DataError for a row with more or fewer
    than two features.
    """

    features: int
    rank: int = 8
    l2: float = 0.05
    std: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_factors(self.rank, self.l2, self.std)

    def forward(self, parameters: Parameters, batch: Batch) -> Forward:
        """See `Scored.forward`."""
        _check_pairs(batch)
        return FactorScores.forward(self, parameters, batch)

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.squared`."""
        return squared(z, y)


def _check_pairs(batch: Batch) -> None:
    present = batch.x != 0
    counts = np.asarray(present.sum(axis=1)).reshape(-1)
    wrong = np.flatnonzero(counts != 2)
    if len(wrong):
        raise DataError(
            "features",
            None,
            f"a row has {counts[wrong[0]]} features that are not 0, and mf takes two, that of the user and "
            'that of the item; list these columns in [data] columns, or take kind = "fm" for any number',
        )
