"""The barrier of synchronous training (staleness 0), as a state machine without sockets or clocks.

Rules:
- Step t is open until every worker it waits for has ended it; then its mean is committed and t+1 opens.
- Step t waits for the members of the current epoch that have not left before t.
- A worker ends each step once, in order; it can only be at the step that is open.
- A step is not complete while a gradient is still being added to its mean.
- A step whose mean cannot be applied is not over: it begins anew, and its workers are told.
- A lost worker (gone without leaving) stops the job: whose gradients the step holds is then unknown.
- Whoever waits can always say for whom.
"""

from __future__ import annotations

from protocol.errors import BadRequest, NotAMember, WorkerLost
from protocol.messages import Member

__all__ = ["StepBarrier"]


class StepBarrier:
    """Which workers have ended the open step, and whom it still waits for.

    Attributes:
        clock: the open step, from 0.
        since: time at which the first worker ended the open step; None while nobody has.
    """

    def __init__(self) -> None:
        self.clock = 0
        self.since: float | None = None
        self._members: dict[int, Member] = {}
        self._ended: set[int] = set()
        self._adding = 0
        self._lost: tuple[str, ...] = ()

    def set_members(self, members: tuple[Member, ...], lost: tuple[str, ...]) -> None:
        """Follow a new epoch."""
        self._members = {member.worker: member for member in members}
        self._lost = lost

    def check(self, worker: int, step: int) -> None:
        """Raise if ``worker`` may not push into ``step`` now.

        Raises:
            WorkerLost: the job cannot go on.
            NotAMember: the worker is not one of the epoch, or has left before the step.
            BadRequest: the step is not the open one, or the worker has ended it.
        """
        if self._lost:
            raise self.failure()
        member = self._members.get(worker)
        if member is None or not _takes_part(member, step):
            raise NotAMember("join the job first; who has left it is out", field="worker", value=worker)
        if step != self.clock or worker in self._ended:
            raise BadRequest(
                f"the open step is {self.clock}; each worker ends each step once", field="step", value=step
            )

    def begin(self, worker: int, step: int, *, ends: bool, now: float) -> None:
        """Note that gradients of ``worker`` are being added, and whether they end its step.

        Raises:
            PSError: as ``check``.
        """
        self.check(worker, step)
        self._adding += 1
        if ends:
            self._ended.add(worker)
            if self.since is None:
                self.since = now

    def added(self) -> None:
        """Note that what ``begin`` announced is done."""
        self._adding -= 1

    @property
    def failed(self) -> bool:
        """Whether the job cannot go on."""
        return bool(self._lost)

    def failure(self) -> WorkerLost:
        """Return why the job cannot go on."""
        return WorkerLost(
            "the job is synchronous and these workers went away in the middle of it; start it again",
            field="workers",
            value=", ".join(self._lost),
        )

    @property
    def complete(self) -> bool:
        """Whether every worker that the open step waits for has ended it, and at least one has."""
        return bool(self._ended) and not self._adding and not self.waiting_for()

    def advance(self) -> None:
        """Open the next step."""
        self.clock += 1
        self.reopen()

    def reopen(self) -> None:
        """Have the open step begin anew: its gradients could not be applied."""
        self.since = None
        self._ended.clear()

    def waiting_for(self) -> tuple[str, ...]:
        """Return the names of the workers that have yet to end the open step."""
        return tuple(
            member.name
            for member in self._members.values()
            if member.worker not in self._ended and _takes_part(member, self.clock)
        )


def _takes_part(member: Member, step: int) -> bool:
    return member.until is None or step < member.until
