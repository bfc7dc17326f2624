"""The staleness dial: which worker is in which step, and who has to wait for whom. No sockets, no time.

Stale-synchronous parallel (Ho et al. 2013), with a staleness of k steps:
- A worker's clock is the step that it is in: the number of steps it has ended, or were ended before it came.
- A worker in step c may read when every live worker's clock is at least c - k. It then sees all updates
  of the steps up to c - k - 1, and its own.
- So no worker is ever more than k steps ahead of another. k = 0 keeps them in lockstep; with k = inf
  nobody waits.
- Who is live is an epoch that the coordinator announces. Whoever is not in it is waited for no longer.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

from protocol.messages import Epoch, Member, Rate
from psserver.saved_state import AnyNumber, SavedState, as_text, check_once, check_saved

__all__ = ["Clocks"]


@dataclass(frozen=True, slots=True)
class _Saved:
    """What is saved; the clock of each member is the step that it is in."""

    staleness: AnyNumber
    since: int
    furthest: int
    members: tuple[Member, ...]
    rate: Rate


_SAVED: Final = SavedState(_Saved)


class Clocks:
    """The clocks of one job's live workers, as one shard sees them.

    Attributes:
        staleness: steps that a worker may be ahead of the slowest.
        rate: what all learning rates are multiplied by.
        since: steps below it were begun under another staleness; nobody is held to them.
        members: the live workers, by id.
        slowest: the lowest clock of a live worker; 0 if there is none.
        furthest: the highest clock that any worker ever had.
    """

    def __init__(self) -> None:
        self.staleness = math.inf
        self.rate = 1.0
        self.since = 0
        self.members: dict[int, Member] = {}
        self.slowest = self.furthest = 0
        self._clocks: dict[int, int] = {}
        self._at: dict[int, int] = {}  # how many are in each step

    def follow(self, epoch: Epoch) -> None:
        """Take a new epoch. A new incarnation begins at its own clock; nobody is left before ``since``."""
        before, self.members = self.members, {member.worker: member for member in epoch.members}
        self.staleness, self.since, self.rate = epoch.staleness, epoch.since, epoch.rate
        clocks = {}
        for worker, member in self.members.items():
            known = before.get(worker)
            same = known is not None and known.incarnation == member.incarnation
            clock = max(self._clocks[worker], member.clock) if same else member.clock
            clocks[worker] = max(clock, epoch.since)
        self._set(clocks)
        self.furthest = max(self.furthest, epoch.since, *self._at, 0)

    def _set(self, clocks: dict[int, int]) -> None:
        self._clocks = clocks
        self._at = dict(Counter(clocks.values()))
        self.slowest = min(self._at, default=0)

    def state(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        members = [replace(one, clock=self._clocks[one.worker]) for one in self.members.values()]
        staleness = as_text(self.staleness)
        return _SAVED.plain(_Saved(staleness, self.since, self.furthest, tuple(members), self.rate))

    @classmethod
    def restored(cls, state: object) -> Clocks:
        """Return the clocks whose ``state`` this is.

        Raises:
            BadRequest: it is not whole.
        """
        saved, clocks = _SAVED.checked(state), cls()
        staleness = clocks.staleness = float(saved.staleness)
        whole = staleness == math.inf or (staleness >= 0 and staleness.is_integer())
        check_saved(whole, "whole steps, or inf", "staleness", saved.staleness)
        check_once([member.worker for member in saved.members], "members")
        clocks.since, clocks.furthest, clocks.rate = saved.since, saved.furthest, saved.rate
        clocks.members = {member.worker: member for member in saved.members}
        clocks._set({member.worker: member.clock for member in saved.members})
        reached = (clocks.since, *clocks._at, clocks.furthest)
        check_saved(min(reached) == clocks.since, "no clock below it", "since", clocks.since)
        check_saved(max(reached) == clocks.furthest, "no clock above it", "furthest", clocks.furthest)
        return clocks

    def ended(self, worker: int, step: int) -> None:
        """Note that a live worker has ended a step."""
        before = self._clocks[worker]
        if step < before:
            return
        self._clocks[worker] = step + 1
        if step >= self.furthest:
            self.furthest = step + 1
        at = self._at
        at[step + 1] = at.get(step + 1, 0) + 1
        if at[before] > 1:
            at[before] -= 1
        else:
            del at[before]
            if before == self.slowest:
                self.slowest = min(at)

    def clock(self, worker: int) -> int:
        """Return a live worker's clock."""
        return self._clocks[worker]

    def ahead_of(self, step: int) -> list[int]:
        """Return the live workers whose clock is above ``step``."""
        return [worker for worker, clock in self._clocks.items() if clock > step]

    def may_read(self, worker: int) -> bool:
        """Return whether a live worker may go on in its step."""
        return self._clocks[worker] - self.staleness <= self.slowest

    @property
    def is_asynchronous(self) -> bool:
        """Whether nobody waits for anybody."""
        return self.staleness == math.inf

    def in_lockstep(self, step: int) -> bool:
        """Return whether all workers end a step together; else its updates are applied as they come."""
        return self.staleness == 0 and step >= self.since

    def lead(self, worker: int) -> int:
        """Return how many steps a live worker is ahead of the slowest."""
        return self._clocks[worker] - self.slowest

    def behind(self, clock: int) -> tuple[str, ...]:
        """Return the names of the live workers that keep one with this clock waiting."""
        return tuple(
            member.name
            for worker, member in self.members.items()
            if self._clocks[worker] < clock - self.staleness
        )
