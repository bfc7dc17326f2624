"""Who works on a job: a state machine in the coordinator. Every change of who is live is a numbered epoch.

    join ─> waiting ──(enough have joined)──> training <──> suspect ──> dead    silent, or did not come back
                │                                 └───────────┴───────> left    said goodbye
                └──> left                                               gone before the start

Rules:
- Live are those that are training or suspect. Only they are waited for, and only their updates are taken.
- A worker is suspect when its heartbeat is overdue or its connection has ended; a heartbeat, on whatever
  connection, makes it training again. Suspicion changes nothing but what the status says.
- It is dead when it has been silent until the failure detector's deadline, when it has not come back within
  ``return_within`` of its connection's end, or when it has kept others waiting for ``hung_after`` although
  its heartbeats go on.
- A worker that has yet to be told who it is cannot send heartbeats, and is not judged by them.
- Who is dead or has left stays so. A worker that joins again under its name keeps its id and gets the next
  incarnation, which fences the former.
- After a restart everybody is as it was, and is given as much time to be heard of as if it had just been.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

from protocol.errors import BadRequest
from protocol.fields import Name, Positive
from protocol.messages import Heartbeat, Member
from protocol.status import WorkerStatus
from psserver.failure import FailureDetector
from psserver.incarnations import fenced
from psserver.saved_state import AnyNumber, SavedState, as_text, check_once, check_saved
from psserver.sequences import SavedSequence, Sequence

__all__ = ["STATES", "Death", "FailureSettings", "Membership", "Worker"]

State = Literal["waiting", "training", "suspect", "left", "dead"]

STATES: Final = get_args(State)

LIVE: Final = ("training", "suspect")
_PRESENT: Final = ("waiting", *LIVE)

_SPEED_WINDOW: Final = 5  # heartbeats over which a worker's speed is taken
_GONE_KEPT: Final = 1000  # dead and left workers that the status still tells of


@dataclass(frozen=True, slots=True)
class FailureSettings:
    """When workers and servers count as dead. All in seconds.

    ``heartbeat`` is the interval; ``dead_after`` the longest silence, ``hung_after`` the longest that a
    worker may keep others waiting.
    """

    heartbeat: float = 1.0
    dead_after: float = 5.0
    hung_after: float = 60.0

    @property
    def return_within(self) -> float:
        """How long a worker whose connection has ended may take to come back."""
        return min(2 * self.heartbeat, self.dead_after)


@dataclass(slots=True)
class Worker:
    """What the coordinator knows of one worker.

    ``clock`` is the furthest that it was seen at; ``begins`` the step that this incarnation begins
    at, once it has been let in; ``told`` whether all shards know it, and it was told so.
    """

    id: int
    name: str
    incarnation: int
    token: str
    state: State
    detector: FailureDetector
    begins: int | None = None
    told: bool = False
    clock: int = 0
    examples: int = 0
    loss: float | None = None
    skipped: int = 0
    return_by: float = math.inf
    moved: float = 0.0  # when it last got on with its work
    held_up: float = math.inf  # since when others wait for it
    sequence: Sequence = field(default_factory=Sequence)
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_SPEED_WINDOW))

    @property
    def live(self) -> bool:
        """Whether it is waited for, and its updates taken."""
        return self.state in LIVE

    @property
    def present(self) -> bool:
        """Whether it is live, or waits for the job to start."""
        return self.state in _PRESENT

    def speed(self) -> float:
        """Return examples per second over the last heartbeats."""
        if len(self.marks) < 2:
            return 0.0
        (begin, before), (end, after) = self.marks[0], self.marks[-1]
        return (after - before) / (end - begin) if end > begin else 0.0


def _check_state(value: object, field: str) -> None:
    check_saved(value in STATES, f"one of {', '.join(STATES)}", field, value)


@dataclass(frozen=True, slots=True)
class _SavedWorker:
    """What is saved of a worker; its numbered requests only if it is there."""

    id: int
    name: Name
    incarnation: Positive
    token: Name
    state: Annotated[str, _check_state]
    begins: int | None
    told: bool
    clock: int
    examples: int
    loss: AnyNumber | None
    sequence: SavedSequence | None


@dataclass(frozen=True, slots=True)
class _Saved:
    """What is saved; ``gone`` are the ids of those who are out, in the order in which they went."""

    epoch: int
    started: bool
    needed: Positive
    first_incarnation: Positive
    next_id: int
    workers: tuple[_SavedWorker, ...]
    gone: tuple[int, ...]


_SAVED: Final = SavedState(_Saved)


class Death(NamedTuple):
    """A worker that has just been declared dead, and why."""

    worker: Worker
    reason: str


class Membership:
    """The workers of one job.

    Args:
        needed: the job starts when this many have joined.
        settings: when silence is death.
        first_incarnation: what a name that is new begins with.

    Attributes:
        epoch: the number of the latest change.
        deaths: how often a worker was declared dead, since this process knows the job.
        started: whether enough have joined.
        needed: workers that the job starts with.
        first_incarnation: no worker that joins gets a lower one.
    """

    def __init__(self, needed: int, settings: FailureSettings, first_incarnation: int = 1) -> None:
        self.epoch = self.deaths = 0
        self.started = False
        self.needed = needed
        self.first_incarnation = first_incarnation
        self._settings = settings
        self._workers: dict[str, Worker] = {}
        self._by_id: dict[int, Worker] = {}
        self._next_id = 0
        self._gone: dict[int, Worker] = {}  # dead or left, by id; who went first is first

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))  # who reads metrics does so from another thread

    @property
    def issued(self) -> int:
        """The highest incarnation that may have been issued."""
        return max(self.first_incarnation - 1, *(one.incarnation for one in self._workers.values()), 0)

    def live(self) -> list[Worker]:
        """Return the workers of the current epoch."""
        return [worker for worker in self._workers.values() if worker.live]

    def waiting(self) -> list[Worker]:
        """Return the workers that wait for the job to start."""
        return [worker for worker in self._workers.values() if worker.state == "waiting"]

    # --- who comes

    def find(self, token: str) -> Worker | None:
        """Return the worker that has joined with this token and is there, if any: it asks again."""
        return next((w for w in self._workers.values() if w.token == token and w.present), None)

    def named(self, name: str | None) -> Worker | None:
        """Return the worker of this name, if it is there."""
        found = self._workers.get(name or "")
        return found if found is not None and found.present else None

    def get(self, worker: int, incarnation: int | None) -> Worker:
        """Return the worker that is there under this identity.

        Raises:
            Fenced: it is out.
        """
        found = self._by_id.get(worker)
        if found is None or found.incarnation != incarnation or not found.present:
            raise fenced(worker)
        return found

    def join(self, name: str | None, token: str, now: float) -> Worker:
        """Add a worker.

        Raises:
            BadRequest: the name belongs to a worker that is there.
        """
        name = name or self._free_name()
        known = self._workers.get(name)
        if known is not None and known.present:
            raise BadRequest(
                "a worker of that name is at work; give each its own --name", field="name", value=name
            )
        worker = Worker(
            id=known.id if known else self._next_id,
            name=name,
            incarnation=max(self.first_incarnation, known.incarnation + 1 if known else 1),
            token=token,
            state="waiting",
            detector=self._detector(now),
            moved=now,
        )
        self._next_id = max(self._next_id, worker.id + 1)
        self._gone.pop(worker.id, None)
        self._workers.pop(name, None)
        self._workers[name] = self._by_id[worker.id] = worker
        self.epoch += 1
        waiting = self.waiting()
        if self.started or len(waiting) >= self.needed:
            self.started = True
            for one in waiting:
                one.state = "training"
        return worker

    def _detector(self, now: float, *, returns: bool = False) -> FailureDetector:
        return FailureDetector(self._settings.heartbeat, self._settings.dead_after, now, returns=returns)

    def tell(self, worker: Worker, now: float) -> None:
        """A worker is told who it is: from now on its heart has to beat."""
        worker.told = True
        worker.detector = self._detector(now)
        worker.moved = now

    def _free_name(self) -> str:
        numbers = itertools.count(len(self._workers))
        return next(name for number in numbers if (name := f"worker-{number}") not in self._workers)

    # --- who goes

    def leave(self, worker: Worker, clock: int) -> None:
        """A worker says goodbye."""
        worker.clock = clock
        self._out(worker, "left")

    def replaced(self, worker: Worker) -> None:
        """Another process has come under a worker's name."""
        self._died(worker)

    def _died(self, worker: Worker) -> None:
        self.deaths += 1
        self._out(worker, "dead")

    def _out(self, worker: Worker, state: State) -> None:
        worker.state = state
        self.epoch += 1
        self._gone[worker.id] = worker
        if len(self._gone) > _GONE_KEPT:
            oldest = self._gone.pop(next(iter(self._gone)))
            self.first_incarnation = max(self.first_incarnation, oldest.incarnation + 1)
            del self._workers[oldest.name], self._by_id[oldest.id]

    def all_out(self) -> None:
        """Have everybody be out, and the epoch a new one."""
        self.epoch += 1
        for worker in tuple(self._workers.values()):
            if worker.present:
                self._out(worker, "left" if worker.state == "waiting" else "dead")

    def skip_incarnations(self, count: int) -> None:
        """Leave out so many incarnations and epochs: they may have been used, and forgotten."""
        known = (worker.incarnation for worker in self._workers.values())
        self.first_incarnation = max(self.first_incarnation, *known, 0) + count
        self.epoch += count

    def disconnected(self, worker: Worker, now: float) -> None:
        """A worker's connection has ended: it is to come back soon."""
        if worker.state == "training":
            worker.state = "suspect"
        worker.return_by = min(worker.return_by, now + self._settings.return_within)

    def returned(self, worker: Worker, now: float) -> None:
        """A worker was heard of, on whatever connection."""
        worker.return_by = math.inf
        worker.detector.beat(now)
        if worker.state == "suspect":
            worker.state = "training"

    def heartbeat(self, worker: Worker, beat: Heartbeat, now: float) -> None:
        """Note how far a worker has come."""
        self.returned(worker, now)
        self.reached(worker, beat.clock, now)
        if beat.examples != worker.examples:
            worker.moved = now
        worker.examples = beat.examples
        worker.loss = beat.loss
        worker.skipped = beat.skipped
        worker.marks.append((now, beat.examples))

    def reached(self, worker: Worker, clock: int, now: float) -> None:
        """Note that a worker is in this step."""
        if clock > worker.clock:
            worker.clock, worker.moved = clock, now

    def excuse(self, seconds: float, now: float) -> None:
        """Do not hold ``seconds`` of silence against anybody: it was the coordinator that was asleep."""
        for worker in self._workers.values():
            worker.detector.excuse(seconds, now)
            worker.return_by += seconds
            worker.moved = min(worker.moved + seconds, now)

    def bury(self, now: float, waited_for: Iterable[int]) -> list[Death]:
        """Suspect and declare dead whoever has to be by now; ``waited_for`` keep others waiting."""
        deaths = []
        waited = set(waited_for)
        for worker in tuple(self._workers.values()):
            if not worker.present:
                continue
            worker.held_up = min(worker.held_up, now) if worker.id in waited else math.inf
            reason = self._verdict(worker, now)
            if reason is not None:
                if worker.state == "waiting":
                    self._out(worker, "left")
                else:
                    self._died(worker)
                deaths.append(Death(worker, reason))
            elif worker.told and worker.state == "training" and now >= worker.detector.suspect_at:
                worker.state = "suspect"
        return deaths

    def _verdict(self, worker: Worker, now: float) -> str | None:
        settings = self._settings
        if now >= worker.return_by:
            return f"its connection ended, and it did not come back within {settings.return_within:g} s"
        if not worker.told:
            return None
        if now >= worker.detector.dead_at:
            silent = now - worker.detector.heard
            return f"it was silent for {silent:.1f} s (--dead-after {settings.dead_after:g}s at most)"
        if now - max(worker.moved, worker.held_up) > settings.hung_after:
            return f"it kept others waiting for --hung-after {settings.hung_after:g}s, though its heart beats"
        return None

    # --- to a disk and back

    def state(self) -> dict[str, Any]:
        """Return all of it, but for times, as plain data."""
        workers = tuple([_saved(worker) for worker in self._workers.values()])
        numbers = (self.epoch, self.started, self.needed, self.first_incarnation, self._next_id)
        return _SAVED.plain(_Saved(*numbers, workers, tuple(self._gone)))

    @classmethod
    def restored(cls, state: object, settings: FailureSettings, now: float) -> Membership:
        """Return the workers whose ``state`` this is; ``now`` they have been heard of.

        Raises:
            BadRequest: it is not whole.
        """
        saved = _SAVED.checked(state)
        found = cls(saved.needed, settings, saved.first_incarnation)
        found.epoch, found.started, found._next_id = saved.epoch, saved.started, saved.next_id
        check_once([one.name for one in saved.workers], "name")
        check_once([one.id for one in saved.workers], "id")
        for one in saved.workers:
            check_saved(one.id < saved.next_id, "a higher one", "next_id", saved.next_id)
            worker = found._restored_worker(one, now)
            found._workers[worker.name] = found._by_id[worker.id] = worker
        out = [one.id for one in saved.workers if one.state not in _PRESENT]
        check_saved(sorted(saved.gone) == sorted(out), "all who are dead or left, once", "gone", saved.gone)
        found._gone = {number: found._by_id[number] for number in saved.gone}
        return found

    def _restored_worker(self, saved: _SavedWorker, now: float) -> Worker:
        state: State = saved.state  # type: ignore[assignment]  # checked
        return Worker(
            id=saved.id,
            name=saved.name,
            incarnation=saved.incarnation,
            token=saved.token,
            state=state,
            detector=self._detector(now, returns=True),
            begins=saved.begins,
            told=saved.told,
            clock=saved.clock,
            examples=saved.examples,
            loss=None if saved.loss is None else float(saved.loss),
            # Who has not been told has no heartbeat to be missed by; it has to ask again.
            return_by=math.inf if saved.told else now + self._settings.dead_after,
            moved=now,
            sequence=Sequence() if saved.sequence is None else Sequence.from_saved(saved.sequence),
        )

    # --- what others are told

    def members(self) -> tuple[Member, ...]:
        """Return the workers of the current epoch."""
        return tuple(Member(w.id, w.incarnation, w.name, w.begins or 0) for w in self.live())

    def status(self, now: float, leases: dict[int, int], furthest: int) -> tuple[WorkerStatus, ...]:
        """Return all that ever joined, save those long gone.

        Args:
            now: the time.
            leases: chunks that each worker is at work on.
            furthest: the furthest worker's clock.
        """
        return tuple(
            WorkerStatus(
                worker=w.id,
                name=w.name,
                incarnation=w.incarnation,
                state=w.state,
                clock=w.clock,
                lag=max(0, furthest - w.clock) if w.live else 0,
                examples=w.examples,
                examples_per_second=w.speed() if w.live else 0.0,
                heartbeat_age=max(0.0, now - w.detector.heard),
                leases=leases.get(w.id, 0),
                loss=w.loss,
                skipped=w.skipped,
            )
            for w in self
        )


def _saved(worker: Worker) -> _SavedWorker:
    return _SavedWorker(
        worker.id,
        worker.name,
        worker.incarnation,
        worker.token,
        worker.state,
        worker.begins,
        worker.told,
        worker.clock,
        worker.examples,
        None if worker.loss is None else as_text(worker.loss),
        worker.sequence.saved() if worker.present else None,
    )
