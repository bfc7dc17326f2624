"""A search: an engine is asked, trials are run, several at a time, and it is told what came of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from statistics import fmean, stdev
from threading import Event
from typing import Final

from protocol.measures import MORE_IS_BETTER
from psctl.tune.engines import Engine
from psctl.tune.space import Settings
from psworker.job import Value

__all__ = ["Run", "Trial", "best_first", "search"]

_LOOK_EVERY: Final = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of some settings.

    ``folds`` has the measure of each training: one, or one for each fold. ``value`` is their mean, None if
    one of them diverged; ``deviation`` their standard deviation, where there are several. ``seconds`` are
    those of all its trainings, from start to end of their clusters.
    """

    number: int
    settings: Mapping[str, Value]
    value: float | None
    deviation: float | None
    folds: tuple[float, ...]
    seconds: float

    @staticmethod
    def of(number: int, settings: Settings, folds: tuple[float, ...], seconds: float) -> Trial:
        """Return a trial; a fold that is not finite has diverged."""
        sound = all(map(math.isfinite, folds))
        return Trial(
            number,
            dict(settings),
            fmean(folds) if sound else None,
            stdev(folds) if sound and len(folds) > 1 else None,
            folds,
            seconds,
        )


Run = Callable[[int, Settings, Event], Trial]
"""Trains with settings as the trial of this number, until it is done or the event is set."""


def best_first(trials: list[Trial], measure: str) -> list[Trial]:
    """Return trials by their value of ``measure``, those that diverged last."""
    return sorted(trials, key=lambda trial: (_loss(trial.value, measure), trial.number))


def search(
    engine: Engine,
    run: Run,
    *,
    measure: str,
    parallel: int,
    seen: Callable[[Trial], None],
    look: Callable[[], None],
) -> None:
    """Run what ``engine`` asks for until it has nothing more to try.

    Args:
        engine: is told losses: the measure, with the other sign where more is better.
        run: is called in threads.
        measure: of the held-out data.
        parallel: trials at a time.
        seen: takes each trial when it is over.
        look: is called a few times a second meanwhile.

    Raises whatever a trial raises, once the others have been stopped.
    """
    stop = Event()
    running: dict[Future[Trial], Settings] = {}
    number = 0
    with ThreadPoolExecutor(parallel, thread_name_prefix="trial") as pool:
        try:
            while True:
                while len(running) < parallel and (settings := engine.ask()) is not None:
                    number += 1
                    running[pool.submit(run, number, settings, stop)] = settings
                if not running:
                    return
                look()
                for future in wait(running, _LOOK_EVERY, FIRST_COMPLETED).done:
                    trial = future.result()
                    engine.tell(running.pop(future), _loss(trial.value, measure))
                    seen(trial)
        finally:  # also when interrupted: threads that run would be waited for
            stop.set()


def _loss(value: float | None, measure: str) -> float:
    if value is None:
        return math.inf
    return -value if measure in MORE_IS_BETTER else value
