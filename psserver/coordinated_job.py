"""A job as the coordinator knows it: who works on it, what is left to do, where its tensors are."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from protocol.messages import RATE_FACTOR, RETURNS, Beat, Decide, Epoch
from protocol.status import Return
from psserver.call import Call
from psserver.catalogue import TensorCatalogue
from psserver.decisions import StepDecisions
from psserver.incarnations import job_dropped
from psserver.leases import Ledger
from psserver.membership import Membership, Worker

__all__ = ["Drifts", "Job"]


@dataclass(frozen=True, slots=True)
class Drifts:
    """How many drifts of a job's stream were acted on, the last of them by which worker (0: none)."""

    count: int = 0
    worker: int = 0

    def acted_on(self, by: int, known: int) -> Drifts:
        """Return this with the drift that a worker has found which knows of ``known`` drifts.

        It is the same if another worker was first, or this one asks again.
        """
        return Drifts(known + 1, by) if known >= self.count else self

    def is_last(self, by: int, known: int) -> bool:
        """Whether the last drift is the one that a worker has found which knew of ``known`` before."""
        return self == Drifts(known + 1, by)


@dataclass(slots=True)
class Job:
    """A job as the coordinator knows it.

    ``agreed`` is what all shards are known to follow. ``made_with`` is the staleness that the job was made
    with, which those who join later say too, whatever it has been set to since. ``rate`` is what all
    learning rates are multiplied by, ``returns`` are those after divergence. ``furthest`` is the last
    step that was begun before the job was restored. ``leaving`` are the names of those who are out, and whose
    chunks are to be taken back when all shards have been told. ``told`` is what a shard that was away is
    told; all of it is durable. ``born`` is as in ``protocol.messages.KeptJob``. ``is_gone`` is set when it is
    durable that the job was dropped.
    """

    name: str
    staleness: float
    backup: int
    workers: Membership
    decisions: StepDecisions
    made_with: float
    began: float
    born: int = 0
    is_dropped: bool = False
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)
    since: int = 0
    rate: float = 1.0
    returns: tuple[Return, ...] = ()
    drifts: Drifts = Drifts()
    agreed: Beat = field(default_factory=lambda: Beat(0, math.inf, 0))
    furthest: int = 0
    ledger: Ledger | None = None
    tensors: TensorCatalogue[Worker, Call] = field(default_factory=TensorCatalogue)
    joining: dict[int, Call] = field(default_factory=dict)  # by worker
    idle: list[tuple[Call, Worker]] = field(default_factory=list)  # wait for a lease
    leaving: dict[str, asyncio.Event] = field(default_factory=dict)
    told: list[Decide | Epoch] = field(default_factory=list)

    @property
    def may_return(self) -> bool:
        """Whether it may go back to a checkpoint once more."""
        return len(self.returns) < (RETURNS if self.ledger is None else self.ledger.plan.returns)

    @property
    def lower_rate(self) -> float:
        """What its rate is after one more return."""
        return self.rate * (RATE_FACTOR if self.ledger is None else self.ledger.plan.rate_factor)

    def drop(self) -> None:
        """Be over: nobody works on it any more, and whoever waits is told so."""
        self.is_dropped = True
        waiting = [*self.joining.values(), *(call for call, _ in self.idle)]
        waiting += [call for _, _, asks in self.tensors.waits() for call in asks]
        self.joining, self.idle = {}, []
        self.workers.all_out()
        for call in waiting:
            call.fail(job_dropped(self.name))
        for taken_back in self.leaving.values():
            taken_back.set()

    def live(self) -> list[int]:
        """Return the live workers."""
        return [worker.id for worker in self.workers.live()]
