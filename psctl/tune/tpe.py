"""Search by what was learnt from earlier trials: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import BadRequest
from psctl.tune.space import Choices, Dimension, Settings, Space
from psworker.job import Value

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["TPE"]

_ATTEMPTS: Final = 100  # at settings that were not tried yet


class TPE:
    """``trials`` settings, after the first ten each where good ones were denser than bad ones.

    Bergstra, Bardenet, Bengio and Kegl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, as
    Optuna has it. Settings that it suggests again are not trained again: it is told what came of them.

    Raises:
        BadRequest: Optuna is not installed.
    """

    def __init__(self, space: Space, trials: int, seed: int) -> None:
        try:
            import optuna  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise BadRequest(
                "Optuna is missing; pip install 'asyncps[tune]', or take --search random",
                field="--search",
                value="optuna",
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._space = space
        self.total = trials
        self._values: dict[Settings, float | None] = {}  # None: not told yet
        self._asked: dict[Settings, Any] = {}

    def ask(self) -> Settings | None:
        """See ``Engine.ask``."""
        if len(self._values) >= self.total:
            return None
        for _ in itertools.repeat(None, _ATTEMPTS):
            trial = self._study.ask()
            settings = tuple((name, _suggested(trial, name, one)) for name, one in self._space.items())
            if settings not in self._values:
                self._values[settings] = None
                self._asked[settings] = trial
                return settings
            known = self._values[settings]
            if known is None:
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, known)
        return None

    def tell(self, settings: Settings, value: float) -> None:
        """See ``Engine.tell``."""
        self._values[settings] = value
        self._study.tell(self._asked.pop(settings), value)


def _suggested(trial: Trial, name: str, dimension: Dimension) -> Value:
    if isinstance(dimension, Choices):
        return dimension.values[trial.suggest_categorical(name, range(len(dimension.values)))]
    if dimension.whole:
        return trial.suggest_int(name, round(dimension.low), round(dimension.high), log=dimension.log)
    return dimension.rounded(trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log))
