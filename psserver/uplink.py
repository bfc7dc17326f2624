"""A shard's link to its coordinator: joined once, taken up again whenever it breaks, given up in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import protocol
from protocol.auth import Token
from protocol.backoff import Backoff
from protocol.connection import Array, Connection
from protocol.documents import WAITS
from protocol.errors import ConnectionLost, PSError, Unreachable
from protocol.events import about
from protocol.frames import VERSION
from protocol.greeting import say_hello
from protocol.messages import Ended, Hello, JoinShard, Request, ShardBeat, ShardJoined
from protocol.status import Waits

__all__ = ["Uplink", "UplinkSettings"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UplinkSettings:
    """How a shard joins: as ``offer`` says; it then tries again for ``reconnect_for`` seconds."""

    offer: JoinShard
    reconnect_for: float
    answer_within: float


class Uplink:
    """The link of one shard.

    Args:
        dial: connects to the coordinator; raises ``Unreachable``.
        settings: how to join, and how long to try again.
        waits: returns who waits here, for the heartbeat.
        returned: called when the link has been taken up again.
        holds: returns which cluster's state this shard has, of which timeline, and whether some may be lost.
        token: returns what it proves to know; None: there are no tokens.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Connection]],
        settings: UplinkSettings,
        waits: Callable[[], Waits],
        returned: Callable[[ShardJoined], Awaitable[None]],
        holds: Callable[[], tuple[str, int, bool]],
        token: Callable[[], Token | None] = lambda: None,
    ) -> None:
        self._dial = dial
        self._settings = settings
        self._waits = waits
        self._returned = returned
        self._holds = holds
        self._token = token
        self._connection: Connection | None = None
        self._joined: ShardJoined | None = None

    @property
    def is_open(self) -> bool:
        """Whether the coordinator is there, as far as is known."""
        return self._connection is not None and self._connection.is_open

    @property
    def heartbeat(self) -> float:
        """Seconds between two heartbeats, as the coordinator says; 0: it has not said so yet."""
        return 0.0 if self._joined is None else self._joined.heartbeat

    def is_at(self, connection: Connection) -> bool:
        """Return whether this is the connection to the coordinator."""
        return connection is self._connection

    async def join(self) -> ShardJoined:
        """Connect, and become a shard, or the same one again.

        Raises:
            Unreachable, ConnectionLost: the coordinator does not answer.
            PSError: it refuses.
        """
        within = self._settings.answer_within
        try:
            async with asyncio.timeout(within):
                return await self._join()
        except TimeoutError:
            raise Unreachable(f"the coordinator does not answer within {within:g} s", field="join") from None

    async def _join(self) -> ShardJoined:
        connection = await self._dial()
        try:
            await say_hello(connection, Hello((VERSION,), f"psserver/{protocol.__version__}"), self._token())
            connection.greeted = True  # and not before: it might be anybody
            self._connection = connection  # from the next reply on the coordinator tells epochs
            joined: ShardJoined
            joined, _ = await connection.request(self._offer())
        except BaseException:
            connection.abort()
            raise
        self._joined = joined
        return joined

    def _offer(self) -> JoinShard:
        offer, joined = self._settings.offer, self._joined
        cluster, timeline, lost = self._holds()
        if joined is None:
            return replace(offer, cluster=cluster or None, timeline=timeline, lost=lost)
        return replace(offer, shard=joined.shard, cluster=joined.cluster, timeline=timeline)

    async def request(self, request: Request, payload: Sequence[Array] = ()) -> tuple[Any, Sequence[Array]]:
        """Ask the coordinator.

        Raises:
            PSError: what it answers, or ``ConnectionLost``.
        """
        if self._connection is None:
            raise ConnectionLost("the coordinator is away", field="op", value=request.op)
        return await self._connection.request(request, payload)

    def tell(self, report: Ended) -> None:
        """Tell the coordinator who has ended a step; what it misses is told again when the link is back."""
        if self._connection is not None:
            self._connection.notify(report)

    async def keep(self) -> None:
        """Send heartbeats, and take the link up again when it breaks.

        Raises:
            Unreachable: the coordinator has not answered for as long as is tried.
            PSError: it refuses: it is another one than before.
        """
        while True:
            await self._beat()
            await self._returned(await self.try_to_join())

    async def _beat(self) -> None:
        """Send heartbeats until one is not answered."""
        assert self._connection is not None  # noqa: S101 (joined before)
        assert self._joined is not None  # noqa: S101
        while self._connection.is_open:
            payload = WAITS.encode(self._waits())
            try:
                async with asyncio.timeout(self._settings.answer_within):
                    await self._connection.request(ShardBeat(WAITS.parts(payload)), (payload,))
            except (TimeoutError, ConnectionLost) as error:
                _log.warning(
                    "the coordinator does not answer: %s", error or "timeout", extra=about("coordinator.lost")
                )
                self._connection.abort()
                return
            await asyncio.sleep(self._joined.heartbeat)

    async def try_to_join(self, last: PSError | None = None) -> ShardJoined:
        """Join, trying again while the coordinator does not answer.

        Args:
            last: why it did not work just now, if it was tried.

        Raises:
            Unreachable: it has not answered for as long as is tried.
            PSError: it refuses.
        """
        loop, backoff = asyncio.get_running_loop(), Backoff()
        deadline = loop.time() + self._settings.reconnect_for
        _log.warning(
            "the coordinator does not answer; trying for %g s", self._settings.reconnect_for,
            extra=about("coordinator.lost"),
        )  # fmt: skip
        while loop.time() < deadline:
            await asyncio.sleep(backoff.pause(deadline - loop.time()))
            try:
                joined = await self.join()
            except (Unreachable, ConnectionLost) as error:
                _log.debug("the coordinator does not answer yet: %s", error)
                last = error
                continue
            _log.info("the link to the coordinator is back", extra=about("coordinator.back"))
            return joined
        gone = "the coordinator is gone; this shard cannot go on without it"
        if last is None:
            raise Unreachable(gone)
        raise Unreachable(f"{gone}: {last.message}", field=last.field, value=last.value)
