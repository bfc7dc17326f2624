"""How a job went, as far as somebody looked: in memory that does not grow with its length. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol.status import JobStatus, Progress

__all__ = ["Look", "Recording", "Split"]

_MOST: Final = 1024  # looks that are kept

Split = Mapping[str, float]
"""Seconds that a worker's training loop has spent, or waited, by phase of a step."""


@dataclass(frozen=True, slots=True)
class Look:
    """A job at one moment, ``seconds`` after its work began.

    ``lag`` is how many steps the slowest live worker is behind the furthest, None where nobody is; ``rates``
    are examples per second by worker.
    """

    seconds: float
    examples: int
    loss: float | None
    lag: int | None
    rates: Mapping[str, float]


@dataclass(slots=True)
class Recording:
    """What was seen of one job; with more than 1,024 looks every other one is forgotten.

    Attributes:
        looks: in order of time.
        splits: by worker, the latest that is known.
        job: the latest status; None: there was none yet.
    """

    looks: list[Look] = field(default_factory=list)
    splits: dict[str, Split] = field(default_factory=dict)
    job: JobStatus | None = None
    _every: int = 1
    _left_out: int = 0

    @property
    def progress(self) -> Progress | None:
        """How far the work had come when somebody looked last."""
        return None if self.job is None else self.job.progress

    def note(self, job: JobStatus) -> None:
        """Take a look at the job."""
        self.job = job
        if job.progress is None:
            return
        self._left_out += 1
        finished = job.progress.phase == "finished"
        if self._left_out < self._every and not finished:
            return
        self._left_out = 0
        self.looks.append(_look(job, job.progress))
        if len(self.looks) > _MOST:
            self.looks[:-1] = self.looks[:-1:2]
            self._every *= 2

    def note_split(self, worker: str, split: Split) -> None:
        """Take note of where a worker's time went so far."""
        self.splits[worker] = dict(split)

    def throughput(self, over: float) -> list[tuple[float, float]]:
        """Return (seconds, examples per second) over stretches of at least ``over`` seconds."""
        found: list[tuple[float, float]] = []
        if not self.looks:
            return found
        began = Look(0.0, 0, None, None, {})
        for look in self.looks:
            took = look.seconds - began.seconds
            if took >= over or (look is self.looks[-1] and took > 0 and not found):
                found.append((look.seconds, (look.examples - began.examples) / took))
                began = look
        return found


def _look(job: JobStatus, progress: Progress) -> Look:
    live = [worker for worker in job.workers if worker.state in ("training", "suspect")]
    return Look(
        seconds=progress.seconds,
        examples=progress.train_examples,
        loss=progress.train_loss,
        lag=max((worker.lag for worker in live), default=None),
        rates={worker.name: worker.examples_per_second for worker in sorted(live, key=lambda one: one.name)},
    )
