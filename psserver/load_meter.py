"""How much a shard has to do: counted as it comes, with rates over the last few seconds."""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.status import Load

__all__ = ["LoadMeter"]

_WINDOW: Final = 5.0
"""Seconds that the rates are over, at least."""


class LoadMeter:
    """Counts pushes and pulls, and the keys of rows in them.

    Attributes:
        requests: pushes and pulls so far.
        keys: keys in them so far.
    """

    __slots__ = ("_seen", "keys", "requests")

    def __init__(self) -> None:
        self.requests = self.keys = 0
        self._seen: deque[tuple[float, int, int]] = deque()

    def read(self, nbytes: int, rows: int, now: float) -> Load:
        """Return the load; to be called now and then.

        Args:
            nbytes: bytes of parameters.
            rows: rows of tables.
            now: seconds, monotonic.
        """
        self._seen.append((now, self.requests, self.keys))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()
        began, requests, keys = self._seen[0]
        seconds = now - began
        rates = (0.0, 0.0)
        if seconds > 0:
            rates = ((self.requests - requests) / seconds, (self.keys - keys) / seconds)
        return Load(nbytes, rows, self.requests, self.keys, *rates)
