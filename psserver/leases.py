"""The chunk ledger: which chunks of the data are to be done, leased, done. A state machine without I/O.

    [survey] ─> train epoch 1 ─> [evaluate] ─> train epoch 2 ─> ... ─> finished

Rules:
- A chunk is leased to one worker at a time; a worker that goes away gives its leases back.
- Each chunk is counted once per epoch; a second report of it is refused.
- Before an evaluation all training chunks are done, and none begins until it is over: it sees exactly the
  parameters after that epoch. Between epochs without an evaluation nobody waits.
- The order of the chunks depends on (seed, epoch) alone.
- In a survey each chunk is leased once, as of epoch 0; nothing is trained before all are done.
- Where it is known that the first mini-batches of a training chunk have been applied, whoever goes on with
  the chunk leaves them out. Where a chunk's statistics have been, whoever is given it has only to finish it.
- After an evaluation the job may be over early (``psserver.stopping``).
- Rows that were left out are counted when they are trained or evaluated on for the first time.
- The chunks of a stream are leased as those of one epoch that has no end: each is done when its source ends.

The training data may be cut into parts (``Plan.partition``), each with an order of its own:
- A worker that joins takes a part without an owner: the one it had, if it comes back, or else the first. It
  keeps the part until it goes away. Nobody else is leased what is of a part with an owner.
- A part without an owner is everybody's: work must end. Who asks is given what is of the earliest epoch, and
  within an epoch of its own part first; so who has none of its own left in an epoch helps with the others.
- With ``hash`` a chunk is cut as well: it counts once for each part.

Where the data is not cut it is one part, which has no owner ever. Survey and evaluation know no parts.
"""

from __future__ import annotations

import math
import random
from bisect import insort, insort_left
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

from protocol.errors import BadRequest
from protocol.measures import derived
from protocol.messages import MAX_REASONS, Finish, Leased, Plan, Skipped
from protocol.status import Evaluation, Mean, Progress
from psserver.saved_ledger import (
    LEDGER,
    Former,
    SavedEvaluation,
    SavedLease,
    SavedLedger,
    SavedMean,
    SavedPart,
    SavedQueue,
    SavedSkip,
    SavedSum,
    SavedSums,
)
from psserver.saved_state import as_text, check_once, check_saved
from psserver.stopping import EarlyStop

__all__ = ["Ledger"]

Kind = Literal["survey", "train", "evaluate"]
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
class _Lease:
    """Work that a worker is at. ``part`` is where it is from, and goes when it is given back.

    ``number`` is that of the worker's request, ``batches`` how many mini-batches of the chunk are done.
    """

    part: _Part | None  # None: the survey or the evaluation
    number: int
    batches: int


@dataclass(slots=True)
class _Sums:
    """Weighted sums of what workers measured, by measure, and the examples that they are of."""

    examples: int = 0
    totals: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, finish: Finish) -> None:
        for measure in finish.measures:
            total, examples = self.totals.get(measure.name, (0.0, 0))
            total += measure.value * finish.examples
            self.totals[measure.name] = (total, examples + finish.examples)
        self.examples += finish.examples

    def means(self) -> tuple[Mean, ...]:
        return tuple([Mean(name, total / of) for name, (total, of) in self.totals.items() if of])


class Ledger:
    """The work of one job.

    Args:
        plan: chunks, epochs, seed, after how many epochs the held-out data is evaluated (0: never), how
            the training data is cut into parts, and all else that it says.
        now: time at which the work begins, in seconds.

    Raises:
        BadRequest: more chunks, parts or epochs than can be kept account of, or no such partition; or a
            stream with what needs an end.
    """

    def __init__(self, plan: Plan, now: float) -> None:
        _check_at_most(_MOST_CHUNKS, "chunks", plan.chunks)
        _check_at_most(_MOST_EPOCHS, "epochs", plan.epochs)
        if plan.stream:
            _check_endless(plan)
        self.plan = plan
        self._began = now
        self._ended: float | None = None
        self._kind: Kind = "train"
        self._last = 0  # epoch with which this phase ends
        self._undone = 0  # of this phase
        self._parts = _parts(plan)
        self._orphans = list(self._parts)  # without an owner, in order
        self._owned: dict[int, _Part] = {}  # by worker
        self._formerly: dict[int, _Part] = {}  # by worker that has gone
        self._per_epoch = sum(len(part.chunks) for part in self._parts)
        self._shared: deque[_Work] = deque()  # of a phase that knows no parts
        self._leased: dict[int, dict[_Work, _Lease]] = {}  # by worker
        self._skips: dict[_Work, int] = {}  # mini-batches that are done of what was given back
        self._trained = 0  # training chunks done, of all epochs
        self._train_examples = 0
        self._train = _Sums()  # of about one epoch
        self._train_loss: float | None = None
        self._evaluate = _Sums()
        self._evaluations: deque[Evaluation] = deque(maxlen=_KEPT)
        self._early = EarlyStop(plan)
        self._stopped = ""
        self._skipped: Counter[str] = Counter()  # rows, by reason
        if plan.survey:
            self._begin_shared("survey")
        else:
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

    def lease(self, worker: int, number: int = 0) -> Leased:
        """Return the next piece of work for ``worker``, or ``wait``, or ``finished``.

        Args:
            worker: who asks.
            number: of its request, by which ``reached`` names what it gets.
        """
        if self.finished:
            return Leased("finished", self._epoch, 0)
        part = self._part_for(worker) if self._kind == "train" else None
        queue = self._queue(part)  # while there is training, the shared one is empty
        if not queue:
            return Leased("wait", self._epoch, 0)
        work = queue.popleft()
        skip = self._skips.pop(work, 0)
        self._leased.setdefault(worker, {})[work] = _Lease(part, number, skip)
        return Leased(*work, skip)

    def _queue(self, part: _Part | None) -> deque[_Work]:
        return self._shared if part is None else part.queue

    def reached(self, worker: int, number: int, batches: int) -> None:
        """Note that the updates of the first ``batches`` mini-batches of a training chunk have been applied.

        Of a survey's chunk, that its statistics have been; of a stream's, all that is before that offset.

        Args:
            worker: who has leased the chunk. If it has not, or no longer, nothing is noted.
            number: of the request that it got the chunk with.
            batches: counted from the chunk's beginning, also where this worker began later.
        """
        for work, lease in self._leased.get(worker, {}).items():
            if lease.number == number and work.kind != "evaluate":
                lease.batches = max(lease.batches, batches)

    def finish(self, worker: int, finish: Finish, now: float) -> None:
        """Count a chunk as done.

        Raises:
            BadRequest: the worker holds no lease on it, or a chunk cannot have so many examples.
        """
        for rows in (finish.examples, *(one.rows for one in finish.skipped)):
            _check_at_most(_MOST_EXAMPLES, "examples", rows)
        work = _Work(finish.kind, finish.epoch, finish.chunk, finish.part)
        leased = self._leased.get(worker, {})
        if work not in leased:
            raise BadRequest("the worker holds no lease on this chunk", field="chunk", value=finish.chunk)
        del leased[work]
        if not leased:
            del self._leased[worker]
        if work.kind == "train":
            self._count_training(finish)
        elif work.kind == "evaluate":
            self._evaluate.add(finish)
        if self._is_first_of_its_kind(work):
            self._count_skipped(finish)
        self._undone -= 1
        if not self._undone:
            self._next_phase(now)

    def _is_first_of_its_kind(self, work: _Work) -> bool:
        """Whether these rows are trained or evaluated on for the first time."""
        first = {"train": 1, "evaluate": min(self.plan.evaluate_every, self.plan.epochs)}
        return work.epoch == first.get(work.kind)

    def _count_skipped(self, finish: Finish) -> None:
        for one in finish.skipped:
            if one.reason in self._skipped or len(self._skipped) < MAX_REASONS:
                self._skipped[one.reason] += one.rows

    def _skipped_rows(self) -> tuple[Skipped, ...]:
        return tuple([Skipped(reason, rows) for reason, rows in sorted(self._skipped.items())])

    def give_back(self, worker: int) -> None:
        """Put back what a worker that went away has leased, first of its epoch, and take its part from it."""
        mine = self._leased.pop(worker, {})
        for work, lease in reversed(mine.items()):  # so that what was leased first is first again
            if lease.batches:
                self._skips[work] = lease.batches
            insort_left(self._queue(lease.part), work, key=lambda one: one.epoch)
        part = self._owned.pop(worker, None)
        if part is not None:
            self._formerly[worker] = part
            if len(self._formerly) > _REMEMBERED:
                del self._formerly[next(iter(self._formerly))]  # the first that has gone
            insort(self._orphans, part, key=lambda orphan: orphan.number)

    def forget_workers(self) -> None:
        """Have all workers be gone at once."""
        for worker in sorted(self.holders()):
            self.give_back(worker)

    def holders(self) -> set[int]:
        """Return the workers that have leased something, or own a part."""
        return {*self._leased, *self._owned}

    def leases(self) -> Counter[int]:
        """Return how many chunks each worker is at work on."""
        return Counter({worker: len(leased) for worker, leased in self._leased.items()})

    def progress(self, now: float) -> Progress:
        """Return how far the job has come."""
        return Progress(
            phase="finished" if self.finished else self._kind,
            epoch=self._epoch,
            epochs=self.plan.epochs,
            chunks=self._per_epoch * self.plan.epochs,
            chunks_done=self._trained,
            chunks_leased=len(self._all_leased()),
            train_examples=self._train_examples,
            train_loss=self._train_loss,
            seconds=(now if self._ended is None else self._ended) - self._began,
            evaluations=tuple(self._evaluations),
            stopped=self._stopped,
            skipped=self._skipped_rows(),
        )

    @property
    def _epoch(self) -> int:
        """The epoch, from 1, that the number of chunks done makes, or 0; single parts may be ahead of it."""
        return min(self._last, self._trained // self._per_epoch + 1)

    def _part_for(self, worker: int) -> _Part | None:
        """Return the part whose queue has the worker's next chunk; None if there is nothing for it to do."""
        own = self._owned.get(worker)
        parts = self._orphans if own is None else [own, *self._orphans]
        epochs = ((part.next_epoch(self._last), part) for part in parts)
        ready = [(epoch, part) for epoch, part in epochs if epoch is not None]
        if not ready:
            return None
        _, part = min(ready, key=lambda one: one[0])  # of equals the first: the worker's own
        if not part.queue:
            part.begin_epoch(self.plan.seed)
        return part

    def _begin_training(self) -> None:
        """Begin all the epochs up to the next evaluation, or to the end."""
        before, every = self._last, self.plan.evaluate_every
        self._kind = "train"
        self._last = min(before + every, self.plan.epochs) if every else self.plan.epochs
        self._undone = self._per_epoch * (self._last - before)

    def _begin_shared(self, kind: Kind) -> None:
        """Begin a phase that knows no parts."""
        self._kind = kind
        order = _shuffled(range(self.plan.chunks), self.plan.seed, self._last)
        self._shared.extend(_Work(kind, self._last, chunk) for chunk in order)
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
            self._evaluate = _Sums()
            self._begin_shared("evaluate")
            return
        if self._kind == "evaluate":
            self._end_evaluation()
        if self._last < self.plan.epochs and not self._stopped:
            self._begin_training()
        else:
            self._ended = now

    def _end_evaluation(self) -> None:
        sums = self._evaluate
        means = derived({mean.name: mean.value for mean in sums.means()})
        shown = tuple([Mean(name, value) for name, value in means.items()])
        self._evaluations.append(Evaluation(self._last, sums.examples, shown))
        enough = self._early.look(means)
        if self._last < self.plan.epochs:
            self._stopped = enough

    # --- to a disk and back

    def state(self, now: float) -> dict[str, Any]:
        """Return all of it as plain data, as of ``now``."""
        owners = {part.number: worker for worker, part in self._owned.items()}
        return LEDGER.plain(
            SavedLedger(
                seconds=now - self._began,
                took=None if self._ended is None else self._ended - self._began,
                phase=self._kind,
                last=self._last,
                trained=self._trained,
                train_examples=self._train_examples,
                train_loss=None if self._train_loss is None else as_text(self._train_loss),
                train=_saved_sums(self._train),
                evaluate=_saved_sums(self._evaluate),
                evaluations=tuple([_saved_evaluation(one) for one in self._evaluations]),
                shared=tuple([work.chunk for work in self._shared]),
                parts=tuple([_saved_part(part, owners.get(part.number)) for part in self._parts]),
                leases=tuple([_saved_lease(*one) for one in self._all_leased()]),
                skips=tuple([SavedSkip(*work[1:], batches) for work, batches in self._skips.items()]),
                formerly=tuple([Former(worker, part.number) for worker, part in self._formerly.items()]),
                best=None if self._early.best is None else as_text(self._early.best),
                in_vain=self._early.in_vain,
                stopped=self._stopped,
                skipped=self._skipped_rows(),
            )
        )

    def _all_leased(self) -> list[tuple[int, _Work, _Lease]]:
        return [(who, work, lease) for who, held in self._leased.items() for work, lease in held.items()]

    @classmethod
    def restored(cls, plan: Plan, state: object, now: float) -> Ledger:
        """Return the ledger of ``plan`` whose ``state`` this is.

        Raises:
            BadRequest: it is not whole, or not of that plan.
        """
        saved = LEDGER.checked(state)
        check_saved(0 <= saved.seconds < math.inf, "a duration", "seconds", saved.seconds)
        found = cls(plan, now - saved.seconds)
        found._restore_phase(saved)
        found._restore_parts(saved)
        found._restore_owners(saved)
        found._restore_leases(saved)
        found._restore_measures(saved)
        found._check_whole()
        return found

    def _restore_phase(self, saved: SavedLedger) -> None:
        every, epochs = self.plan.evaluate_every, self.plan.epochs
        ends = saved.last == epochs or (every > 0 and saved.last % every == 0)
        surveys = saved.phase == "survey"
        check_saved(self.plan.survey or not surveys, "no survey", "phase", saved.phase)
        sound = saved.last == 0 if surveys else 0 < saved.last <= epochs and ends
        check_saved(sound, "the end of a phase", "last", saved.last)
        check_saved(saved.took is None or 0 <= saved.took < math.inf, "a duration", "took", saved.took)
        self._kind = saved.phase  # type: ignore[assignment]  # WorkKind
        self._last, self._trained = saved.last, saved.trained
        self._ended = None if saved.took is None else self._began + saved.took
        self._shared.clear()
        self._shared.extend(_Work(saved.phase, saved.last, chunk) for chunk in saved.shared)
        self._stopped = saved.stopped
        check_once([one.reason for one in saved.skipped], "skipped")
        self._skipped = Counter({one.reason: one.rows for one in saved.skipped})
        self._early.best = None if saved.best is None else float(saved.best)
        self._early.in_vain = saved.in_vain

    def _restore_parts(self, saved: SavedLedger) -> None:
        count = len(self._parts)
        check_saved(len(saved.parts) == count, f"{count} of them", "parts", len(saved.parts))
        for part, one in zip(self._parts, saved.parts, strict=True):
            check_saved(one.epoch <= self._last, "no epoch beyond the phase", "epoch", one.epoch)
            part.epoch = one.epoch
            epochs = [0, *(queue.epoch for queue in one.queues)]
            check_saved(epochs == sorted({*epochs}), "one epoch after the other", "queues", epochs)
            check_saved(epochs[-1] <= one.epoch, "no epoch that has not begun", "queues", epochs)
            for queue in one.queues:
                part.queue.extend([_Work("train", queue.epoch, chunk, part.rows) for chunk in queue.chunks])

    def _restore_owners(self, saved: SavedLedger) -> None:
        owners = [one.owner for one in saved.parts if one.owner is not None]
        check_once(owners, "owner")
        check_saved(not owners or self.plan.partition != "leases", "no owner", "owner", owners)
        check_once([one.worker for one in saved.formerly], "formerly")
        self._owned = {
            one.owner: part
            for one, part in zip(saved.parts, self._parts, strict=True)
            if one.owner is not None
        }
        self._orphans = [
            part for one, part in zip(saved.parts, self._parts, strict=True) if one.owner is None
        ]
        self._formerly = {one.worker: self._part(one.part) for one in saved.formerly}

    def _part(self, number: int) -> _Part:
        check_saved(number < len(self._parts), f"less than {len(self._parts)}", "part", number)
        return self._parts[number]

    def _restore_leases(self, saved: SavedLedger) -> None:
        for one in saved.leases:
            part = None if one.part is None else self._part(one.part)
            kind, rows = (self._kind, None) if part is None else ("train", part.rows)
            check_saved(part is not None or kind != "train", "the part that it is of", "part", one.part)
            work = _Work(kind, one.epoch, one.chunk, rows)
            begun = one.epoch == self._last if part is None else 0 < one.epoch <= part.epoch
            check_saved(begun, "an epoch that has begun", "epoch", one.epoch)
            self._leased.setdefault(one.worker, {})[work] = _Lease(part, one.number, one.batches)
        leased = [work for _, work, _ in self._all_leased()]
        check_saved(len(leased) == len(saved.leases), "each lease once", "leases", len(saved.leases))
        kind = "survey" if self._kind == "survey" else "train"
        self._skips = {_Work(kind, one.epoch, one.chunk, one.rows): one.batches for one in saved.skips}

    def _restore_measures(self, saved: SavedLedger) -> None:
        self._train_examples = saved.train_examples
        self._train_loss = None if saved.train_loss is None else float(saved.train_loss)
        self._train, self._evaluate = _sums(saved.train), _sums(saved.evaluate)
        self._evaluations.extend([_evaluation(one) for one in saved.evaluations])

    def _check_whole(self) -> None:
        """Refuse accounts in which a chunk is missing, comes twice, or is none of where it is."""
        queued = [(work, part) for part in self._parts for work in part.queue]
        shared = [(work, None) for work in self._shared]
        leased = [(work, lease.part) for _, work, lease in self._all_leased()]
        everything = range(self.plan.chunks)
        for work, part in (*queued, *shared, *leased):
            chunks = everything if part is None else part.chunks
            check_saved(work.chunk in chunks, "one of its part", "chunk", work.chunk)
        works = {work for work, _ in (*queued, *shared)}
        check_saved(self._skips.keys() <= works, "chunks that are queued", "skips", [*self._skips])
        works.update(work for work, _ in leased)
        count = len(queued) + len(shared) + len(leased)
        check_saved(len(works) == count, "each chunk once", "chunks", count)
        self._check_undone(len(shared) + sum(part is None for _, part in leased), count)

    def _check_undone(self, shared: int, pending: int) -> None:
        """Count what is undone in this phase: so many of no part, of all that is pending, and the rest."""
        every, epochs = self.plan.evaluate_every, self.plan.epochs
        unbegun = sum((self._last - part.epoch) * len(part.chunks) for part in self._parts)
        training = unbegun + pending - shared
        total = self._per_epoch * self._last
        check_saved(self._trained + training == total, f"{total - training}", "trained", self._trained)
        trains = self._kind == "train"
        check_saved(not (shared if trains else training), "one phase", "phase", self._kind)
        self._undone = training if trains else shared
        final = self._last == epochs or bool(self._stopped)
        last = final and self._kind == ("evaluate" if every else "train")
        check_saved(
            self.finished == (not self._undone), "that it ends with the last chunk", "took", self._undone
        )
        check_saved(last or not self.finished, "the last phase", "took", self._last)
        check_saved(self.finished or not self._stopped, "that it has ended", "stopped", self._stopped)


def _saved_part(part: _Part, owner: int | None) -> SavedPart:
    by_epoch = groupby(part.queue, key=attrgetter("epoch"))
    queues = [SavedQueue(epoch, tuple([work.chunk for work in works])) for epoch, works in by_epoch]
    return SavedPart(part.epoch, owner, tuple(queues))


def _saved_lease(worker: int, work: _Work, lease: _Lease) -> SavedLease:
    part = None if lease.part is None else lease.part.number
    return SavedLease(worker, work.epoch, work.chunk, part, lease.number, lease.batches)


def _saved_sums(sums: _Sums) -> SavedSums:
    totals = [SavedSum(name, as_text(total), examples) for name, (total, examples) in sums.totals.items()]
    return SavedSums(sums.examples, tuple(totals))


def _sums(saved: SavedSums) -> _Sums:
    return _Sums(saved.examples, {one.name: (float(one.total), one.examples) for one in saved.totals})


def _saved_evaluation(evaluation: Evaluation) -> SavedEvaluation:
    means = tuple([SavedMean(mean.name, as_text(mean.value)) for mean in evaluation.means])
    return SavedEvaluation(evaluation.epoch, evaluation.examples, means)


def _evaluation(saved: SavedEvaluation) -> Evaluation:
    means = tuple([Mean(mean.name, float(mean.value)) for mean in saved.means])
    return Evaluation(saved.epoch, saved.examples, means)


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


def _check_endless(plan: Plan) -> None:
    """Refuse for a stream, which has no end, what comes after one."""
    if plan.epochs != 1:
        raise BadRequest("a stream is one epoch", field="epochs", value=plan.epochs)
    if plan.evaluate_every:
        raise BadRequest("a stream has no held-out data", field="evaluate_every", value=plan.evaluate_every)
    if plan.survey:
        raise BadRequest("a stream has no end to survey it to", field="survey", value=plan.survey)


def _check_at_most(most: int, field: str, value: int) -> None:
    if value > most:
        raise BadRequest(f"at most {most} are possible", field=field, value=value)
