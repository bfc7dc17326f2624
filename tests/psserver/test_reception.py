"""Who is let in, waited for and shown out, at a server in this process; time is as a test says."""

import asyncio
import gc
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

import numpy as np
import pytest

from protocol.errors import InternalError, NotReady, PSError, UnknownJob
from protocol.frames import VERSION, encode_prelude
from protocol.messages import Attach, Drop, Ping, Pull, Status, encode_request
from protocol.status import ClusterStatus
from psserver.coordinator import Coordinator
from psserver.reception import Guest
from psserver.server import Server, ServerSettings
from psworker.client import connect
from tests.cluster import Cluster, Wire, connected, hello, holds, running_cluster, wire


class Clock:
    """A server's watch, which a test lets look whenever it likes."""

    def __init__(self, server: Server) -> None:
        self._look = server._reception.look
        self.now = asyncio.get_running_loop().time()
        server._reception.look = lambda now, heartbeat: None  # type: ignore[method-assign]

    def goes_on(self, seconds: float) -> None:
        """Let time pass in which the server looks every second."""
        for _ in range(math.ceil(seconds)):
            self.now += 1.0
            self._look(self.now, 1.0)

    def stands_still(self, seconds: float) -> None:
        """Let time pass in which the server is not awake."""
        self.now += seconds


def guests(cluster: Cluster) -> list[Guest]:
    return [one for one in cluster.servers[0]._connections if isinstance(one, Guest)]


def rejected(cluster: Cluster) -> dict[str, int]:
    return dict(cluster.servers[0].metrics.rejected_frames)


@asynccontextmanager
async def guest_of(cluster: Cluster) -> AsyncIterator[tuple[Wire, Guest]]:
    """A stranger, and the server's end of its connection."""
    before = set(guests(cluster))
    async with wire(cluster.address) as stranger:
        await holds(lambda: len(guests(cluster)) > len(before))
        (guest,) = set(guests(cluster)) - before
        yield stranger, guest


@asynccontextmanager
async def greeted_guest(cluster: Cluster) -> AsyncIterator[tuple[Wire, Guest]]:
    async with guest_of(cluster) as (client, guest):
        assert (await client.ask("hello", versions=[VERSION], client="test"))["op"] == "ok"
        yield client, guest


async def is_shown_out(cluster: Cluster, reason: str) -> None:
    await holds(lambda: rejected(cluster).get(reason) == 1 and not guests(cluster))


# --- how long a peer is waited for


async def test_half_a_hello_is_not_waited_for() -> None:
    async with running_cluster() as cluster, guest_of(cluster) as (stranger, _):
        stranger.send_more(b"APS\x01")
        Clock(cluster.servers[0]).goes_on(6)
        await is_shown_out(cluster, "no_hello")


async def test_half_a_frame_is_not_waited_for() -> None:
    async with running_cluster() as cluster, greeted_guest(cluster) as (client, guest):
        client.send_more(encode_prelude(1000, 0))
        await holds(lambda: guest.is_amid_frame)
        clock = Clock(cluster.servers[0])
        clock.goes_on(9)
        assert guests(cluster) == [guest]
        clock.goes_on(2)
        await is_shown_out(cluster, "slow_frame")


async def test_a_payload_that_trickles_is_not_waited_for() -> None:
    async with running_cluster() as cluster, greeted_guest(cluster) as (client, guest):
        client.send("pull", b"", 1 << 20, names=["w"])  # refused, but its payload has to be skipped
        clock = Clock(cluster.servers[0])
        while not rejected(cluster):
            client.send_more(b"x")
            await holds(lambda before=guest.received: guest.received > before)  # type: ignore[misc]
            clock.goes_on(1)
        await is_shown_out(cluster, "slow_frame")


async def test_silence_is_not_listened_to_for_ever_but_pings_are() -> None:
    async with running_cluster() as cluster, greeted_guest(cluster) as (client, guest):
        clock = Clock(cluster.servers[0])
        for _ in range(5):
            clock.goes_on(59)
            assert (await client.ask("ping"))["op"] == "ok"
        assert guests(cluster) == [guest]
        clock.goes_on(61)
        await is_shown_out(cluster, "idle")


async def test_nobody_was_late_while_the_server_was_not_awake() -> None:
    async with (
        running_cluster() as cluster,
        greeted_guest(cluster) as (amid, first),
        greeted_guest(cluster) as (_, second),
        guest_of(cluster) as (_, stranger),
    ):
        amid.send_more(encode_prelude(1000, 0))
        await holds(lambda: first.is_amid_frame)
        clock = Clock(cluster.servers[0])
        clock.goes_on(2)
        clock.stands_still(1000)
        clock.goes_on(2)
        assert set(guests(cluster)) == {first, second, stranger}
        clock.goes_on(2)
        await holds(lambda: rejected(cluster) == {"no_hello": 1})


async def test_clients_that_do_nothing_are_not_silent() -> None:
    async with (
        running_cluster(shards=2, idle_timeout=0.2) as cluster,
        connect(cluster.address, "job") as worker,
        connect(cluster.address, "job", observe=True) as observer,
    ):
        await worker.create("w", np.zeros(1000, np.float32))
        received = [
            sum(one.received for one in guests(replace(cluster, servers=[s]))) for s in cluster.servers
        ]
        for server, before in zip(cluster.servers, received, strict=True):
            await holds(lambda s=server, b=before: sum(one.received for one in s._connections) > b)  # type: ignore[misc]
        await observer.pull("w")
        assert [client.recovery.reconnects for client in (worker, observer)] == [0, 0]


async def test_who_waits_for_an_answer_that_takes_its_time_may_be_silent() -> None:
    async with (
        running_cluster(shards=2, started=1) as cluster,
        connected(cluster.address, hello()) as client,
    ):
        answer = client.send(Attach("job"))  # until the other server has joined
        await holds(lambda: any(guest.awaited for guest in guests(cluster)))
        Clock(cluster.servers[0]).goes_on(1000)
        await cluster.add_shard()
        with pytest.raises(PSError, match="no worker has made"):
            await answer


async def test_who_reads_nothing_is_shown_out() -> None:
    async with (
        running_cluster() as cluster,
        connect(cluster.address, "job") as worker,
        connected(cluster.address, hello("job")) as reader,
    ):
        await worker.create("w", np.zeros(4_000_000, np.float32))
        assert reader._transport is not None
        reader._transport.pause_reading()
        for _ in range(20):
            reader.send(Pull(("w",))).add_done_callback(lambda answer: answer.exception())
        await holds(lambda: any(guest.unsent for guest in guests(cluster)))
        clock = Clock(cluster.servers[0])
        clock.goes_on(29)
        assert "not_reading" not in rejected(cluster)
        await worker.pull("w")
        clock.goes_on(2)
        assert rejected(cluster)["not_reading"] == 1
        await worker.pull("w")


async def test_more_may_wait_for_who_has_shown_that_it_reads_and_as_long_as_it_does() -> None:
    async with (
        running_cluster() as cluster,
        connect(cluster.address, "job") as worker,
        connected(cluster.address, hello("job")) as reader,
    ):
        await worker.create("w", np.zeros(1_000_000, np.float32))
        clock = Clock(cluster.servers[0])

        def waiting() -> int:
            return max(guest.unsent for guest in guests(cluster))

        assert reader._transport is not None
        for reads in (False, True):
            reader._transport.pause_reading()
            answers = [reader.send(Pull(("w",))) for _ in range(40)]
            last = -1
            while waiting() != last or not last:  # until no more of them are read
                last = waiting()
                for _ in range(100):
                    await asyncio.sleep(0)
            assert (last > 8_000_000) == reads
            reader._transport.resume_reading()
            await asyncio.gather(*answers)
            clock.goes_on(1)


SLOWLY = (4_000_000, 3_999_000, 3_999_000, 3_998_000, 3_997_000)


async def test_who_reads_slowly_is_not_held_back_for_long() -> None:
    async with running_cluster() as cluster, greeted_guest(cluster) as (_, guest):
        clock = Clock(cluster.servers[0])
        guest._sent += 5_000_000  # as if a long reply had been sent on a slow link
        waiting = 4_000_000
        limits: list[int | None] = []
        guest.limit_unsent = limits.append  # type: ignore[method-assign, assignment]
        Guest.unsent = property(lambda _: waiting)  # type: ignore[method-assign, assignment]
        try:
            for waiting in SLOWLY:  # noqa: B007 (the property looks at it)
                clock.goes_on(1)
        finally:
            del Guest.unsent
        assert limits == [None, 256 << 10, None]


async def test_those_for_whom_most_waits_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psserver.reception._STALLED", 0)
    async with (
        running_cluster() as cluster,
        connect(cluster.address, "job") as worker,
        AsyncExitStack() as stack,
    ):
        await worker.create("w", np.zeros(1_000_000, np.float32))
        for pulls in (20, 20):
            client = await stack.enter_async_context(connected(cluster.address, hello("job")))
            assert client._transport is not None
            client._transport.pause_reading()
            for _ in range(pulls):
                client.send(Pull(("w",))).add_done_callback(lambda answer: answer.exception())
        await holds(lambda: sum(guest.unsent > 0 for guest in guests(cluster)) == 2)
        least, _ = sorted(guest.unsent for guest in guests(cluster) if guest.unsent)
        reception = cluster.servers[0]._reception
        reception._settings = replace(reception._settings, max_frame=least)
        Clock(cluster.servers[0]).goes_on(12)
        assert rejected(cluster)["not_reading"] == 1
        await holds(lambda: [guest.unsent for guest in guests(cluster) if guest.unsent] == [least])


async def test_who_ask_for_the_status_in_one_breath_are_told_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = 0
    original = Coordinator.cluster_status

    def counted(coordinator: Coordinator) -> ClusterStatus:
        nonlocal told
        told += 1
        return original(coordinator)

    monkeypatch.setattr(Coordinator, "cluster_status", counted)
    async with running_cluster() as cluster, connected(cluster.address, hello()) as client:
        answers = await asyncio.gather(*(client.send(Status()) for _ in range(300)))
        payloads = {payload.tobytes() for _, (payload,) in answers}
    assert told == len(payloads) < 30


async def test_no_more_statuses_than_the_limit_wait_for_who_does_not_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = ClusterStatus("x" * 10_000, 0.0, (), ())
    monkeypatch.setattr(Coordinator, "cluster_status", lambda _: long)
    asks = [encode_request(number, Status()) for number in range(2, 1_000)]
    async with running_cluster() as cluster, greeted_guest(cluster) as (client, guest):
        assert guest._transport is not None
        socket = guest._transport.get_extra_info("socket")
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)  # what the system takes does not wait here
        client.send_more(b"".join(encode_prelude(len(header), 0) + header for header in asks))
        await holds(lambda: guest.unsent > 0)
        most = 0
        for _ in range(300):
            most = max(most, guest.unsent)
            await asyncio.sleep(0)
        assert most < (256 << 10) + 11_000  # and the one that made it too many
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
        for number in range(2, 1_000):
            assert (await client.reply())[0]["id"] == number


async def test_a_status_that_cannot_be_told_is_an_error_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Coordinator) -> ClusterStatus:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Coordinator, "cluster_status", broken)
    async with running_cluster() as cluster, connected(cluster.address, hello()) as client:
        answers = await asyncio.gather(*(client.send(Status()) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [InternalError] * 3


# --- who is let in


async def test_a_stranger_makes_room_for_who_comes() -> None:
    async with (
        running_cluster(max_connections=2) as cluster,
        connected(cluster.address) as silent,
        connected(cluster.address, hello()) as first,
        connected(cluster.address, hello()) as second,
    ):
        await silent.wait_closed()
        assert rejected(cluster)["made_room"] == 1
        await first.request(Ping())
        await second.request(Ping())


async def test_operators_have_a_place_where_workers_find_none() -> None:
    async with (
        running_cluster(max_connections=1, kept_connections=1) as cluster,
        connected(cluster.address, hello()),
    ):
        assert (await cluster.status()).jobs == ()
        with pytest.raises(PSError, match="connection"):
            async with connected(cluster.address, hello()) as client:
                await client.request(Attach("job"))
        with pytest.raises(PSError, match="connection"):
            async with connected(cluster.address, hello("job")):
                pass
        assert rejected(cluster)["connections"] == 2
        async with connected(cluster.address, hello()) as operator:
            await operator.request(Status())
            with pytest.raises(UnknownJob):  # and not that there is no place
                await operator.request(Drop("job"))
            with pytest.raises(PSError, match="connection"):
                async with connected(cluster.address, hello()):
                    pass
            await operator.request(Ping())


async def test_a_server_that_joins_finds_a_place_where_workers_find_none() -> None:
    async with (
        running_cluster(shards=2, started=1, max_connections=1) as cluster,
        connected(cluster.address, hello()),
    ):
        await cluster.add_shard()
        assert cluster.servers[1].is_ready()


async def test_a_worker_goes_on_when_a_place_is_free() -> None:
    async with running_cluster(max_connections=1) as cluster:
        async with connected(cluster.address, hello()):
            joining = asyncio.create_task(joined_and_left(cluster.address))
            await holds(lambda: rejected(cluster).get("connections", 0) > 1)
        await joining


async def joined_and_left(address: str) -> None:
    async with connect(address, "job") as worker:
        await worker.create("w", np.zeros(4, np.float32))


FAILED_HELLOS: dict[str, Callable[[Wire], None]] = {
    "garbage": lambda wire: wire.send_more(b"GET / HTTP/1.1\r\n\r\n"),
    "another request": lambda wire: wire.send("status", b"", 0),
    "another version": lambda wire: wire.send("hello", b"", 0, versions=[99], client="test"),
    "a payload": lambda wire: wire.send("hello", b"", 1, versions=[VERSION], client="test"),
    "a long header": lambda wire: wire.send("hello", b"", 0, versions=[VERSION], client="x" * 4096),
}


@pytest.mark.parametrize("name", FAILED_HELLOS)
async def test_an_address_whose_hellos_fail_is_shut_out(name: str) -> None:
    async with running_cluster() as cluster, connected(cluster.address, hello()) as before:
        watch_loopback(cluster, failures=3)
        for _ in range(3):
            async with wire(cluster.address) as stranger:
                FAILED_HELLOS[name](stranger)
                if name != "garbage":
                    assert (await stranger.reply())[0]["op"] == "error"
                else:
                    await stranger._reader.read()
        with pytest.raises(PSError):
            async with connected(cluster.address, hello()):
                pass
        assert rejected(cluster)["shut_out"] == 1
        await before.request(Ping())


async def test_who_is_told_to_ask_again_has_not_failed() -> None:
    async with running_cluster() as cluster:
        watch_loopback(cluster, failures=1)
        cluster.servers[0]._serves = lambda: False  # type: ignore[method-assign]
        for _ in range(5):
            with pytest.raises(NotReady):
                async with connected(cluster.address, hello("job")):
                    pass


def watch_loopback(cluster: Cluster, **settings: Any) -> None:
    doors = cluster.servers[0]._reception._doors
    doors._settings = replace(doors._settings, trusts_loopback=False, **settings)


async def test_frames_are_longer_once_the_hello_is_answered() -> None:
    async with running_cluster() as cluster, greeted_guest(cluster) as (client, _):
        reply = await client.ask("describe", names=["x" * 100] * 100)
        assert reply["code"] != "FRAME_TOO_LARGE"
        assert len(encode_request(1, Pull(("x" * 100,) * 100))) > 4096


def test_half_of_the_places_are_for_strangers_and_for_one_address() -> None:
    doors = ServerSettings(max_connections=7).reception.doors
    assert (doors.connections, doors.strangers, doors.per_address) == (7, 4, 4)
    assert ServerSettings(per_address=3).reception.doors.per_address == 3


async def test_who_sent_garbage_is_forgotten_without_a_search_for_garbage() -> None:
    """Thousands of them would wait for that search otherwise, with their buffers."""
    async with running_cluster() as cluster:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                reader, writer = await asyncio.open_connection(*cluster.endpoint)
                writer.write(b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n")
                assert await reader.read() == b""
                writer.close()
            await holds(lambda: not cluster.servers[0]._connections)
            assert (
                sum(isinstance(one, Guest) for one in gc.get_objects()) <= 1
            )  # of the last, a frame may go on
        finally:
            gc.enable()
