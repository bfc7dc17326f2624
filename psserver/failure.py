"""When silence means death: a failure detector with an adaptive deadline. No clock of its own.

The deadline follows the observed arrivals of heartbeats (phi-accrual; Hayashibara et al. 2004). With mean m
and standard deviation s of the intervals between arrivals, the suspicion after a silence of t is

    phi(t) = -log10(P(interval > t)),   interval ~ Normal(m, s)

Solved for t, a peer is suspect at phi = 3 and dead at phi = 8: one false alarm in 10^8 intervals, were they
normal. A regular peer is found dead soon; one whose heartbeats come and go is given time, up to a limit.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["FailureDetector"]

_SUSPECT: Final = 3.09  # standard deviations: P(X > m + 3.09 s) = 10^-3
_DEAD: Final = 5.61  # 10^-8
_REMEMBERED: Final = 100  # intervals
_LEAST_DEVIATION: Final = 0.5
"""Of the interval: a handful of regular heartbeats proves little about the next garbage collection."""


class FailureDetector:
    """What the arrivals of one peer's heartbeats say about it.

    Args:
        interval: seconds between heartbeats, as agreed.
        dead_after: seconds of silence that are death whatever was observed.
        now: when the peer was first heard of.
        returns: it was there before this process, and has to find its way back first: until it is heard of
            only ``dead_after`` counts.

    Attributes:
        heard: when it was last heard of.
        suspect_at: time from which on silence makes it suspect.
        dead_at: time from which on silence makes it dead, at most ``heard + dead_after``.
    """

    __slots__ = (
        "_dead_after",
        "_interval",
        "_intervals",
        "_returns",
        "_squares",
        "_sum",
        "dead_at",
        "heard",
        "suspect_at",
    )

    def __init__(self, interval: float, dead_after: float, now: float, *, returns: bool = False) -> None:
        self._interval = interval
        self._dead_after = dead_after
        self._returns = returns
        self._intervals: deque[float] = deque()
        self._sum = 0.0
        self._squares = 0.0
        self.heard = now
        self.suspect_at = self.dead_at = math.inf
        self._set_deadlines()

    def beat(self, now: float) -> None:
        """Take note of a heartbeat."""
        interval = now - self.heard
        self.heard = now
        if self._returns:
            self._returns = False  # how long that took says nothing about its heartbeats
            self._set_deadlines()
            return
        self._intervals.append(interval)
        self._sum += interval
        self._squares += interval * interval
        if len(self._intervals) > _REMEMBERED:
            oldest = self._intervals.popleft()
            self._sum -= oldest
            self._squares -= oldest * oldest
        self._set_deadlines()

    def excuse(self, seconds: float, now: float) -> None:
        """Do not count ``seconds`` of silence: it was the listener who was asleep."""
        self.heard = min(self.heard + seconds, now)  # a heartbeat may have come before the excuse
        self._set_deadlines()

    def _set_deadlines(self) -> None:
        # The agreed interval counts as one observation: with none yet, it is all there is.
        count = len(self._intervals) + 1
        mean = (self._sum + self._interval) / count
        variance = (self._squares + self._interval * self._interval) / count - mean * mean
        deviation = max(math.sqrt(max(0.0, variance)), _LEAST_DEVIATION * self._interval)
        dead = self._dead_after if self._returns else min(mean + _DEAD * deviation, self._dead_after)
        self.dead_at = self.heard + dead
        suspect = dead if self._returns else mean + _SUSPECT * deviation
        self.suspect_at = self.heard + min(suspect, 0.75 * dead)
