"""The cut of a checkpoint on one shard: one moment at which all that belongs together is of one age.

    hold ──(markers, and what came before them is applied)──> quiet ──cut──> taken ──> on with what was held
      └──────────────────────── release: the checkpoint is given up ────────────────────> on

Rules, after Chandy and Lamport 1985:
- A worker's marker comes at the same place of its stream on every shard. What it sends before the marker is
  in the cut on every shard, what it sends after it on none: that is held until the cut is taken.
- A synchronous job needs no markers: its steps are decided for all shards alike, and none is while a cut is
  prepared. What is put into the open step is held.
- The cut is taken for all jobs at one moment, when all are quiet: every marker is in, and what came before is
  applied. It costs no time: versions never change, so it keeps them rather than copying them.
- Who joins meanwhile is held from the beginning; who goes away is waited for no longer.
- A shard that stops can also cut by itself, without markers: what it takes then is its own last state, and
  what it has held is done by the one that takes up that state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from psserver.durability.failpoints import failpoint
from psserver.jobs import Holding, JobStore
from psserver.steps import Steps

__all__ = ["ShardCut"]


class ShardCut:
    """The cut that one shard is preparing, if any.

    Args:
        jobs: the shard's jobs, by name.
        steps: their synchronous steps, by name.

    Attributes:
        checkpoint: the checkpoint's number; 0 if no cut is being prepared.
        stays: what is held after the cut is not gone on with: the server stops.
        is_last: such a cut was taken, or is being. Whatever is done after it is lost.
    """

    def __init__(self, jobs: Mapping[str, JobStore], steps: Mapping[str, Steps]) -> None:
        self.checkpoint = 0
        self.stays = self.is_last = False
        self._jobs = jobs
        self._steps = steps
        self._take: Callable[[], None] | None = None

    def hold(self, checkpoint: int) -> None:
        """Begin to hold what is after the cut."""
        self.release()
        self.checkpoint = checkpoint
        for job in self._jobs.values():
            lockstep = job.clocks.staleness == 0
            job.holding = Holding(set() if lockstep else set(job.clocks.members))
        failpoint("cut.held")

    def freeze(self, take: Callable[[], None]) -> None:
        """Hold everything, and have ``take`` called when all is quiet. It is the last cut."""
        self.release()
        self.stays = self.is_last = True
        for job in self._jobs.values():
            job.holding = Holding(set())
        self._take = take
        self.check()

    def mark(self, checkpoint: int, job: JobStore, worker: int) -> None:
        """A worker's marker is in; that of another checkpoint says nothing."""
        if checkpoint == self.checkpoint and job.holding is not None:
            job.holding.awaited.discard(worker)
            self.check()

    def cut(self, checkpoint: int, take: Callable[[], None]) -> bool:
        """Have ``take`` called at the moment of the cut; return whether this checkpoint is being prepared."""
        if checkpoint != self.checkpoint:
            return False
        self._take = take
        self.check()
        return True

    def check(self) -> None:
        """Take the cut, if it is time; to be called whenever something has been applied."""
        if self._take is not None and all(self._is_quiet(job) for job in self._jobs.values()):
            take, self._take = self._take, None
            self.is_last = self.stays
            take()
            failpoint("cut.taken")
            if not self.stays:
                self.release()

    def _is_quiet(self, job: JobStore) -> bool:
        awaited = job.holding is not None and job.holding.awaited
        return not awaited and not job.applying and self._steps[job.name].is_settled

    def release(self) -> None:
        """Go on with what was held."""
        self.checkpoint, self._take, self.is_last = 0, None, False
        for job in self._jobs.values():
            holding, job.holding = job.holding, None
            for go_on in holding.held if holding is not None else ():
                go_on()
