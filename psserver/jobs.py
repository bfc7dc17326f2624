"""One job's namespace on a shard: its blocks, its live workers, and what they have asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import Fenced, NotAMember, UnknownTensor
from protocol.messages import Done, Epoch
from psserver.call import Call
from psserver.consistency import Clocks
from psserver.sequences import Sequence as Numbered
from psserver.store.dense import DenseBlock

__all__ = ["Holding", "JobStore", "Reader", "Session", "fenced"]


_CURSORS: Final = 10_000
"""Chunks under way, also of workers that have gone, that are remembered."""


@dataclass(slots=True)
class Session:
    """What a connection has said about itself, and what it saw last."""

    job: str | None = None
    worker: int | None = None
    incarnation: int | None = None
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Reader:
    """A worker that waits until it may read ``names``."""

    call: Call
    session: Session
    worker: int
    names: Sequence[str]
    since: float


@dataclass(slots=True)
class Holding:
    """What waits for the cut of a checkpoint: all but what came before the markers of ``awaited`` workers."""

    awaited: set[int]
    held: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class JobStore:
    """One job's namespace on this shard."""

    name: str
    label: str  # the name in metrics, or "other"
    epoch: int = 0
    clocks: Clocks = field(default_factory=Clocks)
    blocks: dict[str, DenseBlock] = field(default_factory=dict)
    sequences: dict[int, Numbered] = field(default_factory=dict)  # by live worker
    readers: list[Reader] = field(default_factory=list)
    updates: int = 0
    dropped: int = 0
    longest_wait: float = 0.0
    cursors: dict[tuple[int, int], Done] = field(default_factory=dict)  # by worker and incarnation
    applying: int = 0  # pushes under way
    gone: bool = False  # another state has taken its place
    holding: Holding | None = None  # while a cut is prepared

    def block(self, name: str) -> DenseBlock:
        """Return this shard's block of a tensor, or raise ``UnknownTensor``."""
        try:
            return self.blocks[name]
        except KeyError:
            raise UnknownTensor(
                "this shard has no block of a tensor of that name; create it first", field="name", value=name
            ) from None

    @property
    def nbytes(self) -> int:
        """Bytes of parameters."""
        return sum(block.values.nbytes for block in tuple(self.blocks.values()))

    def follow(self, epoch: Epoch) -> set[int]:
        """Take a new epoch; return the workers whose incarnation is out. Each new one numbers from 1."""
        before = self.clocks.members
        self.epoch = epoch.number
        self.clocks.follow(epoch)
        after = self.clocks.members
        out = {
            worker
            for worker, member in before.items()
            if worker not in after or after[worker].incarnation != member.incarnation
        }
        for worker in out:
            del self.sequences[worker]
        for worker in after.keys() - self.sequences.keys():
            self.sequences[worker] = Numbered()
        if len(self.cursors) > _CURSORS:
            live = {(worker, member.incarnation) for worker, member in after.items()}
            self.cursors = {key: done for key, done in self.cursors.items() if key in live}
        return out

    def worker(self, session: Session) -> int:
        """Return the live worker whose session this is.

        Raises:
            NotAMember: the session only observes.
            Fenced: its incarnation is not, or no longer, one of the epoch.
        """
        worker = session.worker
        if worker is None:
            raise NotAMember(
                "this connection only observes; join the job to push", field="worker", value=worker
            )
        member = self.clocks.members.get(worker)
        if member is None or member.incarnation != session.incarnation:
            raise fenced(worker)
        return worker


def fenced(worker: int) -> Fenced:
    """Return the error for a worker's incarnation that is out."""
    return Fenced(
        "this incarnation of the worker is out: it was declared dead, was replaced, or has left, or the "
        "cluster went back to a checkpoint; join again",
        field="worker",
        value=worker,
    )
