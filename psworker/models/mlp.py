"""Multi-layer perceptrons, for numbers and for classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psworker.models.labels import check_classes
from psworker.models.layers import LayerScores
from psworker.models.losses import Losses, squared
from psworker.models.scored import Array
from psworker.models.settings import check_count, check_not_negative, check_one_of
from psworker.models.tasks import Probabilistic, Regression


@dataclass(frozen=True, slots=True)
class NetworkRegression(LayerScores, Regression):
    """The scores and the penalty of `LayerScores`, loss = mean 1/2 (z - y)^2 + penalty.

    Raises ValueError for a layer without units, another activation, or an `l2` that is negative or not
    finite.
    """

    features: int
    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"
    l2: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_layers(self.hidden, self.activation, self.l2)

    def losses(self, z: Array, y: Array) -> Losses:
        """See `losses.squared`."""
        return squared(z, y)


@dataclass(frozen=True, slots=True)
class NetworkClassifier(LayerScores, Probabilistic):
    """The scores and the penalty of `LayerScores`, loss = mean [log sum_k e^z_k - z_y] + penalty.

    Raises ValueError as `NetworkRegression`, or if there are fewer than 2 classes.
    """

    features: int
    classes: int
    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"
    l2: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_classes(self.classes)
        _check_layers(self.hidden, self.activation, self.l2)

    @property
    def outputs(self) -> int:
        """One score a class."""
        return self.classes


def _check_layers(hidden: tuple[int, ...], activation: str, l2: float) -> None:
    for width in hidden:
        check_count("hidden", width)
    check_one_of("activation", activation, ("relu", "tanh"))
    check_not_negative("l2", l2)


def mlp(
    features: int,
    classes: int | None = None,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    l2: float = 0.0,
    seed: int = 0,
) -> NetworkRegression | NetworkClassifier:
    """Return the network for data of so many classes; None: y are numbers."""
    if not isinstance(hidden, list | tuple):
        raise ValueError(  # noqa: TRY004 (what is wrong with a setting is a ValueError)
            f"hidden is {hidden!r}; expected a list of the hidden layers' units, such as [64, 32]"
        )
    if classes is None:
        return NetworkRegression(features, tuple(hidden), activation, l2, seed)
    return NetworkClassifier(features, classes, tuple(hidden), activation, l2, seed)
