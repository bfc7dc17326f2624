"""The coordinator's links to the shards: who is which number, what they are told, and who is silent."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy.typing as npt

from protocol.connection import Answer, Connection
from protocol.documents import EPOCH, KEPT
from protocol.errors import BadRequest, ConnectionLost, ShuttingDown
from protocol.events import about
from protocol.messages import Announce, Decide, Epoch, JoinShard, Keep, KeptJobs, Request, ShardJoined
from protocol.status import Load, ShardStatus, Wait, Waits
from psserver.call import Call
from psserver.failure import FailureDetector
from psserver.history import Recent
from psserver.membership import FailureSettings
from psserver.shard import Shard

__all__ = ["SHARD_STATES", "ShardLinks"]

_log = logging.getLogger(__name__)

_POINTS: Final = 120
"""Stretches of time, each of a heartbeat, that a server's requests are told of."""

State = Literal["joining", "ready", "suspect", "lost"]

SHARD_STATES: Final = get_args(State)


@dataclass(slots=True)
class _Link:
    """A server of the cluster; ``connection`` is None for the coordinator's own shard."""

    address: str
    connection: Connection | None
    detector: FailureDetector
    open: asyncio.Event = field(default_factory=asyncio.Event)
    suspect: bool = False
    waits: tuple[Wait, ...] = ()
    problem: str = ""
    load: Load = field(default_factory=Load)


class ShardLinks:
    """The servers of a cluster, the coordinator's own shard first.

    Args:
        own: shard 0.
        count: how many servers make the cluster.
        cluster: the name of this cluster; a server with another's state is refused.
        settings: when silence is death.
        kept: returns which jobs a server keeps that it has.
        missed: returns what a server that was away may have missed of them.
        has_jobs: returns whether there is any state that a server would have to have.
        now: seconds, monotonic.

    Attributes:
        ready: set once all have joined.
        own_address: the coordinator's, for the status.
        cluster: the name of this cluster.
        timeline: of its state.
        durability: what all servers keep. Unless nothing, one that has died may come back without its state.
        known: servers with these numbers have been here, and know their numbers if they come back.
        must_load: some server has not the state that it should have: all have to load a checkpoint.
        metrics_port: where the coordinator's status page is; None: nowhere.
    """

    def __init__(
        self,
        own: Shard,
        count: int,
        cluster: str,
        settings: FailureSettings,
        kept: Callable[[], KeptJobs],
        missed: Callable[[], Iterable[Decide | Epoch]],
        has_jobs: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        self.ready = asyncio.Event()
        self.own_address = ""
        self._own = own
        self.cluster = cluster
        self.timeline = 1
        self.durability = "none"
        self.known = 0
        self.must_load = False
        self.metrics_port: int | None = None
        self._settings = settings
        self._kept = kept
        self._missed = missed
        self._has_jobs = has_jobs
        self._now = now
        self._links: list[_Link | None] = [self._link("", None), *[None] * (count - 1)]
        self._loads = [0] * count  # bytes of parameters placed there
        self._requests = [Recent(settings.heartbeat, _POINTS) for _ in range(count)]  # a second
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
        if request.cluster not in (None, self.cluster):
            raise BadRequest(
                "the server holds the state of a cluster that is gone; start it anew",
                field="cluster",
                value=request.cluster,
            )
        if request.durability != self.durability:
            raise BadRequest(
                f"the coordinator was started with {_flags(self.durability)}; start all servers alike",
                field="durability",
                value=request.durability,
            )
        host = request.host or call.connection.peer.rpartition(":")[0]
        link = self._link(f"{host}:{request.port}", call.connection)
        shard = self._number_for(request)
        before = self._links[shard]
        if before is not None:
            link.open = before.open
            if before.connection is not None:
                before.connection.abort()
        self._links[shard] = link
        self._check_state(shard, request, returns=before is not None)
        joined = (shard, len(self._links), self.cluster, self._settings.heartbeat, self.timeline)
        call.reply(ShardJoined(*joined, self.must_load, self.metrics_port))
        _log.info(
            "shard %d %s from %s", shard, "is back" if before else "joined", link.address,
            extra=about("shard.joined", about_shard=shard),
        )  # fmt: skip
        if not self.must_load:
            self._ask_to_keep(call.connection, self._kept())
            for message in self._missed():
                self._tell(call.connection, message)
        link.open.set()
        self._check_ready()

    def _number_for(self, request: JoinShard) -> int:
        free = [number for number, link in enumerate(self._links) if link is None]
        free.sort(key=lambda number: number < self.known)  # who has no number yet is new
        if self._keeps_state:
            free += [number for number in range(1, len(self._links)) if self._is_away(number)]
        shard = request.shard if request.shard is not None else (free[0] if free else None)
        if shard is None:
            raise BadRequest(
                "the cluster is complete; start the coordinator with more --shards",
                field="shards",
                value=len(self._links),
            )
        known = request.cluster is not None or (self._keeps_state and self._is_away(shard))
        returns = known and 0 < shard < len(self._links)
        if shard not in free and not returns:
            raise BadRequest(
                f"that number is taken or not below --shards {len(self._links)}", field="shard", value=shard
            )
        return shard

    @property
    def _keeps_state(self) -> bool:
        return self.durability != "none"

    def _is_away(self, shard: int) -> bool:
        link = self._links[shard] if 0 < shard < len(self._links) else None
        return link is not None and link.connection is not None and not link.connection.is_open

    def _check_state(self, shard: int, request: JoinShard, *, returns: bool) -> None:
        """See whether a server that joins has the state that it should have."""
        if request.timeline == self.timeline or self.must_load:
            return
        if request.timeline or returns or self._has_jobs():
            _log.warning(
                "shard %d comes with the state of timeline %d, not %d: all go back to a checkpoint",
                shard, request.timeline, self.timeline, extra=about("shard.outdated", about_shard=shard),
            )  # fmt: skip
            self.must_load = True

    async def all_there(self) -> None:
        """Return when no server is away."""
        await self.ready.wait()
        for link in tuple(self._links):
            if link is not None and link.connection is not None:
                await link.open.wait()

    def _check_ready(self) -> None:
        if all(self._links):
            self.ready.set()

    def find(self, connection: Connection) -> int | None:
        """Return the number of the server at the other end, if it is one."""
        return self._number_of(connection)

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
                "shard %d at %s is gone; what needs it waits until it comes back", number, link.address,
                extra=about("shard.lost", about_shard=number),
            )  # fmt: skip
        else:
            self._links[number] = None  # nothing is there yet: another server may take the number
            _log.info(
                "shard %d at %s is gone before the cluster was complete", number, link.address,
                extra=about("shard.lost", about_shard=number),
            )  # fmt: skip

    def heartbeat(self, connection: Connection, told: Waits) -> None:
        """Take note that a server lives, and of what it tells."""
        number = self.number_of(connection)
        link = self._links[number]
        assert link is not None  # noqa: S101 (it has a number)
        link.detector.beat(self._now())
        link.waits, link.problem, link.load = told.waits, told.problem, told.load
        if link.suspect:
            link.suspect = False
            _log.info(
                "shard %d at %s is heard of again", number, link.address,
                extra=about("shard.heard", about_shard=number),
            )  # fmt: skip

    def watch(self, now: float) -> None:
        """Suspect servers that are silent, and hang up on those that are for too long: they may come back."""
        for number, link in enumerate(self._links):
            if link is None or link.connection is None or not link.connection.is_open:
                continue
            if now >= link.detector.dead_at:
                _log.warning(
                    "shard %d at %s is silent; hanging up on it", number, link.address,
                    extra=about("shard.late", about_shard=number),
                )  # fmt: skip
                link.connection.abort()
            elif now >= link.detector.suspect_at and not link.suspect:
                link.suspect = True
                _log.warning(
                    "shard %d at %s is late with its heartbeat", number, link.address,
                    extra=about("shard.late", about_shard=number),
                )  # fmt: skip

    def excuse(self, seconds: float, now: float) -> None:
        """Do not hold ``seconds`` of silence against anybody."""
        for link in self._links:
            if link is not None:
                link.detector.excuse(seconds, now)

    def all_open(self) -> bool:
        """Return whether no server is away."""
        return not self.away()

    def away(self) -> list[int]:
        """Return which servers have not joined, or are away."""
        return [
            shard
            for shard, link in enumerate(self._links)
            if link is None or (link.connection is not None and not link.connection.is_open)
        ]

    # --- what they are told

    def announce(self, epoch: Epoch, is_over: Callable[[], bool]) -> Coroutine[Any, Any, None]:
        """Tell every shard a job's epoch; await what is returned until all follow it, even if one is away.

        They are told at once, so that decisions and epochs arrive in the order in which they were made.
        When the job ``is_over``, nobody is told any more, nor waited for.
        """
        self._own.follow(epoch)
        links = [link for link in self._links if link is not None and link.connection is not None]
        sent = [self._tell(link.connection, epoch) for link in links if link.connection]
        return self._all_followed(links, sent, epoch, is_over)

    async def _all_followed(
        self,
        links: Sequence[_Link],
        sent: Sequence[Answer | None],
        epoch: Epoch,
        is_over: Callable[[], bool],
    ) -> None:
        for link, acknowledged in zip(links, sent, strict=True):
            await self._followed(link, acknowledged, epoch, is_over)

    async def _followed(
        self, link: _Link, acknowledged: Answer | None, epoch: Epoch, is_over: Callable[[], bool]
    ) -> None:
        while not is_over():
            try:
                if acknowledged is not None:
                    await acknowledged
                    return
            except (ConnectionLost, ShuttingDown):
                acknowledged = None
            await asyncio.sleep(0)  # a connection that is just ending may still count as open
            await link.open.wait()
            if is_over():
                return
            current = next(one for one in self._links if one is not None and one.open is link.open)
            acknowledged = self._tell(current.connection, epoch)

    def decide(self, decision: Decide) -> None:
        """Tell every shard whose gradients a step contains."""
        self._own.decide(decision)
        for link in self._links:
            if link is not None and link.connection is not None:
                link.connection.notify(decision)

    def keep(self, kept: KeptJobs) -> Coroutine[Any, Any, tuple[int, tuple[int, ...]]]:
        """Tell every shard which jobs to keep, at once; it forgets all others.

        Returns:
            What is to be awaited: the bytes of memory that this has freed, when it is durable, and which
            servers are away; they are told when they are back.
        """
        dropped, freed = self._own.keep(kept)
        self._own.journal.drop(dropped, lambda: None)
        links = [(number, link) for number, link in enumerate(self._links) if link is not None]
        others = [(number, link.connection) for number, link in links if link.connection is not None]
        return self._all_kept(freed, [(number, self._ask_to_keep(other, kept)) for number, other in others])

    @staticmethod
    async def _all_kept(
        freed: int, asked: Sequence[tuple[int, Answer | None]]
    ) -> tuple[int, tuple[int, ...]]:
        away = []
        for number, answer in asked:
            if answer is None:
                away.append(number)
                continue
            try:
                freed += (await answer)[0].bytes
            except (ConnectionLost, ShuttingDown):
                away.append(number)
        return freed, tuple(away)

    @staticmethod
    def _ask_to_keep(connection: Connection, kept: KeptJobs) -> Answer | None:
        if not connection.is_open:
            return None
        payload = KEPT.encode(kept)
        answer = connection.send(Keep(KEPT.parts(payload)), (payload,))
        answer.add_done_callback(_look_at)
        return answer

    async def ask_all(self, request: Request, payload: Sequence[npt.NDArray[Any]] = ()) -> None:
        """Send a request to every other server, and return when all have answered.

        Raises:
            PSError: one of them refuses, or is away.
        """
        await self.ask_each([(request, payload)] * (len(self._links) - 1))

    async def ask_each(self, requests: Sequence[tuple[Request, Sequence[npt.NDArray[Any]]]]) -> None:
        """Send one of these requests to each server from number 1 on; as ``ask_all``."""
        answers = []
        for link, (request, payload) in zip(self._links[1:], requests, strict=True):
            if link is None or link.connection is None or not link.connection.is_open:
                raise ConnectionLost("a shard is away", field="op", value=request.op)
            answers.append(link.connection.send(request, payload))
        for answer in answers:
            answer.add_done_callback(_look_at)
        for answer in answers:
            await answer

    def notify_all(self, request: Request) -> None:
        """Tell every other server that is there."""
        for link in self._links:
            if link is not None and link.connection is not None:
                link.connection.notify(request)

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
        return list(self._loads)

    def place(self, shard: int, nbytes: int) -> None:
        """Note that so many bytes more are placed on a server."""
        self._loads[shard] += nbytes

    def place_all(self, load: Mapping[int, int]) -> None:
        """Note how many bytes are placed on each server, of all that there is."""
        for shard in range(len(self._links)):
            self._loads[shard] = load.get(shard, 0)

    def waits(self) -> list[Wait]:
        """Return who waits on the servers, as they last told, and on the coordinator's own shard."""
        told = [wait for link in self._links if link is not None for wait in link.waits]
        return [*self._own.waits(), *told]

    def note_history(self, now: float) -> None:
        """Have the curves go on of the servers that are there."""
        for link, requests in zip(self._links, self._requests, strict=True):
            if link is not None and link.connection is None:
                requests.note(now, self._own.latest_load.requests_per_second)
            elif link is not None and link.connection is not None and link.connection.is_open:
                requests.note(now, link.load.requests_per_second)

    def status(self) -> tuple[ShardStatus, ...]:
        """Return what is known of each server."""
        return tuple(self._status(number, link) for number, link in enumerate(self._links))

    def states(self) -> Counter[str]:
        """Return how many servers are in each state; may be called from another thread."""
        return Counter(_state(link) for link in self._links)

    def _status(self, number: int, link: _Link | None) -> ShardStatus:
        if link is None:
            return ShardStatus(number, "", "joining", 0, 0.0)
        placed, now = self._loads[number], self._now()
        past = self._requests[number].curve(now)
        if link.connection is None:
            told = (self._own.log_problem, self._own.load(), past)
            return ShardStatus(number, self.own_address, "ready", placed, 0.0, *told)
        state = _state(link)
        silent = max(0.0, now - link.detector.heard)
        return ShardStatus(number, link.address, state, placed, silent, link.problem, link.load, past)


def _state(link: _Link | None) -> State:
    if link is None:
        return "joining"
    if link.connection is not None and not link.connection.is_open:
        return "lost"
    return "suspect" if link.suspect else "ready"


def _flags(durability: str) -> str:
    return f"--durability {durability}{' and a --checkpoint-dir' if durability != 'none' else ''}"


def _look_at(answer: Answer) -> None:
    """Retrieve an error that may come after nobody waits any more: the link is taken up again."""
    if not answer.cancelled():
        answer.exception()
