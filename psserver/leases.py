"""The chunk ledger: which chunks of the data are to be done, leased, done. A state machine without I/O.

    train epoch 1 ─> [evaluate] ─> train epoch 2 ─> ... ─> finished

Rules:
- A chunk is leased to one worker at a time; a worker that goes away gives its leases back.
- Each chunk is counted once per epoch; a second report of it is refused.
- Before an evaluation all training chunks are done, and none begins until it is over: it sees exactly the
  parameters after that epoch. Between epochs without an evaluation nobody waits.
- The order of the chunks depends on (seed, epoch) alone.

The training data may be cut into parts (``Plan.partition``), each with an order of its own:
- A worker that joins takes a part without an owner: the one it had, if it comes back, or else the first. It
  keeps the part until it goes away. Nobody else is leased what is of a part with an owner.
- A part without an owner is everybody's: work must end. Who asks is given what is of the earliest epoch, and
  within an epoch of its own part first; so who has none of its own left in an epoch helps with the others.
- With ``hash`` a chunk is cut as well: it counts once for each part.

Where the data is not cut it is one part, which has no owner ever. Evaluation knows no parts.
"""

from __future__ import annotations

import random
from bisect import insort, insort_left
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from protocol.errors import BadRequest
from protocol.messages import Finish, Leased, Plan
from protocol.status import Evaluation, Mean, Progress

__all__ = ["Ledger"]

Kind = Literal["train", "evaluate"]
_KEPT: Final = 1000  # evaluations that the status tells of
_REMEMBERED: Final = 10_000  # workers that have gone, and would get their parts back
_MOST_CHUNKS: Final = 1_000_000  # of one epoch: they are all queued, and shuffled, at once
_MOST_PARTS: Final = 1 << 16
_MOST_EXAMPLES: Final = 1 << 48  # of one chunk, so that sums stay far below what a message can hold
_MOST_EPOCHS: Final = 1 << 32


class _Work(NamedTuple):
    """A chunk of the data, or what of it is of one part, to be done in one phase of one epoch."""

    kind: str
    epoch: int
    chunk: int
    part: int | None = None


class _Lease(NamedTuple):
    worker: int
    queue: deque[_Work]  # where the work is from, and goes when it is given back


@dataclass(slots=True, eq=False)
class _Part:
    """A part of the training data: its chunks, and what of its latest epoch is still to be leased."""

    number: int
    chunks: range
    rows: int | None  # the part whose rows these are; None: the chunks are whole
    epoch: int = 0
    queue: deque[_Work] = field(default_factory=deque)

    def begin_epoch(self, seed: int) -> None:
        """Queue all chunks once more."""
        self.epoch += 1
        order = _shuffled(self.chunks, seed, self.epoch)
        self.queue.extend(_Work("train", self.epoch, chunk, self.rows) for chunk in order)

    def next_epoch(self, last: int) -> int | None:
        """Return the epoch of what comes next; None if nothing does until epoch ``last`` is over."""
        if self.queue:
            return self.queue[0].epoch
        return self.epoch + 1 if self.chunks and self.epoch < last else None


@dataclass(slots=True)
class _Sums:
    """Weighted sums of what workers measured, by measure."""

    examples: int = 0
    totals: dict[str, float] = field(default_factory=dict)

    def add(self, finish: Finish) -> None:
        for measure in finish.measures:
            total = self.totals.get(measure.name, 0.0)
            self.totals[measure.name] = total + measure.value * finish.examples
        self.examples += finish.examples

    def means(self) -> tuple[Mean, ...]:
        if not self.examples:
            return ()
        return tuple(Mean(name, total / self.examples) for name, total in self.totals.items())


class Ledger:
    """The work of one job.

    Args:
        plan: chunks, epochs, seed, after how many epochs the held-out data is evaluated (0: never), and how
            the training data is cut into parts.
        now: time at which the work begins, in seconds.

    Raises:
        BadRequest: more chunks, parts or epochs than can be kept account of, or no such partition.
    """

    def __init__(self, plan: Plan, now: float) -> None:
        _check_at_most(_MOST_CHUNKS, "chunks", plan.chunks)
        _check_at_most(_MOST_EPOCHS, "epochs", plan.epochs)
        self.plan = plan
        self._began = now
        self._ended: float | None = None
        self._kind: Kind = "train"
        self._last = 0  # epoch with which this phase ends
        self._undone = 0  # of this phase
        self._orphans = _parts(plan)  # without an owner, in order
        self._owned: dict[int, _Part] = {}  # by worker
        self._formerly: dict[int, _Part] = {}  # by worker that has gone
        self._per_epoch = sum(len(part.chunks) for part in self._orphans)
        self._evaluation: deque[_Work] = deque()
        self._leased: dict[_Work, _Lease] = {}
        self._trained = 0  # training chunks done, of all epochs
        self._train_examples = 0
        self._train = _Sums()  # of about one epoch
        self._train_loss: float | None = None
        self._evaluate = _Sums()
        self._evaluations: deque[Evaluation] = deque(maxlen=_KEPT)
        self._begin_training()

    @property
    def finished(self) -> bool:
        """Whether all work is done."""
        return self._ended is not None

    def join(self, worker: int) -> None:
        """Give a worker that has joined a part without an owner, if there is one and it has none."""
        if self.plan.partition == "leases" or worker in self._owned or not self._orphans:
            return
        former = self._formerly.pop(worker, None)
        part = former if former in self._orphans else self._orphans[0]
        self._orphans.remove(part)
        self._owned[worker] = part

    def lease(self, worker: int) -> Leased:
        """Return the next piece of work for ``worker``, or ``wait``, or ``finished``."""
        if self.finished:
            return Leased("finished", self._epoch, 0)
        queue = self._evaluation if self._kind == "evaluate" else self._training_queue(worker)
        if not queue:
            return Leased("wait", self._epoch, 0)
        work = queue.popleft()
        self._leased[work] = _Lease(worker, queue)
        return Leased(*work)

    def finish(self, worker: int, finish: Finish, now: float) -> None:
        """Count a chunk as done.

        Raises:
            BadRequest: the worker holds no lease on it, or a chunk cannot have so many examples.
        """
        _check_at_most(_MOST_EXAMPLES, "examples", finish.examples)
        work = _Work(finish.kind, finish.epoch, finish.chunk, finish.part)
        lease = self._leased.get(work)
        if lease is None or lease.worker != worker:
            raise BadRequest("the worker holds no lease on this chunk", field="chunk", value=finish.chunk)
        del self._leased[work]
        if work.kind == "train":
            self._count_training(finish)
        else:
            self._evaluate.add(finish)
        self._undone -= 1
        if not self._undone:
            self._next_phase(now)

    def give_back(self, worker: int) -> None:
        """Put back what a worker that went away has leased, first of its epoch, and take its part from it."""
        mine = [(work, lease.queue) for work, lease in self._leased.items() if lease.worker == worker]
        for work, queue in reversed(mine):  # so that what was leased first is first again
            del self._leased[work]
            insort_left(queue, work, key=lambda one: one.epoch)
        part = self._owned.pop(worker, None)
        if part is not None:
            self._formerly[worker] = part
            if len(self._formerly) > _REMEMBERED:
                del self._formerly[next(iter(self._formerly))]  # the first that has gone
            insort(self._orphans, part, key=lambda orphan: orphan.number)

    def leases(self) -> Counter[int]:
        """Return how many chunks each worker is at work on."""
        return Counter(lease.worker for lease in self._leased.values())

    def progress(self, now: float) -> Progress:
        """Return how far the job has come."""
        return Progress(
            phase="finished" if self.finished else self._kind,
            epoch=self._epoch,
            epochs=self.plan.epochs,
            chunks=self._per_epoch * self.plan.epochs,
            chunks_done=self._trained,
            chunks_leased=len(self._leased),
            train_examples=self._train_examples,
            train_loss=self._train_loss,
            seconds=(now if self._ended is None else self._ended) - self._began,
            evaluations=tuple(self._evaluations),
        )

    @property
    def _epoch(self) -> int:
        """The epoch, from 1, that the number of chunks done makes; single parts may be ahead of it."""
        return min(self._last, self._trained // self._per_epoch + 1)

    def _training_queue(self, worker: int) -> deque[_Work] | None:
        """Return the queue that the worker's next chunk is in; None if there is nothing for it to do."""
        own = self._owned.get(worker)
        parts = self._orphans if own is None else [own, *self._orphans]
        epochs = ((part.next_epoch(self._last), part) for part in parts)
        ready = [(epoch, part) for epoch, part in epochs if epoch is not None]
        if not ready:
            return None
        _, part = min(ready, key=lambda one: one[0])  # of equals the first: the worker's own
        if not part.queue:
            part.begin_epoch(self.plan.seed)
        return part.queue

    def _begin_training(self) -> None:
        """Begin all the epochs up to the next evaluation, or to the end."""
        before, every = self._last, self.plan.evaluate_every
        self._kind = "train"
        self._last = min(before + every, self.plan.epochs) if every else self.plan.epochs
        self._undone = self._per_epoch * (self._last - before)

    def _begin_evaluation(self) -> None:
        self._kind = "evaluate"
        self._evaluate = _Sums()
        order = _shuffled(range(self.plan.chunks), self.plan.seed, self._last)
        self._evaluation.extend(_Work("evaluate", self._last, chunk) for chunk in order)
        self._undone = self.plan.chunks

    def _count_training(self, finish: Finish) -> None:
        self._trained += 1
        self._train_examples += finish.examples
        self._train.add(finish)
        means = {mean.name: mean.value for mean in self._train.means()}
        self._train_loss = means.get("loss", self._train_loss)
        if self._trained % self._per_epoch == 0:
            self._train = _Sums()

    def _next_phase(self, now: float) -> None:
        if self._kind == "train" and self.plan.evaluate_every:
            self._begin_evaluation()
            return
        if self._kind == "evaluate":
            sums = self._evaluate
            self._evaluations.append(Evaluation(self._last, sums.examples, sums.means()))
        if self._last < self.plan.epochs:
            self._begin_training()
        else:
            self._ended = now


def _parts(plan: Plan) -> list[_Part]:
    chunks, parts = plan.chunks, plan.parts
    if plan.partition == "leases":
        return [_Part(0, range(chunks), None)]
    _check_at_most(_MOST_PARTS, "parts", parts)
    numbers = range(parts)
    if plan.partition == "contiguous":
        return [_Part(i, range(i * chunks // parts, (i + 1) * chunks // parts), None) for i in numbers]
    if plan.partition == "round-robin":
        return [_Part(i, range(i, chunks, parts), None) for i in numbers]
    if plan.partition.startswith("hash:"):
        _check_at_most(_MOST_CHUNKS // parts, "chunks", chunks)
        return [_Part(i, range(chunks), i) for i in numbers]
    raise BadRequest(
        "expected leases, contiguous, round-robin or hash:COLUMN", field="partition", value=plan.partition
    )


def _shuffled(chunks: range, seed: int, epoch: int) -> list[int]:
    order = list(chunks)
    random.Random(f"{seed} {epoch}").shuffle(order)  # noqa: S311 (no secret)
    return order


def _check_at_most(most: int, field: str, value: int) -> None:
    if value > most:
        raise BadRequest(f"at most {most} are possible", field=field, value=value)
