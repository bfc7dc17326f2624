"""What is saved of the chunk ledger; see ``psserver.leases``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.fields import Name
from protocol.messages import Skipped, WorkKind
from psserver.saved_state import AnyNumber, SavedState

__all__ = [
    "LEDGER",
    "Former",
    "SavedEvaluation",
    "SavedLease",
    "SavedLedger",
    "SavedMean",
    "SavedPart",
    "SavedQueue",
    "SavedSkip",
    "SavedSum",
    "SavedSums",
]


@dataclass(frozen=True, slots=True)
class SavedQueue:
    """Chunks of one epoch, in the order in which they are leased."""

    epoch: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SavedPart:
    """What of a part is still to be leased, epoch after epoch."""

    epoch: int
    owner: int | None
    queues: tuple[SavedQueue, ...]


@dataclass(frozen=True, slots=True)
class SavedLease:
    """What a worker is at: a chunk of a part, or of the survey or the evaluation."""

    worker: int
    epoch: int
    chunk: int
    part: int | None
    number: int
    batches: int


@dataclass(frozen=True, slots=True)
class SavedSkip:
    """Mini-batches that are done of a chunk, or of the ``rows`` of one part in it, that was given back."""

    epoch: int
    chunk: int
    rows: int | None
    batches: int


@dataclass(frozen=True, slots=True)
class Former:
    """A worker that has gone, and the part that it had."""

    worker: int
    part: int


@dataclass(frozen=True, slots=True)
class SavedSum:
    """A measure's weighted sum, and the examples that it is of."""

    name: Name
    total: AnyNumber
    examples: int


@dataclass(frozen=True, slots=True)
class SavedSums:
    """Sums over examples."""

    examples: int
    totals: tuple[SavedSum, ...]


@dataclass(frozen=True, slots=True)
class SavedMean:
    """A measure's mean in an evaluation."""

    name: Name
    value: AnyNumber


@dataclass(frozen=True, slots=True)
class SavedEvaluation:
    """What an evaluation came to."""

    epoch: int
    examples: int
    means: tuple[SavedMean, ...]


@dataclass(frozen=True, slots=True)
class SavedLedger:
    """The ledger: ``seconds`` since the work began, ``took`` until it ended, chunks in the order of leasing.

    ``last`` is the epoch with which the phase ends; ``trained`` counts the training chunks of all epochs.
    ``shared`` are the chunks of a phase that knows no parts. ``best`` and ``in_vain`` are what is known for
    stopping early. ``skipped`` are the rows that were left out, as the status tells them.
    """

    seconds: float
    took: float | None
    phase: WorkKind
    last: int
    trained: int
    train_examples: int
    train_loss: AnyNumber | None
    train: SavedSums
    evaluate: SavedSums
    evaluations: tuple[SavedEvaluation, ...]
    shared: tuple[int, ...]
    parts: tuple[SavedPart, ...]
    leases: tuple[SavedLease, ...]
    skips: tuple[SavedSkip, ...]
    formerly: tuple[Former, ...]
    best: AnyNumber | None
    in_vain: int
    stopped: str
    skipped: tuple[Skipped, ...]


LEDGER: Final = SavedState(SavedLedger)
