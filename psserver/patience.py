"""How long a peer is waited for: its hello, the rest of a frame, its reading of replies, any word at all.

Looked at now and then, never per request. That something moves is not enough where it is a frame or a reply:
it has to move at a least rate, or one byte every few seconds would hold its memory for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Patience", "PatienceSettings", "Seen"]

LEAST_RATE: Final = 1024
"""Bytes a second of a frame, or of replies, below which a peer counts as standing still."""


@dataclass(frozen=True, slots=True)
class PatienceSettings:
    """Seconds: for the hello, for a frame to move, for replies to be read, and of silence."""

    hello: float = 5.0
    frame: float = 10.0
    write: float = 30.0
    idle: float = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at a connection.

    ``received`` bytes have come and ``drained`` have left, while ``unsent`` cannot leave. ``is_amid`` says
    that a frame has begun and its rest is waited for, ``is_awaited`` that an answer is being worked on.
    """

    greeted: bool
    received: int
    drained: int
    unsent: int
    is_amid: bool
    is_awaited: bool


class _Pace:
    """Whether a count goes up at the least rate, over windows of ``within`` seconds."""

    __slots__ = ("_count", "_since", "_within")

    def __init__(self, within: float, now: float) -> None:
        self._within = within
        self.restart(0, now)

    def restart(self, count: int, now: float) -> None:
        self._count, self._since = count, now

    def stands_still(self, count: int, now: float) -> bool:
        if count - self._count >= LEAST_RATE * self._within:
            self.restart(count, now)
        return now - self._since >= self._within


class Patience:
    """What is left of the patience with one connection.

    Args:
        settings: how long each thing may take.
        opened: when the connection was made, in seconds; monotonic.
    """

    __slots__ = ("_frame", "_heard", "_opened", "_received", "_settings", "_write")

    def __init__(self, settings: PatienceSettings, opened: float) -> None:
        self._settings = settings
        self._opened = self._heard = opened
        self._received = 0
        self._frame = _Pace(settings.frame, opened)
        self._write = _Pace(settings.write, opened)

    def look(self, seen: Seen, now: float, idle: float = 0.0) -> str:
        """Return why the connection is to be ended, or "" if it is not; to be called about once a second.

        Args:
            seen: what it is like now.
            now: seconds, monotonic.
            idle: allow for so many seconds of silence, if that is more than what the settings say.
        """
        if not seen.greeted:
            return "no_hello" if now - self._opened >= self._settings.hello else ""
        if not seen.is_amid:
            self._frame.restart(seen.received, now)
        elif self._frame.stands_still(seen.received, now):
            return "slow_frame"
        if not seen.unsent:
            self._write.restart(seen.drained, now)
        elif self._write.stands_still(seen.drained, now):
            return "not_reading"
        if seen.received != self._received or seen.is_awaited or seen.unsent:
            self._received, self._heard = seen.received, now
        elif now - self._heard >= max(self._settings.idle, idle):
            return "idle"
        return ""
