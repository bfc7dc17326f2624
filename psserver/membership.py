"""Who works on a job: a state machine in the coordinator. Every change is a numbered epoch.

    waiting ──(enough have joined)──> training ──> left     said goodbye; no step from its clock on waits
       │                                       └─> lost     its connection ended without a goodbye
       └──> left     gone before the start, so that nothing of it can be missing

A worker that joins again under its name keeps its id and gets the next incarnation.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from protocol.errors import BadRequest, JobMismatch
from protocol.messages import Heartbeat, Member
from protocol.status import WorkerStatus

__all__ = ["Membership", "Worker"]

State = Literal["waiting", "training", "left", "lost"]
_SPEED_WINDOW: Final = 5  # heartbeats over which a worker's speed is taken


@dataclass(slots=True)
class Worker:
    """What the coordinator knows of one worker."""

    id: int
    name: str
    incarnation: int
    state: State
    until: int | None
    heard: float
    clock: int = 0
    examples: int = 0
    loss: float | None = None
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_SPEED_WINDOW))

    def speed(self) -> float:
        """Return examples per second over the last heartbeats."""
        if len(self.marks) < 2:
            return 0.0
        (begin, before), (end, after) = self.marks[0], self.marks[-1]
        return (after - before) / (end - begin) if end > begin else 0.0


class Membership:
    """The workers of one job.

    Args:
        needed: the job starts when this many have joined.
        fixed: nobody may join after the start (staleness 0).
    """

    def __init__(self, needed: int, *, fixed: bool) -> None:
        self.epoch = 0
        self.started = False
        self._needed = needed
        self._fixed = fixed
        self._workers: dict[str, Worker] = {}

    @property
    def needed(self) -> int:
        """Workers that the job starts with."""
        return self._needed

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))  # who reads metrics does so from another thread

    def join(self, name: str | None, *, finished_at: int | None, now: float) -> Worker:
        """Add a worker. ``finished_at`` is the job's last step if its work is done already.

        Raises:
            BadRequest: the name belongs to a worker that is there.
            JobMismatch: the job has started and its workers are fixed.
        """
        name = name or self._free_name()
        known = self._workers.get(name)
        if known is not None and known.state in ("waiting", "training"):
            raise BadRequest(
                "a worker of that name is at work; give each its own --name", field="name", value=name
            )
        if self._fixed and self.started and finished_at is None:
            raise JobMismatch(
                f"the job is synchronous and has started with its {self._needed} workers; "
                "say in the job how many there are (train.workers)",
                field="workers",
                value=self._needed,
            )
        worker = Worker(
            id=known.id if known else len(self._workers),
            name=name,
            incarnation=known.incarnation + 1 if known else 1,
            state="waiting",
            until=finished_at if self._fixed else None,
            heard=now,
        )
        self._workers[name] = worker
        self.epoch += 1
        waiting = [w for w in self if w.state == "waiting"]
        if self.started or len(waiting) >= self._needed:
            self.started = True
            for one in waiting:
                one.state = "training"
        return worker

    def _free_name(self) -> str:
        numbers = itertools.count(len(self._workers))
        return next(name for number in numbers if (name := f"worker-{number}") not in self._workers)

    def leave(self, worker: Worker, clock: int) -> None:
        """A worker says goodbye: no step from ``clock`` on waits for it."""
        worker.state = "left"
        worker.until = clock
        worker.clock = clock
        self.epoch += 1

    def lose(self, worker: Worker) -> None:
        """A worker is gone without a goodbye."""
        if worker.state == "waiting":
            self.leave(worker, 0)
            return
        worker.state = "lost"
        self.epoch += 1

    def heartbeat(self, worker: Worker, beat: Heartbeat, now: float) -> None:
        """Note how far a worker has come."""
        worker.heard = now
        worker.clock = beat.clock
        worker.examples = beat.examples
        worker.loss = beat.loss
        worker.marks.append((now, beat.examples))

    def members(self) -> tuple[Member, ...]:
        """Return the workers of the current epoch; with steps to count, also those that have left at one."""
        states = ("training", "left") if self._fixed else ("training",)
        return tuple(Member(w.id, w.incarnation, w.name, w.until) for w in self if w.state in states)

    def lost(self) -> tuple[str, ...]:
        """Return the names of the workers that are gone without a goodbye."""
        return tuple(w.name for w in self if w.state == "lost")

    def status(self, now: float) -> tuple[WorkerStatus, ...]:
        """Return all that ever joined."""
        return tuple(
            WorkerStatus(w.id, w.name, w.state, w.clock, w.examples, w.speed(), now - w.heard, w.loss)
            for w in self
        )
