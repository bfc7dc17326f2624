"""The chunk ledger: which chunks of the data are to be done, leased, done. A state machine without I/O.

    train epoch 1 ─> [evaluate] ─> train epoch 2 ─> ... ─> finished

Rules:
- A chunk is leased to one worker at a time; a worker that goes away gives its leases back.
- Each chunk is counted once per epoch; a second report of it is refused.
- Before an evaluation all training chunks are done, and none begins until it is over: it sees exactly the
  parameters after that epoch. Between epochs without an evaluation nobody waits.
- The order of the chunks depends on (seed, epoch) alone.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from protocol.errors import BadRequest
from protocol.messages import Finish, Leased, Plan
from protocol.status import Evaluation, Mean, Progress

__all__ = ["Ledger"]

Kind = Literal["train", "evaluate"]
_KEPT: Final = 1000  # evaluations that the status tells of
_MOST_CHUNKS: Final = 1_000_000  # of one epoch: they are all queued, and shuffled, at once
_MOST_EXAMPLES: Final = 1 << 48  # of one chunk, so that sums stay far below what a message can hold
_MOST_EPOCHS: Final = 1 << 32


class _Chunk(NamedTuple):
    """A chunk of the data, to be done in one phase of one epoch."""

    kind: str
    epoch: int
    chunk: int


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
        plan: chunks, epochs, seed, and after how many epochs the held-out data is evaluated (0: never).
        now: time at which the work begins, in seconds.

    Raises:
        BadRequest: more chunks or epochs than can be kept account of.
    """

    def __init__(self, plan: Plan, now: float) -> None:
        _check_at_most(_MOST_CHUNKS, "chunks", plan.chunks)
        _check_at_most(_MOST_EPOCHS, "epochs", plan.epochs)
        self.plan = plan
        self._began = now
        self._ended: float | None = None
        self._kind: Kind = "train"
        self._epoch = 0  # of the chunks that were queued last
        self._queue: deque[_Chunk] = deque()
        self._leased: dict[_Chunk, int] = {}  # -> worker
        self._trained = 0  # training chunks done, of all epochs
        self._train_examples = 0
        self._train = _Sums()  # of about one epoch
        self._train_loss: float | None = None
        self._evaluate = _Sums()
        self._evaluations: deque[Evaluation] = deque(maxlen=_KEPT)
        self._fill("train")

    @property
    def finished(self) -> bool:
        """Whether all work is done."""
        return self._ended is not None

    def lease(self, worker: int) -> Leased:
        """Return the next piece of work for ``worker``, or ``wait``, or ``finished``."""
        if self.finished:
            return Leased("finished", self._epoch, 0)
        if not self._queue and self._kind == "train" and not self._evaluation_due() and self._epochs_left():
            self._fill("train")
        if not self._queue:
            return Leased("wait", self._epoch, 0)
        work = self._queue.popleft()
        self._leased[work] = worker
        return Leased(work.kind, work.epoch, work.chunk)

    def finish(self, worker: int, finish: Finish, now: float) -> None:
        """Count a chunk as done.

        Raises:
            BadRequest: the worker holds no lease on it, or a chunk cannot have so many examples.
        """
        _check_at_most(_MOST_EXAMPLES, "examples", finish.examples)
        work = _Chunk(finish.kind, finish.epoch, finish.chunk)
        if self._leased.get(work) != worker:
            raise BadRequest("the worker holds no lease on this chunk", field="chunk", value=finish.chunk)
        del self._leased[work]
        if work.kind == "train":
            self._count_training(finish)
        else:
            self._evaluate.add(finish)
        if not self._queue and not self._leased:
            self._next_phase(now)

    def give_back(self, worker: int) -> None:
        """Put the leases of a worker that went away back, to be done first."""
        for work in [work for work, holder in self._leased.items() if holder == worker]:
            del self._leased[work]
            self._queue.appendleft(work)

    def progress(self, now: float) -> Progress:
        """Return how far the job has come."""
        return Progress(
            phase="finished" if self.finished else self._kind,
            epoch=self._epoch,
            epochs=self.plan.epochs,
            chunks=self.plan.chunks * self.plan.epochs,
            chunks_done=self._trained,
            chunks_leased=len(self._leased),
            train_examples=self._train_examples,
            train_loss=self._train_loss,
            seconds=(now if self._ended is None else self._ended) - self._began,
            evaluations=tuple(self._evaluations),
        )

    def _fill(self, kind: Kind) -> None:
        self._kind = kind
        if kind == "train":
            self._epoch += 1
        chunks = list(range(self.plan.chunks))
        random.Random(f"{self.plan.seed} {self._epoch}").shuffle(chunks)  # noqa: S311 (no secret)
        self._queue.extend(_Chunk(kind, self._epoch, chunk) for chunk in chunks)

    def _evaluation_due(self) -> bool:
        every = self.plan.evaluate_every
        return every > 0 and (self._epoch % every == 0 or not self._epochs_left())

    def _epochs_left(self) -> bool:
        return self._epoch < self.plan.epochs

    def _count_training(self, finish: Finish) -> None:
        self._trained += 1
        self._train_examples += finish.examples
        self._train.add(finish)
        means = {mean.name: mean.value for mean in self._train.means()}
        self._train_loss = means.get("loss", self._train_loss)
        if self._trained % self.plan.chunks == 0:
            self._train = _Sums()

    def _next_phase(self, now: float) -> None:
        if self._kind == "train" and self._evaluation_due():
            self._evaluate = _Sums()
            self._fill("evaluate")
            return
        if self._kind == "evaluate":
            sums = self._evaluate
            self._evaluations.append(Evaluation(self._epoch, sums.examples, sums.means()))
        if self._epochs_left():
            self._fill("train")
        else:
            self._ended = now


def _check_at_most(most: int, field: str, value: int) -> None:
    if value > most:
        raise BadRequest(f"at most {most} are possible", field=field, value=value)
