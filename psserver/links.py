"""The coordinator's links to the shards: who is which number, what they are told, and who is silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.connection import Answer, Connection
from protocol.documents import EPOCH
from protocol.errors import BadRequest, ConnectionLost, ShuttingDown
from protocol.messages import Announce, Decide, Epoch, JoinShard, Request, ShardJoined
from protocol.status import ShardStatus, Wait
from psserver.call import Call
from psserver.failure import FailureDetector
from psserver.membership import FailureSettings
from psserver.shard import Shard

__all__ = ["ShardLinks"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Link:
    """A server of the cluster; ``connection`` is None for the coordinator's own shard."""

    address: str
    connection: Connection | None
    detector: FailureDetector
    open: asyncio.Event = field(default_factory=asyncio.Event)
    suspect: bool = False
    load: int = 0  # bytes of parameters placed there
    waits: tuple[Wait, ...] = ()


class ShardLinks:
    """The servers of a cluster, the coordinator's own shard first.

    Args:
        own: shard 0.
        count: how many servers make the cluster.
        cluster: the name of this cluster; a server with another's state is refused.
        settings: when silence is death.
        missed: returns what a server that was away may have missed.
        now: seconds, monotonic.

    Attributes:
        ready: set once all have joined.
        own_address: the coordinator's, for the status.
    """

    def __init__(
        self,
        own: Shard,
        count: int,
        cluster: str,
        settings: FailureSettings,
        missed: Callable[[], Iterable[Decide | Epoch]],
        now: Callable[[], float],
    ) -> None:
        self.ready = asyncio.Event()
        self.own_address = ""
        self._own = own
        self._cluster = cluster
        self._settings = settings
        self._missed = missed
        self._now = now
        self._links: list[_Link | None] = [self._link("", None), *[None] * (count - 1)]
        self._check_ready()

    def __len__(self) -> int:
        return len(self._links)

    def _link(self, address: str, connection: Connection | None) -> _Link:
        settings = self._settings
        detector = FailureDetector(settings.heartbeat, settings.dead_after, self._now())
        return _Link(address, connection, detector)

    # --- who is there

    def join(self, call: Call, request: JoinShard) -> None:
        """Give a server its number, or its former one back.

        Raises:
            BadRequest: the number asked for is out of range or taken, or all are, or it has one already,
                or it holds the state of another cluster.
        """
        if self._number_of(call.connection) is not None:
            raise BadRequest("this connection's server has joined", field="shard", value=request.shard)
        if request.cluster not in (None, self._cluster):
            raise BadRequest(
                "the server holds the state of a cluster that is gone; start it anew",
                field="cluster",
                value=request.cluster,
            )
        host = request.host or call.connection.peer.rpartition(":")[0]
        link = self._link(f"{host}:{request.port}", call.connection)
        shard = self._number_for(request)
        before = self._links[shard]
        if before is not None:
            link.load = before.load
            link.open = before.open
            if before.connection is not None:
                before.connection.abort()
        self._links[shard] = link
        call.reply(ShardJoined(shard, len(self._links), self._cluster, self._settings.heartbeat))
        _log.info("shard %d %s from %s", shard, "is back" if before else "joined", link.address)
        for message in self._missed():
            self._tell(call.connection, message)
        link.open.set()
        self._check_ready()

    def _number_for(self, request: JoinShard) -> int:
        free = [number for number, link in enumerate(self._links) if link is None]
        shard = request.shard if request.shard is not None else (free[0] if free else None)
        if shard is None:
            raise BadRequest(
                "the cluster is complete; start the coordinator with more --shards",
                field="shards",
                value=len(self._links),
            )
        returns = request.cluster is not None and 0 < shard < len(self._links)
        if shard not in free and not returns:
            raise BadRequest(
                f"that number is taken or not below --shards {len(self._links)}", field="shard", value=shard
            )
        return shard

    def _check_ready(self) -> None:
        if all(self._links):
            self.ready.set()

    def _number_of(self, connection: Connection) -> int | None:
        for number, link in enumerate(self._links):
            if link is not None and link.connection is connection:
                return number
        return None

    def number_of(self, connection: Connection) -> int:
        """Return the number of the server at the other end.

        Raises:
            BadRequest: it has not joined.
        """
        number = self._number_of(connection)
        if number is None:
            raise BadRequest("only servers of the cluster may say this", field="op", value="(shard)")
        return number

    def lost(self, connection: Connection) -> None:
        """Take note that a connection has ended; if it was a server's, it may come back."""
        number = self._number_of(connection)
        if number is None:
            return
        link = self._links[number]
        assert link is not None  # noqa: S101 (it has a number)
        if self.ready.is_set():
            link.open.clear()
            link.waits = ()
            _log.warning(
                "shard %d at %s is gone; what needs it waits until it comes back", number, link.address
            )
        else:
            self._links[number] = None  # nothing is there yet: another server may take the number
            _log.info("shard %d at %s is gone before the cluster was complete", number, link.address)

    def heartbeat(self, connection: Connection, waits: tuple[Wait, ...]) -> None:
        """Take note that a server lives, and of who waits there."""
        link = self._links[self.number_of(connection)]
        assert link is not None  # noqa: S101 (it has a number)
        link.detector.beat(self._now())
        link.waits = waits
        if link.suspect:
            link.suspect = False
            _log.info("shard at %s is heard of again", link.address)

    def watch(self, now: float) -> None:
        """Suspect servers that are silent, and hang up on those that are for too long: they may come back."""
        for number, link in enumerate(self._links):
            if link is None or link.connection is None or not link.connection.is_open:
                continue
            if now >= link.detector.dead_at:
                _log.warning("shard %d at %s is silent; hanging up on it", number, link.address)
                link.connection.abort()
            elif now >= link.detector.suspect_at and not link.suspect:
                link.suspect = True
                _log.warning("shard %d at %s is late with its heartbeat", number, link.address)

    def excuse(self, seconds: float, now: float) -> None:
        """Do not hold ``seconds`` of silence against anybody."""
        for link in self._links:
            if link is not None:
                link.detector.excuse(seconds, now)

    def all_open(self) -> bool:
        """Return whether no server is away."""
        return all(
            link is not None and (link.connection is None or link.connection.is_open) for link in self._links
        )

    # --- what they are told

    async def announce(self, epoch: Epoch) -> None:
        """Tell every shard a job's epoch, and return when all follow it, however long one is away."""
        self._own.follow(epoch)
        links = [link for link in self._links if link is not None and link.connection is not None]
        # Sent at once, so that decisions and epochs arrive in the order in which they were made.
        sent = [self._tell(link.connection, epoch) for link in links if link.connection]
        for link, acknowledged in zip(links, sent, strict=True):
            await self._followed(link, acknowledged, epoch)

    async def _followed(self, link: _Link, acknowledged: Answer | None, epoch: Epoch) -> None:
        while True:
            try:
                if acknowledged is not None:
                    await acknowledged
                    return
            except (ConnectionLost, ShuttingDown):
                acknowledged = None
            await asyncio.sleep(0)  # a connection that is just ending may still count as open
            await link.open.wait()
            current = next(one for one in self._links if one is not None and one.open is link.open)
            acknowledged = self._tell(current.connection, epoch)

    def decide(self, decision: Decide) -> None:
        """Tell every shard whose gradients a step contains."""
        self._own.decide(decision)
        for link in self._links:
            if link is not None and link.connection is not None:
                link.connection.notify(decision)

    @staticmethod
    def _tell(connection: Connection | None, message: Decide | Epoch) -> Answer | None:
        if connection is None or not connection.is_open:
            return None
        if isinstance(message, Decide):
            connection.notify(message)
            return None
        payload = EPOCH.encode(message)
        request: Request = Announce(EPOCH.parts(payload))
        answer = connection.send(request, (payload,))
        answer.add_done_callback(_look_at)
        return answer

    # --- where things are

    def addresses(self) -> tuple[str, ...]:
        """Return every server's address; the coordinator's is "": the one that was dialled."""
        return tuple(link.address if link else "" for link in self._links)

    def loads(self) -> list[int]:
        """Return the bytes of parameters placed on each server."""
        return [link.load if link else 0 for link in self._links]

    def place(self, shard: int, nbytes: int) -> None:
        """Note that so many bytes more are placed on a server."""
        link = self._links[shard]
        assert link is not None  # noqa: S101 (tensors are made once all have joined)
        link.load += nbytes

    def waits(self) -> list[Wait]:
        """Return who waits on the servers, as they last told, and on the coordinator's own shard."""
        told = [wait for link in self._links if link is not None for wait in link.waits]
        return [*self._own.waits(), *told]

    def status(self) -> tuple[ShardStatus, ...]:
        """Return what is known of each server."""
        return tuple(self._status(number, link) for number, link in enumerate(self._links))

    def _status(self, number: int, link: _Link | None) -> ShardStatus:
        if link is None:
            return ShardStatus(number, "", "joining", 0, 0.0)
        if link.connection is None:
            return ShardStatus(number, self.own_address, "ready", link.load, 0.0)
        state = "lost" if not link.connection.is_open else "suspect" if link.suspect else "ready"
        return ShardStatus(
            number, link.address, state, link.load, max(0.0, self._now() - link.detector.heard)
        )


def _look_at(answer: Answer) -> None:
    """Retrieve an error that may come after nobody waits any more: the link is taken up again."""
    if not answer.cancelled():
        answer.exception()
