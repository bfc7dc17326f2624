"""The connections that clients and other servers make: let in, watched, and shown out.

Who may come in is decided in ``psserver.doors``, how long a peer is waited for in ``psserver.patience``. Here
is what that means for sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.connection import Array, Connection, Handler, Traffic
from protocol.daemon.logs import RateLimited
from protocol.errors import NotReady, PSError, ShuttingDown
from protocol.frames import HELLO_HEADER
from protocol.messages import (
    Checkpoint,
    Drop,
    Ended,
    Hello,
    JoinShard,
    Ping,
    Restore,
    Saved,
    Set,
    ShardBeat,
    Status,
)
from psserver.doors import Doors, DoorSettings
from psserver.jobs import Session
from psserver.patience import Patience, PatienceSettings, Seen

__all__ = ["Reception", "ReceptionSettings"]

_log = logging.getLogger(__name__)

_OF_OPERATORS: Final = frozenset(
    (Ping, Status, Set, Drop, Checkpoint, Restore, JoinShard, ShardBeat, Ended, Saved)
)
"""What may be asked for on the places that are kept: what operators and other servers ask for."""

_STALLED: Final = 1024 * 1024 * 1024
"""Bytes that may wait for peers that read nothing, in all: or one frame, if that may be longer. Beyond it
those for which most waits are shown out, before their time is over."""

_STALLED_AFTER: Final = 10.0  # seconds without reading

_ASLEEP: Final = 3.0
"""Seconds between two looks after which this server was not awake: nobody was late meanwhile."""

_UNPROVEN: Final = 256 * 1024
"""Bytes that may wait for a peer that has not shown that it reads what it asks for, or does not any more.
Above it none of its requests are read, nor its heartbeats: this must not last where a link is slow."""

_PROVEN: Final = 8 * 1024 * 1024
"""Bytes that have left for a peer that surely reads: more than the systems between here and there hold."""


@dataclass(frozen=True, slots=True)
class ReceptionSettings:
    """Who is let in, how long one waits for whom, and the longest payload of who has been let in."""

    doors: DoorSettings = field(default_factory=DoorSettings)
    patience: PatienceSettings = field(default_factory=PatienceSettings)
    max_frame: int = 1 << 30


class Guest(Connection):
    """A connection that somebody else has made.

    Until it is greeted, it may send short frames without payloads, and no others.

    Args:
        handler: who answers its requests.
        met: called as soon as it is known who it is.
        traffic: where bytes are counted.
    """

    def __init__(self, handler: Handler, met: Callable[[Guest], None], traffic: Traffic) -> None:
        super().__init__(handler, max_payload=0, traffic=traffic, server=True)
        self.accept(0, HELLO_HEADER)
        self.session = Session()
        self.host = ""
        self.patience: Patience | None = None  # None: it is no guest yet, or no more
        self.stalled = 0.0  # since when nothing has been read of what waits
        self._drained = 0
        self._waited = False  # something did, at the last look
        self._reads = False
        self._met = met

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if peer else ""
        self.limit_unsent(_UNPROVEN)
        self._met(self)

    def is_served_by(self, handler: Handler) -> None:
        """Have another handler answer its requests."""
        self._handler = handler

    def seen(self) -> Seen:
        """Return a look at it."""
        return Seen(
            self.greeted, self.received, self.drained, self.unsent, self.is_amid_frame, self.awaited > 0
        )

    def stalls(self, now: float) -> bool:
        """Look whether the peer reads; return whether it has not for long, though something waits."""
        drained, waits = self.drained, self.unsent > 0
        if waits and drained == self._drained:
            self._show_reading(False)
        else:
            moves = self._waited and drained > self._drained
            self._show_reading(self._reads or moves or drained >= _PROVEN)
            self._drained, self.stalled = drained, now
        self._waited = waits
        return now - self.stalled >= _STALLED_AFTER

    def _show_reading(self, reads: bool) -> None:
        """Let more, or less, wait for a peer that reads, or does not."""
        if reads != self._reads:
            self._reads = reads
            self.limit_unsent(None if reads else _UNPROVEN)


class _OfOperators:
    """The handler of who stands on a place that is kept: the server, for what operators and servers ask."""

    def __init__(self, server: Handler, full: Callable[[Connection], None]) -> None:
        self._server = server
        self._full = full

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        """Show others out."""
        is_client = isinstance(request, Hello) and request.job is not None
        if is_client or (connection.greeted and type(request) not in _OF_OPERATORS):
            self._full(connection)
            raise NotReady("--max-connections are open", field="op", value=request.op)  # only noted
        return self._server.prepare(connection, request)

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        """Answer."""
        self._server.handle(connection, request_id, request, arrays)

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        """Take note."""
        self._server.refused(connection, op, error)

    def lost(self, connection: Connection) -> None:
        """Take note."""
        self._server.lost(connection)


class Reception:
    """All connections of a server.

    Args:
        settings: who is let in, and how long one waits.
        handler: who answers requests.
        traffic: where bytes are counted.
        rejected: where it is counted who was refused or shown out, by reason.

    Attributes:
        connections: that are open, those that this server has made included.
    """

    def __init__(
        self, settings: ReceptionSettings, handler: Handler, traffic: Traffic, rejected: Counter[str]
    ) -> None:
        self.connections: set[Connection] = set()
        self._settings = settings
        self._handler = handler
        self._of_operators = _OfOperators(handler, self._full)
        self._traffic = traffic
        self._rejected = rejected
        self._doors: Doors[Guest] = Doors(settings.doors)
        self._looked: float | None = None
        self._slept = 0.0
        self._logged = {
            reason: RateLimited(_log, interval=1.0) for reason in ("refused", "ended", "shut out", "rejected")
        }

    def accept(self) -> Guest:
        """Return the protocol of a connection that is being made; see ``loop.create_server``."""
        return Guest(self._handler, self._meet, self._traffic)

    def _meet(self, guest: Guest) -> None:
        now = guest.opened
        entry = self._doors.enter(guest, guest.host, now)
        if entry.refused:
            self._count(entry.refused)
            self._log("refused", now, "refused %s: %s", guest.peer, self._why(entry.refused))
            guest.abort()
            return
        guest.patience = Patience(self._settings.patience, now - self._slept)
        self.connections.add(guest)
        if entry.kept:
            guest.is_served_by(self._of_operators)
        if entry.instead_of is not None:
            self._end(entry.instead_of, "made_room", now)

    def _why(self, reason: str) -> str:
        doors = self._settings.doors
        return {
            "connections": f"--max-connections {doors.connections} are open",
            "address": f"--max-connections-per-address {doors.per_address} of its address are open",
            "shut_out": f"{doors.failures} hellos of its address have failed within {doors.period:g} s",
        }[reason]

    def _full(self, connection: Connection) -> None:
        """End the connection of a client that stands on a place kept for operators."""
        self._count("connections")
        now = asyncio.get_running_loop().time()
        self._log("refused", now, "refused %s: %s", connection.peer, self._why("connections"))
        connection.close()  # without an answer: its client tries again for as long as it is told to

    def greeted(self, connection: Connection) -> None:
        """Take note that a peer's hello was answered, if it was: it may send whatever frames it likes."""
        if not connection.greeted:
            return
        connection.accept(self._settings.max_frame)
        if isinstance(connection, Guest):
            self._doors.greeted(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        if isinstance(connection, Guest):
            self._doors.leave(connection)

    def refused(self, connection: Connection, error: PSError) -> None:
        """Take note that what a peer has sent was refused: a stranger's hello has failed then."""
        if connection.greeted or not isinstance(connection, Guest):
            return
        if not isinstance(error, NotReady | ShuttingDown):
            self._failed(connection, asyncio.get_running_loop().time())

    def _failed(self, guest: Guest, now: float) -> None:
        if self._doors.failed(guest.host, now):
            self._log("shut out", now, "%s is shut out: %s", guest.host, self._why("shut_out"))

    def log_rejected(self, connection: Connection, error: PSError) -> None:
        """Log bytes that make no sense."""
        now = asyncio.get_running_loop().time()
        self._log("rejected", now, "rejected a frame from %s: %s", connection.peer, error)

    def look(self, now: float, heartbeat: float) -> None:
        """Show those out whom one has waited for long enough; to be called once a second.

        Args:
            now: the loop's time.
            heartbeat: seconds between two words of an honest peer; silence may last for a few of them.
        """
        awake = self._awake(now)
        stalled: list[Guest] = []
        for connection in tuple(self.connections):
            if not isinstance(connection, Guest) or connection.patience is None:
                continue
            reason = connection.patience.look(connection.seen(), awake, 4 * heartbeat)
            if reason == "no_hello":
                self._failed(connection, now)
            if reason:
                self._end(connection, reason, now)
            elif connection.stalls(awake):
                stalled.append(connection)
        self._end_stalled(stalled, now)

    def _awake(self, now: float) -> float:
        """Return the time without that in which this server could not look at what its peers had sent."""
        gap = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if gap > _ASLEEP:
            self._slept += gap - 1.0
        return now - self._slept

    def _end_stalled(self, stalled: list[Guest], now: float) -> None:
        """Bound what waits for peers that do not read."""
        total = sum(guest.unsent for guest in stalled)
        for guest in sorted(stalled, key=lambda guest: guest.unsent, reverse=True):
            if total <= max(_STALLED, self._settings.max_frame):
                return
            total -= guest.unsent
            self._end(guest, "not_reading", now)

    def _end(self, guest: Guest, reason: str, now: float) -> None:
        self._count(reason)
        if reason != "idle":
            self._log("ended", now, "ended the connection of %s: %s", guest.peer, _ENDED[reason])
        guest.patience = None  # its end may take a moment
        guest.abort()

    def _count(self, reason: str) -> None:
        self._rejected[reason] += 1

    def _log(self, what: str, now: float, message: str, *args: object) -> None:
        self._logged[what].warning(now, message, *args)


_ENDED: Final = {
    "no_hello": "it has not said hello in time",
    "made_room": "it has not said hello, and others came",
    "slow_frame": "the rest of a frame does not come",
    "not_reading": "it does not read its replies",
}
