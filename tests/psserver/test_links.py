"""The coordinator's links to its shards, seen by a shard that answers when the test says so."""

import asyncio
import gc
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.connection import Answer, Connection, Traffic, dial
from protocol.documents import EPOCH, WAITS
from protocol.errors import BadRequest, ConnectionLost, PSError
from protocol.messages import (
    Announce,
    Decide,
    Empty,
    Ended,
    Epoch,
    Join,
    JoinShard,
    Keep,
    Kept,
    Request,
    Set,
    ShardBeat,
    ShardJoined,
)
from protocol.status import Load, Wait, Waits
from psserver.coordinator import Coordinator
from psserver.links import ShardLinks
from psserver.membership import FailureSettings
from psworker.asking import change
from tests.cluster import MAX_PAYLOAD, PATIENT, Cluster, connected, hello, running_cluster

Array = npt.NDArray[Any]

SOON = FailureSettings(heartbeat=0.05, dead_after=0.3)


class ShardByHand:
    """A server that joined by hand. It keeps what it is told, and acknowledges epochs if it ``answers``.

    Of jobs that are dropped it has nothing.
    """

    def __init__(self, *, answers: bool = True) -> None:
        self.told: list[Decide | Epoch] = []
        self.heard = asyncio.Event()
        self.ended = asyncio.Event()
        self.answers = answers
        self.connection: Connection
        self.joined: ShardJoined
        self._unanswered: list[int] = []

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        if isinstance(request, Announce | Keep):
            return [np.empty(request.tensors[0].elements, np.uint8)]
        return ()

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        if isinstance(request, Keep):
            connection.reply(request_id, Kept(0))
            return
        self.told.append(EPOCH.decode(arrays[0]) if isinstance(request, Announce) else request)
        self.heard.set()
        self._unanswered.append(request_id)
        if self.answers:
            self.acknowledge()

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        raise error

    def lost(self, connection: Connection) -> None:
        self.ended.set()

    def acknowledge(self) -> None:
        """Answer all that it was told and has not answered yet."""
        unanswered, self._unanswered = self._unanswered, []
        for request_id in unanswered:
            self.connection.reply(request_id, Empty())

    async def join(self, cluster: Cluster, offer: JoinShard) -> None:
        self.connection = await dial(*cluster.endpoint, self, max_payload=MAX_PAYLOAD, traffic=Traffic())
        await self.connection.request(hello())
        self.joined, _ = await self.connection.request(offer)

    async def beat(self, *waits: Wait) -> None:
        payload = WAITS.encode(Waits(waits))
        await self.connection.request(ShardBeat(WAITS.parts(payload)), (payload,))

    async def until_told(self, count: int) -> None:
        while len(self.told) < count:
            self.heard.clear()
            await self.heard.wait()

    def epochs(self) -> list[Epoch]:
        return [told for told in self.told if isinstance(told, Epoch)]


@asynccontextmanager
async def shard_by_hand(
    cluster: Cluster,
    *,
    shard: int | None = None,
    former: ShardJoined | None = None,
    answers: bool = True,
) -> AsyncIterator[ShardByHand]:
    """A shard that joins, or the ``former`` one that comes back."""
    found = ShardByHand(answers=answers)
    offer = JoinShard(1234, "shard.example", shard)
    if former is not None:
        offer = replace(offer, shard=former.shard, cluster=former.cluster, timeline=former.timeline)
    await found.join(cluster, offer)
    try:
        yield found
    finally:
        found.connection.abort()
        await found.connection.wait_closed()


@asynccontextmanager
async def worker(cluster: Cluster, **settings: Any) -> AsyncIterator[Connection]:
    """A worker that has joined, and does not mind that the shards are nowhere."""
    async with connected(cluster.address, hello()) as connection:
        await connection.request(Join("token", "default", "a", **settings))
        yield connection


def retrieve(answer: Answer) -> None:
    """Nobody awaits this answer."""
    if not answer.cancelled():
        answer.exception()


def coordinator_of(cluster: Cluster) -> Coordinator:
    found = cluster.servers[0]._coordinator
    assert found is not None
    return found


def links_of(cluster: Cluster) -> ShardLinks:
    return coordinator_of(cluster).links


async def states(cluster: Cluster) -> list[str]:
    return [shard.state for shard in (await cluster.status()).shards]


# --- who is which number


async def test_servers_get_the_numbers_that_are_free_and_the_one_that_they_ask_for() -> None:
    async with (
        running_cluster(4, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster, shard=2) as second,
        shard_by_hand(cluster) as first,
    ):
        assert await states(cluster) == ["ready", "ready", "ready", "joining"]
        async with shard_by_hand(cluster) as third:
            assert [one.joined.shard for one in (first, second, third)] == [1, 2, 3]
            assert {one.joined.shards for one in (first, second, third)} == {4}
            assert links_of(cluster).addresses() == ("", *["shard.example:1234"] * 3)
            assert cluster.servers[0].is_ready()


async def test_who_comes_without_a_number_is_given_one_that_nobody_knows_to_be_his() -> None:
    async with running_cluster(4, started=1, failure=PATIENT) as cluster:
        links_of(cluster).known = 3  # two servers are yet to come back that know their numbers
        async with shard_by_hand(cluster) as new, shard_by_hand(cluster, shard=1) as known:
            assert [new.joined.shard, known.joined.shard] == [3, 1]
            async with shard_by_hand(cluster) as without_its_disk:
                assert without_its_disk.joined.shard == 2


@pytest.mark.parametrize(
    ("offer", "field", "value"),
    [
        (JoinShard(1, shard=0), "shard", "0"),
        (JoinShard(1, shard=1), "shard", "1"),
        (JoinShard(1, shard=2), "shard", "2"),
        (JoinShard(1, shard=-1), "shard", "-1"),
        (JoinShard(1), "shards", "2"),
        (JoinShard(1, shard=1, cluster="another"), "cluster", "another"),
        (JoinShard(1, cluster="another"), "cluster", "another"),
    ],
)
async def test_a_server_that_does_not_belong_here_is_refused_and_changes_nothing(
    offer: JoinShard, field: str, value: str
) -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as shard,
        connected(cluster.address, hello()) as stranger,
    ):
        with pytest.raises(BadRequest) as caught:
            await stranger.request(offer)
        assert (caught.value.field, caught.value.value) == (field, value)
        assert await states(cluster) == ["ready", "ready"]
        await shard.beat()


@pytest.mark.parametrize("number", [0, 2, 7])
async def test_nobody_comes_back_as_a_shard_that_there_is_not(number: int) -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as shard,
        connected(cluster.address, hello()) as stranger,
    ):
        with pytest.raises(BadRequest) as caught:
            await stranger.request(JoinShard(1, shard=number, cluster=shard.joined.cluster))
        assert (caught.value.field, caught.value.value) == ("shard", str(number))


async def test_only_servers_of_the_cluster_are_listened_to() -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as shard,
        worker(cluster) as stranger,
    ):
        payload = WAITS.encode(Waits(()))
        requests: list[tuple[Request, Sequence[Array]]] = [
            (ShardBeat(WAITS.parts(payload)), (payload,)),
            (Ended("default", 0, (0,), ()), ()),
            (Decide("default", 0, (0,), commit=True), ()),
        ]
        for request, arrays in requests:
            with pytest.raises(BadRequest) as caught:
                await stranger.request(request, arrays)
            assert (caught.value.field, caught.value.value) in (("op", request.op), ("op", "(shard)"))
        assert [type(told) for told in shard.told] == [Epoch]


# --- what they are told


async def test_a_worker_is_let_in_when_every_shard_knows_it() -> None:
    async with (
        running_cluster(3, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as one,
        shard_by_hand(cluster, answers=False) as other,
        connected(cluster.address, hello()) as client,
    ):
        joining = client.send(Join("token", "default", "a"))
        await other.until_told(1)
        await one.until_told(1)
        await cluster.status()
        assert not joining.done()
        other.acknowledge()
        await joining
        assert one.told == other.told
        assert [member.name for member in one.epochs()[0].members] == ["a"]


async def test_an_epoch_is_told_until_it_is_followed_over_however_many_links() -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        connected(cluster.address, hello()) as client,
    ):
        async with shard_by_hand(cluster, answers=False) as shard:
            joining = client.send(Join("token", "default", "a"))
            await shard.until_told(1)
        for _ in range(3):
            async with shard_by_hand(cluster, former=shard.joined, answers=False) as again:
                await again.until_told(1)
                assert again.epochs()[0] == shard.epochs()[0]
        assert not joining.done()
        async with shard_by_hand(cluster, former=shard.joined) as back:
            await joining
            assert back.epochs()[0] == shard.epochs()[0]


async def test_a_shard_that_comes_back_is_told_all_that_it_missed_in_the_order_of_its_making() -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as shard,
        worker(cluster, staleness=0) as a,
    ):
        coordinator = coordinator_of(cluster)
        for step in range(2):
            coordinator.ended(0, Ended("default", step, (0,), ()))
            shard.connection.notify(Ended("default", step, (0,), ()))
            await shard.until_told(2 + step)
            assert shard.told[-1] == Decide("default", step, (0,), commit=True)
        shard.connection.abort()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        changing = asyncio.create_task(change(*cluster.endpoint, Set(staleness=2.0), within=60))
        await cluster.until(lambda status: status.jobs[0].staleness == 2.0)
        async with shard_by_hand(cluster, former=shard.joined) as back:
            await changing
            assert back.told[:2] == [
                Decide("default", 1, (0,), commit=True),
                Decide("default", 2, (), commit=False),
            ]
            epochs = back.epochs()
            assert back.told[2:] == epochs
            assert (epochs[0].staleness, epochs[0].since) == (2.0, 3)
            assert a.is_open


async def test_epochs_and_decisions_arrive_in_the_order_in_which_they_were_made() -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster, answers=False) as shard,
        connected(cluster.address, hello()) as first,
    ):
        first.send(Join("token", "default", "a")).add_done_callback(retrieve)
        await shard.until_told(1)
        dials = [2.0, 1.0, 0.0, 3.0, math.inf]
        changes = [
            asyncio.create_task(change(*cluster.endpoint, Set(staleness=dial), within=60)) for dial in dials
        ]
        await shard.until_told(1 + len(dials))
        numbers = [epoch.number for epoch in shard.epochs()]
        assert numbers == sorted(numbers)
        assert not any(one.done() for one in changes), "no shard follows yet"
        shard.acknowledge()
        await asyncio.gather(*changes)
        assert first.is_open


async def test_who_takes_up_a_link_again_is_believed_and_the_former_one_hung_up_on() -> None:
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as former,
        shard_by_hand(cluster, former=former.joined) as back,
    ):
        await former.ended.wait()
        assert await states(cluster) == ["ready", "ready"]
        await back.beat()
        with pytest.raises(ConnectionLost):
            await former.beat()


async def test_what_nobody_could_be_told_is_no_unretrieved_error(caplog: pytest.LogCaptureFixture) -> None:
    """Links end, and the coordinator stops, while epochs are on their way."""
    async with (
        running_cluster(3, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster, answers=False) as one,
        shard_by_hand(cluster, answers=False) as other,
        connected(cluster.address, hello()) as client,
    ):
        client.send(Join("token", "default", "a")).add_done_callback(retrieve)
        await one.until_told(1)
        other.connection.abort()
        await cluster.until(lambda status: status.shards[2].state == "lost")
        async with shard_by_hand(cluster, former=other.joined, answers=False) as back:
            await back.until_told(1)
        await cluster.until(lambda status: status.shards[2].state == "lost")
        await cluster.servers[0].stop()
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# --- who is silent


async def test_a_silent_shard_is_suspect_then_hung_up_on_and_may_come_back() -> None:
    async with running_cluster(2, started=1, failure=SOON) as cluster, shard_by_hand(cluster) as shard:
        await cluster.until(lambda status: status.shards[1].state == "suspect")
        await shard.beat()
        await cluster.until(lambda status: status.shards[1].state == "ready")
        await shard.ended.wait()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        assert cluster.servers[0].is_ready(), "what needs no shard is answered"
        async with shard_by_hand(cluster, former=shard.joined) as back:
            await back.beat()
            assert back.joined == shard.joined


async def test_what_shards_say_of_waits_is_in_the_status_until_they_say_otherwise_or_are_lost() -> None:
    wait = Wait("default", 1, "step 3", 1, ("w0",), 2.5)
    async with (
        running_cluster(2, started=1, failure=PATIENT) as cluster,
        shard_by_hand(cluster) as shard,
        worker(cluster, staleness=1),
    ):
        await shard.beat(wait)
        assert (await cluster.job()).waits == (wait,)
        await shard.beat()
        assert (await cluster.job()).waits == ()
        await shard.beat(wait)
        shard.connection.abort()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        assert (await cluster.job()).waits == ()


async def test_the_requests_of_the_last_minutes_are_told_of_servers_that_are_there() -> None:
    async with running_cluster(2, started=1, failure=SOON) as cluster, shard_by_hand(cluster) as shard:
        payload = WAITS.encode(Waits((), load=Load(requests_per_second=50.0)))
        await shard.connection.request(ShardBeat(WAITS.parts(payload)), (payload,))
        status = await cluster.until(lambda status: 50.0 in status.shards[1].recent_requests.values)
        assert status.shards[1].recent_requests.every == SOON.heartbeat
        assert set(status.shards[0].recent_requests.values) == {0.0}
        shard.connection.abort()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        gone = (await cluster.status()).shards[1].recent_requests
        later = await cluster.until(lambda status: status.shards[1].recent_requests.ago > 0.1)
        assert later.shards[1].recent_requests.values == gone.values


async def test_servers_that_join_are_told_where_the_status_page_is() -> None:
    async with running_cluster(3, started=1, failure=PATIENT) as cluster, shard_by_hand(cluster) as first:
        assert first.joined.metrics_port is None
        cluster.servers[0].page_is_at("0.0.0.0:9464")
        async with shard_by_hand(cluster) as second:
            assert second.joined.metrics_port == 9464


async def test_a_server_that_has_joined_points_to_the_status_page() -> None:
    async with running_cluster(2, started=1) as cluster:
        cluster.servers[0].page_is_at("127.0.0.1:9464")
        other = await cluster.add_shard()
        other.page_is_at("127.0.0.1:9465")  # it has none
        page = other.pages(asyncio.get_running_loop())["/"]()
        assert b'<a href="http://127.0.0.1:9464/">' in page.body
