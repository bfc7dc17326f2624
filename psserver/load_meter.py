"""How much a shard has to do: counted as it comes, with rates over the last few seconds."""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.connection import Traffic
from protocol.status import Load

__all__ = ["LoadMeter"]

_WINDOW: Final = 5.0
"""Seconds that the rates are over, at least."""


class LoadMeter:
    """Counts pushes and pulls, and the keys of rows in them.

    Args:
        traffic: the bytes that the server has received and sent.

    Attributes:
        requests: pushes and pulls so far.
        keys: keys in them so far.
    """

    __slots__ = ("_seen", "_traffic", "keys", "requests")

    def __init__(self, traffic: Traffic) -> None:
        self.requests = self.keys = 0
        self._traffic = traffic
        self._seen: deque[tuple[float, tuple[int, ...]]] = deque()

    def read(self, nbytes: int, rows: int, now: float) -> Load:
        """Return the load; to be called now and then.

        Args:
            nbytes: bytes of parameters.
            rows: rows of tables.
            now: seconds, monotonic.
        """
        counted = (self.requests, self.keys, self._traffic.received, self._traffic.sent)
        self._seen.append((now, counted))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()
        began, before = self._seen[0]
        seconds = now - began
        rates = [
            (count - earlier) / seconds if seconds > 0 else 0.0
            for count, earlier in zip(counted, before, strict=True)
        ]
        return Load(nbytes, rows, self.requests, self.keys, *rates)
