"""One trial: a training on a cluster of its own, or one for each fold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from protocol.daemon.exit_codes import ExitCode
from protocol.errors import BadRequest
from psctl.child import ProcessFailed
from psctl.cluster import LocalCluster
from psctl.recording import Recording
from psctl.trial import run_trial
from psctl.tune.search import Trial
from psctl.tune.space import Settings, overrides
from psworker.job import load_job

__all__ = ["Running", "Stopped", "Trainer"]


class Stopped(Exception):
    """The search is over before the trial is."""


@dataclass(slots=True)
class Running:
    """A trial at work: ``recording`` is of its ``fold``, from 1 on; 0 where there are none."""

    number: int
    settings: Settings
    fold: int = 0
    recording: Recording = field(default_factory=Recording)


@dataclass(slots=True)
class Trainer:
    """Trains with the settings of a trial, on ``servers`` and ``workers`` of its own.

    ``given`` are settings of all trials; with ``folds``, each is trained so many times, another fold held out
    each time. ``clock`` is in seconds. ``running`` has the trials at work.
    """

    job: Path | None
    given: Sequence[str]
    servers: int
    workers: int
    folds: int
    measure: str
    clock: Callable[[], float] = time.monotonic
    running: dict[int, Running] = field(default_factory=dict)

    def run(self, number: int, settings: Settings, stop: Event) -> Trial:
        """Train and return what came of it. After a training that diverges, no other fold is tried.

        Raises:
            ProcessFailed: a training failed in another way.
            BadRequest: the measure is none of those of the held-out data.
            Stopped: ``stop`` was set.
        """
        began = self.clock()
        at_work = self.running[number] = Running(number, settings)
        found: list[float] = []
        try:
            for fold in range(1, self.folds + 1) if self.folds else [0]:
                at_work.fold, at_work.recording = fold, Recording()
                found.append(self._train(at_work, stop))
                if not math.isfinite(found[-1]):
                    break
        finally:
            del self.running[number]
        return Trial.of(number, settings, tuple(found), self.clock() - began)

    def overrides(self, settings: Settings) -> tuple[str, ...]:
        """Return all settings of a trial that are not those of the job file."""
        return (*self.given, *overrides(settings))

    def _train(self, at_work: Running, stop: Event) -> float:
        """Return the measure after the last epoch; NaN if it diverged."""

        def go_on() -> None:
            if stop.is_set():
                raise Stopped

        fold = (f"eval.fold={at_work.fold}/{self.folds}",) if at_work.fold else ()
        changed = (*self.overrides(at_work.settings), *fold)
        job = load_job(self.job, (*changed, f"train.workers={self.workers}"))
        cluster = LocalCluster(self.servers, self.workers, self.job, changed)
        try:
            run_trial(cluster, job, at_work.recording, go_on)
        except ProcessFailed as error:
            if error.returncode == ExitCode.DIVERGED:
                return math.nan
            raise
        return _measured(at_work.recording, self.measure)


def _measured(recording: Recording, measure: str) -> float:
    progress = recording.progress
    means = {mean.name: mean.value for mean in progress.evaluations[-1].means} if progress else {}
    if measure not in means:
        raise BadRequest(
            f"the held-out data have {', '.join(means) or 'no measures'}", field="--measure", value=measure
        )
    return means[measure]
