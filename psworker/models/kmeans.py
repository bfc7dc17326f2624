"""Mini-batch k-means."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protocol.optimizers import Add, Optimizer
from psworker.data.batch import Batch, require_rows
from psworker.errors import DataError
from psworker.models.scored import Array, Parameters
from psworker.models.settings import check_count
from psworker.models.weighting import mean, shares


@dataclass(frozen=True, slots=True)
class KMeans:
    """Centres c_1..c_k; the loss is the mean of |x - c|^2, c the centre nearest to x ("inertia"). y is not
    looked at.

    What the servers have are sums of the rows that were nearest to each centre, and how many these were, to
    which workers add (`Add`); a centre is one by the other. So a row moves its centre by 1 / count of the
    way to it, which is the rate of Sculley, "Web-scale k-means clustering", WWW 2010, at any staleness. A
    row counts its weight.

    The first centres are rows of chunk 0, each of which counts as one: k-means++ takes the next with a
    probability that goes with its distance to those it has (Arthur and Vassilvitskii, "k-means++: the
    advantages of careful seeding", 2007), the best of 2 + log k candidates.

    Parameters: sums (clusters, features), counts (clusters,), float64.
    Raises ValueError if `clusters` is no whole number above 0.
    """

    features: int
    clusters: int = 8
    seed: int = 0
    first: Array | None = field(default=None, compare=False, repr=False)  # (clusters, features), float64

    optimizer: ClassVar[Optimizer] = Add()

    def __post_init__(self) -> None:
        check_count("clusters", self.clusters)

    def prepared(self, batch: Batch) -> KMeans:
        """See `PreparedModel.prepared`. Raises DataError for fewer different rows than clusters."""
        return replace(self, first=_spread(batch, self.clusters, np.random.default_rng(self.seed)))

    def parameters(self) -> dict[str, Array]:
        """See `Model.parameters`; zeros as long as nothing is prepared."""
        if self.first is None:
            return {"sums": np.zeros((self.clusters, self.features)), "counts": np.zeros(self.clusters)}
        return {"sums": self.first.copy(), "counts": np.ones(self.clusters)}

    def gradients(self, parameters: Parameters, batch: Batch) -> tuple[dict[str, Array], float]:
        """What the rows add to the sums and counts of their nearest centres, and the inertia."""
        share = shares(batch)
        nearest, distances = self._nearest(parameters, batch)
        weight = np.ones(len(batch)) if batch.weight is None else batch.weight.astype(np.float64)
        members = np.zeros((self.clusters, len(batch)))
        members[nearest, np.arange(len(batch))] = weight
        added = {"sums": members @ batch.x.astype(np.float64), "counts": members.sum(axis=1)}
        return added, mean(distances, share)

    def evaluate(self, parameters: Parameters, batch: Batch) -> dict[str, float]:
        """Means over the rows: "loss" and "inertia", both the squared distance to the nearest centre."""
        share = shares(batch)
        _, distances = self._nearest(parameters, batch)
        inertia = mean(distances, share)
        return {"loss": inertia, "inertia": inertia}

    def predict(self, parameters: Parameters, batch: Batch) -> npt.NDArray[np.int64]:
        """The number of each row's nearest centre."""
        nearest, _ = self._nearest(parameters, batch)
        return nearest

    def centres(self, parameters: Parameters) -> Array:
        """Return the centres (clusters, features), float64."""
        return np.asarray(parameters["sums"] / np.maximum(parameters["counts"], 1e-300)[:, np.newaxis])

    def _nearest(self, parameters: Parameters, batch: Batch) -> tuple[npt.NDArray[np.int64], Array]:
        distances = _distances(batch.x.astype(np.float64), self.centres(parameters))
        nearest = distances.argmin(axis=1)
        return nearest, distances[np.arange(len(batch)), nearest]


def kmeans(features: int, clusters: int = 8, seed: int = 0) -> KMeans:
    """Return k-means that nothing is prepared for yet."""
    return KMeans(features, clusters, seed)


def _distances(x: Array, centres: Array) -> Array:
    """The squared distances (n, k) as |x|^2 - 2 x c + |c|^2, which rounding may make a little negative."""
    squares = np.square(x).sum(axis=1)[:, np.newaxis] + np.square(centres).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * (x @ centres.T), 0))


def _spread(batch: Batch, clusters: int, rng: np.random.Generator) -> Array:
    require_rows(batch)
    x = batch.x.astype(np.float64)
    weight = np.ones(len(x)) if batch.weight is None else batch.weight.astype(np.float64)
    chosen = x[rng.choice(len(x), 1, p=weight / weight.sum())]
    nearest = _distances(x, chosen)[:, 0]
    candidates = 2 + int(np.log(clusters))
    for found in range(1, clusters):
        chances = weight * nearest
        if not chances.sum() > 0:
            raise DataError(
                "chunk 0",
                None,
                f"has only {found} different rows to train on, too few to begin {clusters} clusters with; "
                "raise [data] chunk-rows, or take fewer [model] clusters",
            )
        rows = rng.choice(len(x), candidates, p=chances / chances.sum())
        left = np.minimum(nearest[:, np.newaxis], _distances(x, x[rows]))
        best = int((weight @ left).argmin())
        chosen = np.vstack([chosen, x[rows[best]]])
        nearest = left[:, best]
    return np.asarray(chosen)
