"""One job's namespace on a shard: its blocks, its live workers, and what they have asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from protocol.auth import MAY, Examiner, Role
from protocol.errors import BadTensor, NotAMember, PSError, UnknownTensor
from protocol.messages import Done, Epoch, Request
from psserver.arriving import Asked, Block, KnownKeys
from psserver.backups import Backups
from psserver.call import Call
from psserver.consistency import Clocks
from psserver.incarnations import fenced, job_dropped
from psserver.sequences import Sequence as Numbered
from psserver.store.dense import DenseBlock
from psserver.store.sparse import SparseBlock

__all__ = ["Holding", "JobStore", "Reader", "Session"]


_CURSORS: Final = 10_000
"""Workers, also those that have gone, whose chunks under way are remembered."""

_LEASES: Final = 256
"""Chunks of a worker that are remembered: those that it has pushed of last. It is at less at a time."""


@dataclass(slots=True)
class Session:
    """What a connection has said about itself, what it may ask for, and which lists of keys it has sent.

    ``examiner`` is there between its ``auth`` and its ``hello``.
    """

    job: str | None = None
    worker: int | None = None
    incarnation: int | None = None
    role: Role = Role.WORKER
    examiner: Examiner | None = None
    keys: KnownKeys = field(default_factory=KnownKeys)
    may: frozenset[type[Request]] = MAY[Role.WORKER]

    def admit(self, role: Role) -> None:
        """Let the peer ask for what this role may ask for."""
        self.role, self.may, self.examiner = role, MAY[role], None


@dataclass(frozen=True, slots=True)
class Reader:
    """A worker that waits until it may read what it has ``asked`` for."""

    call: Call
    session: Session
    worker: int
    asked: Asked
    since: float


@dataclass(slots=True)
class Holding:
    """What waits for the cut of a checkpoint: all but what came before the markers of ``awaited`` workers."""

    awaited: set[int]
    held: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class JobStore:
    """One job's namespace on this shard.

    ``cursors`` are how far the chunks under way are, by worker and incarnation, and by lease: mini-batches,
    or the offsets in a stream.
    """

    name: str
    label: str  # the name in metrics, or "other"
    epoch: int = 0
    clocks: Clocks = field(default_factory=Clocks)
    blocks: dict[str, Block] = field(default_factory=dict)
    sequences: dict[int, Numbered] = field(default_factory=dict)  # by live worker
    read: dict[int, Backups] = field(default_factory=dict)  # by live worker
    readers: list[Reader] = field(default_factory=list)
    updates: int = 0
    dropped: int = 0
    longest_wait: float = 0.0
    cursors: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    applying: int = 0  # pushes under way
    gone: bool = False  # another state has taken its place, or it was dropped
    is_dropped: bool = False
    born: int = 0  # as in ``protocol.messages.KeptJob``
    holding: Holding | None = None  # while a cut is prepared

    def block(self, name: str) -> Block:
        """Return this shard's block of a tensor, or raise ``UnknownTensor``."""
        try:
            return self.blocks[name]
        except KeyError:
            raise UnknownTensor(
                "this shard has no block of a tensor of that name; create it first", field="name", value=name
            ) from None

    def dense(self, name: str) -> DenseBlock:
        """Return this shard's block of a dense tensor.

        Raises:
            UnknownTensor: there is none.
            BadTensor: it is a table.
        """
        block = self.block(name)
        if isinstance(block, SparseBlock):
            raise BadTensor("it is a table: name the keys of the rows", field="names", value=name)
        return block

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and of what their optimizers keep."""
        return sum(block.nbytes for block in tuple(self.blocks.values()))

    def tables(self) -> list[SparseBlock]:
        """Return this shard's blocks of tables."""
        return [block for block in tuple(self.blocks.values()) if isinstance(block, SparseBlock)]

    def follow(self, epoch: Epoch) -> set[int]:
        """Take a new epoch; return the workers whose incarnation is out. Each new one numbers from 1."""
        before = self.clocks.members
        if self.clocks.staleness == 0:
            self.read.clear()  # in lockstep nobody misses anything, and nothing is noted
        self.epoch, self.born = epoch.number, epoch.born
        self.clocks.follow(epoch)
        after = self.clocks.members
        out = {
            worker
            for worker, member in before.items()
            if worker not in after or after[worker].incarnation != member.incarnation
        }
        for worker in out:
            del self.sequences[worker]
            self.read.pop(worker, None)
        for worker in after.keys() - self.sequences.keys():
            self.sequences[worker] = Numbered()
            self.read[worker] = Backups()
        if len(self.cursors) > _CURSORS:
            live = {(worker, member.incarnation) for worker, member in after.items()}
            self.cursors = {key: of_worker for key, of_worker in self.cursors.items() if key in live}
        return out

    def note_done(self, worker: int, incarnation: int, done: Done) -> None:
        """Note that what a push says is done of a chunk is part of the state."""
        of_worker = self.cursors.setdefault((worker, incarnation), {})
        of_worker.pop(done.lease, None)  # the last is the one of the latest push
        of_worker[done.lease] = done.batches
        if len(of_worker) > _LEASES:
            del of_worker[next(iter(of_worker))]

    def read_by(self, session: Session) -> Backups | None:
        """Return what the worker whose session this is has read; None: it is none, or is out."""
        worker = session.worker
        if worker is None or session.incarnation is None or not self.is_live(worker, session.incarnation):
            return None
        read = self.read.get(worker)
        if read is None:
            read = self.read[worker] = Backups(self.updates)
        return read

    def is_live(self, worker: int, incarnation: int) -> bool:
        """Return whether this incarnation of a worker is one of the epoch."""
        member = self.clocks.members.get(worker)
        return member is not None and member.incarnation == incarnation

    def worker(self, session: Session) -> int:
        """Return the live worker whose session this is.

        Raises:
            NotAMember: the session only observes.
            Fenced: its incarnation is not, or no longer, one of the epoch.
            JobDropped: the job was dropped.
        """
        worker = session.worker
        if worker is None:
            raise NotAMember(
                "this connection only observes; join the job to push", field="worker", value=worker
            )
        member = self.clocks.members.get(worker)
        if member is None or member.incarnation != session.incarnation:
            raise self.out(worker)
        return worker

    def out(self, worker: int) -> PSError:
        """Return the error for a worker that is not one of the epoch."""
        return job_dropped(self.name) if self.is_dropped else fenced(worker)

    def drop(self) -> None:
        """Be over: nobody works on it any more, and whoever waits is told so."""
        self.gone = self.is_dropped = True
        self.clocks.members.clear()  # what is still under way is refused
        readers, self.readers = self.readers, []
        for reader in readers:
            reader.call.fail(job_dropped(self.name))
        holding, self.holding = self.holding, None
        for go_on in holding.held if holding is not None else ():
            go_on()
