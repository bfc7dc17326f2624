"""A shard's link to its coordinator, against a coordinator that behaves as the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.connection import Connection, RefuseAll, Traffic, dial
from protocol.documents import WAITS
from protocol.errors import BadRequest, ConnectionLost, PSError, Unreachable
from protocol.frames import VERSION
from protocol.messages import Empty, Ended, Hello, JoinShard, Reply, ShardBeat, ShardJoined, Welcome
from protocol.status import Wait, Waits
from psserver.uplink import Uplink, UplinkSettings
from tests.cluster import MAX_PAYLOAD

Array = npt.NDArray[Any]

OFFER = JoinShard(1234, "shard.example", 3)
JOINED = ShardJoined(3, 5, "the-cluster", 0.005, timeline=2)
WAIT = Wait("job", 3, "step 1", 2, ("slow",), 0.5)
BUDGET = 30.0  # seconds; more than any test takes


class CoordinatorByHand:
    """Answers what an uplink asks, save what is of the class ``mute``; ``refusal`` is what joining gets."""

    def __init__(self) -> None:
        self.offers: list[JoinShard] = []
        self.reports: list[Ended] = []
        self.waits: list[Waits] = []
        self.connections: list[Connection] = []
        self.mute: type | None = None
        self.refusal: PSError | None = None
        self._changed = asyncio.Event()

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        if isinstance(request, ShardBeat):
            return [np.empty(request.tensors[0].elements, np.uint8)]
        return ()

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        self._changed.set()
        if isinstance(request, ShardBeat):
            self.waits.append(WAITS.decode(arrays[0]))
        elif isinstance(request, JoinShard):
            self.offers.append(request)
        elif isinstance(request, Ended):
            self.reports.append(request)
        if isinstance(request, JoinShard) and self.refusal is not None:
            connection.fail(request_id, request.op, self.refusal)
        elif type(request) is not self.mute:
            connection.reply(request_id, self._answer(request))

    @staticmethod
    def _answer(request: Any) -> Reply:
        if isinstance(request, Hello):
            return Welcome(VERSION, "test", 0, JOINED.shards, MAX_PAYLOAD)
        return JOINED if isinstance(request, JoinShard) else Empty()

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        """The test knows."""

    def lost(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self._changed.set()

    def accept(self) -> Connection:
        connection = Connection(self, max_payload=MAX_PAYLOAD, traffic=Traffic(), server=True)
        self.connections.append(connection)
        return connection

    async def until(self, condition: "Callable[[CoordinatorByHand], bool]") -> None:
        while not condition(self):
            self._changed.clear()
            await self._changed.wait()


class Shard:
    """An uplink and what it called; ``failures`` are what the next attempts to dial come to.

    ``holds`` is the state that it says that it has.
    """

    def __init__(self, address: tuple[str, int], reconnect_for: float, answer_within: float) -> None:
        self.failures: list[Exception] = []
        self.dialled = 0
        self.returned: list[ShardJoined] = []
        self.holds = ("", 0, False)
        self.taken_up = asyncio.Event()  # what it does on its return takes no longer than until then
        self.taken_up.set()
        self._address = address
        settings = UplinkSettings(OFFER, reconnect_for, answer_within)
        self.uplink = Uplink(
            self._dial, settings, lambda: Waits((WAIT,)), self._note_return, lambda: self.holds
        )

    async def _dial(self) -> Connection:
        self.dialled += 1
        if self.failures:
            raise self.failures.pop(0)
        return await dial(*self._address, RefuseAll(), max_payload=MAX_PAYLOAD, traffic=Traffic())

    async def _note_return(self, joined: ShardJoined) -> None:
        await self.taken_up.wait()
        self.returned.append(joined)


@asynccontextmanager
async def coordinator_and_shard(
    reconnect_for: float = BUDGET, answer_within: float = BUDGET
) -> AsyncIterator[tuple[CoordinatorByHand, Shard]]:
    coordinator = CoordinatorByHand()
    server = await asyncio.get_running_loop().create_server(coordinator.accept, "127.0.0.1", 0)
    shard = Shard(server.sockets[0].getsockname()[:2], reconnect_for, answer_within)
    try:
        yield coordinator, shard
    finally:
        server.close()
        for connection in tuple(coordinator.connections):
            connection.abort()
            await connection.wait_closed()
        await server.wait_closed()


@asynccontextmanager
async def kept(shard: Shard) -> AsyncIterator[asyncio.Task[None]]:
    """The task that keeps a link that has been joined."""
    await shard.uplink.join()
    keeping = asyncio.create_task(shard.uplink.keep())
    try:
        yield keeping
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def unreachable() -> Unreachable:
    return Unreachable("nobody is there", field="join")


async def until_heard(coordinator: CoordinatorByHand, heartbeats: int) -> None:
    """Return when so many more heartbeats have arrived."""
    goal = len(coordinator.waits) + heartbeats
    await coordinator.until(lambda c: len(c.waits) >= goal)


async def until_offered(coordinator: CoordinatorByHand, times: int) -> None:
    await coordinator.until(lambda c: len(c.offers) >= times)


# --- joining


async def test_a_shard_offers_itself_once_and_then_keeps_sending_heartbeats() -> None:
    async with coordinator_and_shard() as (coordinator, shard), kept(shard):
        await until_heard(coordinator, 3)
        assert coordinator.offers == [OFFER]
        assert set(coordinator.waits) == {Waits((WAIT,))}
        assert shard.uplink.is_open
        assert (shard.dialled, shard.returned) == (1, [])


async def test_joining_once_is_not_tried_again() -> None:
    async with coordinator_and_shard() as (coordinator, shard):
        assert not shard.uplink.is_open
        shard.failures = [unreachable()]
        with pytest.raises(Unreachable):
            await shard.uplink.join()
        coordinator.refusal = BadRequest("the cluster is complete", field="shards", value=5)
        with pytest.raises(BadRequest) as caught:
            await shard.uplink.join()
        assert (caught.value.field, caught.value.value) == ("shards", "5")
        await coordinator.until(lambda c: not c.connections)
        assert not shard.uplink.is_open
        coordinator.refusal = None
        assert await shard.uplink.join() == JOINED


@pytest.mark.parametrize("mute", [Hello, JoinShard])
async def test_a_coordinator_that_takes_connections_but_does_not_answer_is_unreachable(mute: type) -> None:
    async with coordinator_and_shard(answer_within=0.2) as (coordinator, shard):
        coordinator.mute = mute
        with pytest.raises(Unreachable, match="does not answer"):
            await shard.uplink.join()
        await coordinator.until(lambda c: not c.connections)


async def test_a_shard_says_which_state_it_has_and_whether_some_may_be_lost() -> None:
    async with coordinator_and_shard() as (coordinator, shard):
        shard.holds = ("of-its-disk", 7, True)
        async with kept(shard):
            shard.holds = ("of-its-disk", 2, True)  # what it was lost is made good by joining
            coordinator.connections[0].abort()
            await until_offered(coordinator, 2)
        first = replace(OFFER, cluster="of-its-disk", timeline=7, lost=True)
        again = replace(OFFER, shard=JOINED.shard, cluster=JOINED.cluster, timeline=2)
        assert coordinator.offers == [first, again]


# --- taking it up again


async def test_no_heartbeat_is_sent_before_its_return_has_been_dealt_with() -> None:
    async with coordinator_and_shard() as (coordinator, shard), kept(shard):
        await until_heard(coordinator, 1)
        shard.taken_up.clear()
        coordinator.connections[0].abort()
        await until_offered(coordinator, 2)
        heard = len(coordinator.waits)
        await shard.uplink.request(Ended("job", 0, (), ()))  # answered after whatever was sent before it
        assert len(coordinator.waits) == heard
        shard.taken_up.set()
        await until_heard(coordinator, 1)
        assert shard.returned == [JOINED]


async def test_a_link_that_breaks_is_taken_up_again_as_the_same_shard_of_the_same_cluster() -> None:
    async with coordinator_and_shard() as (coordinator, shard), kept(shard):
        for times in range(1, 4):
            await until_heard(coordinator, 1)
            coordinator.connections[0].abort()
            await until_offered(coordinator, 1 + times)
        again = replace(OFFER, shard=JOINED.shard, cluster=JOINED.cluster)
        assert coordinator.offers == [OFFER, again, again, again]
        await until_heard(coordinator, 2)
        assert shard.returned == [JOINED] * 3


async def test_nobody_answering_for_a_while_does_not_end_it() -> None:
    async with coordinator_and_shard() as (coordinator, shard), kept(shard):
        shard.failures = [unreachable(), ConnectionLost("it ended"), unreachable()]
        coordinator.connections[0].abort()
        await until_offered(coordinator, 2)
        assert shard.dialled == 5


async def test_a_heartbeat_that_is_not_answered_ends_the_connection_not_the_link() -> None:
    async with coordinator_and_shard(answer_within=0.2) as (coordinator, shard), kept(shard):
        await until_heard(coordinator, 1)
        coordinator.mute = ShardBeat
        await until_offered(coordinator, 2)
        coordinator.mute = None
        await until_heard(coordinator, 4)
        assert shard.uplink.is_open


@pytest.mark.parametrize("mute", [None, Hello])
async def test_a_coordinator_that_stays_away_is_given_up_in_the_end(mute: type | None) -> None:
    async with (
        coordinator_and_shard(reconnect_for=0.1, answer_within=0.2) as (coordinator, shard),
        kept(shard) as keeping,
    ):
        await until_heard(coordinator, 1)
        coordinator.mute = mute
        shard.failures = [] if mute else [unreachable() for _ in range(10_000)]
        coordinator.connections[0].abort()
        with pytest.raises(Unreachable, match="coordinator is gone"):
            await keeping
        assert not shard.uplink.is_open
        assert shard.returned == []


async def test_another_cluster_at_the_address_ends_it_at_once() -> None:
    async with coordinator_and_shard() as (coordinator, shard), kept(shard) as keeping:
        coordinator.refusal = BadRequest(
            "the server holds the state of a cluster that is gone", field="cluster"
        )
        coordinator.connections[0].abort()
        with pytest.raises(BadRequest):
            await keeping
        assert len(coordinator.offers) == 2
        assert not shard.uplink.is_open


# --- reports


async def test_what_is_told_while_the_link_is_broken_is_lost_without_harm() -> None:
    """The shard tells all of it again when it is called back."""
    async with coordinator_and_shard() as (coordinator, shard):
        report = Ended("job", 4, (0, 1), (1,))
        shard.uplink.tell(report)
        async with kept(shard):
            shard.uplink.tell(report)
            await coordinator.until(lambda c: c.reports == [report])
            coordinator.connections[0].abort()
            await coordinator.until(lambda c: not c.connections)
            shard.uplink.tell(report)
            await until_offered(coordinator, 2)
            shard.uplink.tell(report)
            await coordinator.until(lambda c: len(c.reports) >= 2)
            assert coordinator.reports == [report] * 2


async def test_only_the_connection_to_the_coordinator_is_believed_to_be_it() -> None:
    async with coordinator_and_shard() as (coordinator, shard), kept(shard):
        first = shard.uplink._connection
        assert first is not None
        assert shard.uplink.is_at(first)
        coordinator.connections[0].abort()
        await until_offered(coordinator, 2)
        assert not shard.uplink.is_at(first)
