"""How measures went over time, in memory that does not grow with it. Pure: the time is passed in."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Final

from protocol.status import Curve, History
from psserver.membership import Worker

__all__ = ["JobHistory", "Recent", "Whole"]

POINTS: Final = 240
"""Stretches of time that a curve has at most."""


class _Cells:
    """Means over stretches of equal length.

    Args:
        every: seconds of a stretch.
        most: stretches that are kept.
    """

    def __init__(self, every: float, most: int = POINTS) -> None:
        self._every = every
        self._most = most
        self._began = math.nan
        self._dropped = 0  # stretches before the first that is kept
        self._totals = array("d")  # of what was measured in each stretch
        self._counts = array("L")  # how often that was
        self._means: list[float | None] = []  # of those that are over, as far as anybody has asked

    def note(self, now: float, value: float) -> None:
        """Take a measurement; what is not finite is left out, as if nothing had been measured."""
        if not self._counts:
            self._began = now
        self._make_room(now)
        new = self._at(now) + 1 - len(self._counts)
        self._totals.extend([0.0] * new)
        self._counts.extend([0] * new)
        if math.isfinite(value):
            self._totals[-1] += value
            self._counts[-1] += 1

    def _at(self, now: float) -> int:
        """Return the number, of those that are kept, of the stretch that ``now`` is in: no earlier one."""
        latest = len(self._counts) - 1
        return max(0, latest, int((now - self._began) / self._every) - self._dropped)

    def _make_room(self, now: float) -> None:
        """Have room for the stretch that ``now`` is in."""
        raise NotImplementedError

    def curve(self, now: float) -> Curve:
        """Return the means as they are ``now``."""
        stretches = len(self._counts)
        if not stretches:
            return Curve()
        known = len(self._means)
        self._means += map(_mean, self._totals[known:-1], self._counts[known:-1])
        latest = _mean(self._totals[-1], self._counts[-1])
        end = self._began + (self._dropped + stretches) * self._every
        return Curve(self._every, max(0.0, now - end), (*self._means, latest))


class Recent(_Cells):
    """The last of the time: what is older is forgotten."""

    def _make_room(self, now: float) -> None:
        gone = max(0, self._at(now) + 1 - self._most)
        self._dropped += gone
        for kept in (self._totals, self._counts, self._means):
            del kept[:gone]


class Whole(_Cells):
    """All of the time: two stretches become one whenever there are too many."""

    def _make_room(self, now: float) -> None:
        while self._at(now) >= self._most:
            self._every *= 2
            pairs = range(0, len(self._counts), 2)
            self._totals = array("d", [sum(self._totals[i : i + 2]) for i in pairs])
            self._counts = array("L", [sum(self._counts[i : i + 2]) for i in pairs])
            self._means.clear()


def _mean(total: float, count: int) -> float | None:
    if not count or not math.isfinite(total):
        return None
    return float(f"{total / count:.6g}")  # no curve shows more, and it is told once a second


class JobHistory:
    """A job's loss and speed.

    Args:
        every: seconds between two heartbeats of a worker.
    """

    def __init__(self, every: float) -> None:
        self._loss = (Whole(every), Recent(every))
        self._speed = (Whole(every), Recent(every))

    def note(self, now: float, live: Sequence[Worker]) -> None:
        """Take note of how the ``live`` workers are getting on; without any, nothing goes on."""
        if not live:
            return
        losses = [worker.loss for worker in live if worker.loss is not None]
        loss = sum(losses) / len(losses) if losses else math.nan
        speed = sum(worker.speed() for worker in live)
        for cells in self._loss:
            cells.note(now, loss)
        for cells in self._speed:
            cells.note(now, speed)

    def status(self, now: float) -> History:
        """Return the curves as they are ``now``."""
        (loss, recent_loss), (speed, recent_speed) = self._loss, self._speed
        return History(loss.curve(now), speed.curve(now), recent_loss.curve(now), recent_speed.curve(now))
