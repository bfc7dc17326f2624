"""Whose gradients a synchronous step contains: decided once, by the coordinator, for all shards. No sockets.

    shards: who has ended step t here ──> coordinator: who has on every shard ──> shards: these, and commit

Rules:
- A worker's gradients are in the step from the moment at which it has ended the step on every shard.
  A worker that dies before that is left out everywhere; one that dies later is in it everywhere.
- The step is over when no gradient is missing but those of the ``backup`` slowest live workers (Chen et al.
  2016: the first n of m); what comes later is late everywhere. A worker with nothing to do in the step counts
  neither as a gradient nor as missing.
- A step of which nobody is part is not over.
- The next step begins when this one is decided. Who joins takes part in the step that is open then.
- After a restart the shards report again, for what they have said is not kept. Until all have, the step is
  not over: who had nothing to do in it is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocol.messages import Decide, Ended
from psserver.saved_state import SavedState, check_saved

__all__ = ["StepDecisions"]


@dataclass(slots=True)
class _Report:
    """Who has ended the open step on one shard, and for whom that was nothing."""

    ended: set[int] = field(default_factory=set)
    idle: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Decided:
    """Whose gradients a step contains, as far as that is decided."""

    step: int
    workers: tuple[int, ...]
    commit: bool


@dataclass(frozen=True, slots=True)
class _Saved:
    """What is saved: the open step, and what was decided before it."""

    step: int
    included: tuple[int, ...]
    before: tuple[_Decided, ...]


_SAVED: Final = SavedState(_Saved)


class StepDecisions:
    """The steps of one job.

    Args:
        shards: how many must have a worker's gradients.

    Attributes:
        step: the open one.
        since: time at which the first worker ended the open step on some shard; None while no live one has.
    """

    def __init__(self, shards: int) -> None:
        self.step = 0
        self.since: float | None = None
        self._reports = [_Report() for _ in range(shards)]
        self._unheard: set[int] = set()  # shards that have not reported since a restart
        self._included: set[int] = set()
        self._before: list[Decide] = []  # all of the step before, and of one that the dial cut short since

    def state(self) -> dict[str, Any]:
        """Return all of it, but for what the shards report again, as plain data."""
        before = tuple(_Decided(one.step, one.workers, one.commit) for one in self._before)
        return _SAVED.plain(_Saved(self.step, tuple(sorted(self._included)), before))

    @classmethod
    def restored(cls, state: object, shards: int) -> StepDecisions:
        """Return the steps whose ``state`` this is, of a job on so many shards.

        Raises:
            BadRequest: it is not whole.
        """
        saved, found = _SAVED.checked(state), cls(shards)
        for one in saved.before:
            check_saved(one.step < saved.step, "steps before the open one", "before", one.step)
        found.step, found._included = saved.step, set(saved.included)
        found._before = [Decide("", one.step, one.workers, one.commit) for one in saved.before]
        found._unheard = set(range(shards))
        return found

    def resume(self, step: int, included: Iterable[int]) -> None:
        """Go on after a restart, on one shard, with the step that is open there and those who are in it."""
        self._open(step, [])
        self._included = set(included)
        self._unheard = {0}

    def begin_at(self, step: int) -> None:
        """Open ``step``, if it is later than the open one."""
        if step > self.step:
            self._open(step, [*self._before[-1:], self._all("", commit=False)])

    def _all(self, job: str, *, commit: bool) -> Decide:
        return Decide(job, self.step, tuple(sorted(self._included)), commit)

    def _open(self, step: int, before: list[Decide]) -> None:
        self._before = before
        self.step = step
        self.since = None
        self._reports = [_Report() for _ in self._reports]
        self._unheard = set()  # nobody is in the step, so nothing is missing of them
        self._included = set()

    def ended(self, shard: int, report: Ended, known: AbstractSet[int], now: float) -> None:
        """Take a shard's report, which replaces its former; one of a step that is not open is ignored.

        Args:
            shard: who reports.
            report: who has ended a step there.
            known: the live workers that every shard knows. What is said of others is of a former self.
            now: the time.
        """
        if report.step == self.step:
            self._unheard.discard(shard)
            ended = set(report.workers) & known
            self._reports[shard] = _Report(ended, ended & set(report.idle))
            if self.since is None and ended:
                self.since = now

    def decide(self, job: str, live: Iterable[int], backup: int) -> Decide | None:
        """Return what there is to tell the shards since the last call, if anything.

        Args:
            job: the job's name.
            live: the live workers.
            backup: how many of them are not waited for.
        """
        live = set(live)
        for report in self._reports:
            report.ended &= live  # what a worker that is out has ended counts for no later incarnation
        if not any(report.ended for report in self._reports):
            self.since = None
        everywhere = set.intersection(*(report.ended for report in self._reports))
        fresh = everywhere - self._included
        self._included |= fresh
        over = self._is_over(live, backup)
        if not fresh and not over:
            return None
        decision = Decide(job, self.step, tuple(sorted(fresh)), over)
        if over:
            self._open(self.step + 1, [self._all("", commit=True)])
        return decision

    def _is_over(self, live: set[int], backup: int) -> bool:
        if self._unheard:
            return False
        idle = set.intersection(*(report.idle for report in self._reports)) & self._included
        working = live - idle
        missing = working - self._included
        # Of those that work at least one is waited for, else one dead worker's last words would be a step.
        return bool(self._included) and len(missing) <= min(backup, max(0, len(working) - 1))

    def first_step(self, worker: int) -> int:
        """Return the first step that a worker takes part in if it joins now."""
        return self.step + (worker in self._included)  # its former self is in the open one

    def again(self, job: str) -> list[Decide]:
        """Return all that a shard may have missed: it can be one decision behind, not more."""
        return [*(replace(before, job=job) for before in self._before), self._all(job, commit=False)]

    def waiting_for(self, live: Iterable[int]) -> set[int]:
        """Return the live workers that have yet to end the open step on some shard."""
        return set(live) - self._included

    def ended_by(self) -> int:
        """Return how many workers are in the open step already."""
        return len(self._included)
