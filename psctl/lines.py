"""A job in progress as plain lines, for pipes and log files."""

from __future__ import annotations

from typing import Final

from protocol.status import ClusterStatus, JobStatus, Progress
from psctl.display import job_status
from psctl.figures import count, figure, printable, span
from psctl.waits import felt, sentence
from psworker.job import Job

__all__ = ["ProgressLines"]

_NEWS_EVERY: Final = 1.0  # seconds; epochs may be shorter
_SIGN_OF_LIFE_EVERY: Final = 5.0  # seconds


class ProgressLines:
    """Decides when there is something to say of a job: an epoch or its evaluation, or that it goes on."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._said: tuple[int, int, str] | None = None
        self._when = 0.0

    def after(self, status: ClusterStatus, now: float) -> str | None:
        """Return the line to print; None for nothing new. ``now`` is in seconds, monotonic."""
        job = job_status(status, self._job.name)
        if job is None or job.progress is None:
            return None
        news = (len(job.progress.evaluations), job.progress.epoch, job.progress.phase)
        pause = _SIGN_OF_LIFE_EVERY if news == self._said else _NEWS_EVERY
        finished = job.progress.phase == "finished" and news != self._said
        if self._said is not None and not finished and now - self._when < pause:
            return None
        self._said, self._when = news, now
        return _line(job, job.progress)


def _line(job: JobStatus, progress: Progress) -> str:
    facts = [
        f"epoch {progress.epoch}/{progress.epochs}",
        f"{count(progress.chunks_done)}/{count(progress.chunks)} chunks",
        f"training loss {figure(progress.train_loss)}",
        *_held_out(progress),
        f"{count(progress.train_examples)} examples in {span(progress.seconds)}",
        *([f"stopped early: {printable(progress.stopped)}"] if progress.stopped else []),
        *map(sentence, felt(job.waits)[:1]),
    ]
    return ", ".join(facts)


def _held_out(progress: Progress) -> list[str]:
    if not progress.evaluations:
        return []
    return [f"held-out {printable(m.name)} {figure(m.value)}" for m in progress.evaluations[-1].means]
