"""The proxy between a client and an upstream that keeps all it is sent, on both event loops."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest
import uvloop

from protocol.addresses import join_address, split_address
from tests.faults.conditions import Conditions
from tests.faults.proxy import Proxy

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
LIMIT = 20  # seconds, of a whole test
MEGABYTE = random.Random(1).randbytes(1 << 20)


class End:
    """A connection's end: what it has received, and what it ended with."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.received = bytearray()
        self.error: OSError | None = None
        self._more = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(1 << 16):
                self.received += data
                self._more.set()
        except ConnectionError as error:
            self.error = error

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def pause(self) -> None:
        """Read no more, and have the kernel take little, so that bytes pile up on the other side."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        cast(asyncio.ReadTransport, self.writer.transport).pause_reading()

    def resume(self) -> None:
        cast(asyncio.ReadTransport, self.writer.transport).resume_reading()

    async def has(self, count: int) -> bytes:
        """Return what was received, once it is so many bytes."""
        while len(self.received) < count:
            self._more.clear()
            await self._more.wait()
        return bytes(self.received)

    async def ended(self) -> bool:
        """Wait for the end; return whether it was a reset."""
        await asyncio.shield(self._reading)
        return self.error is not None

    async def ended_well(self) -> None:
        """Wait for the end; raise what it ended with."""
        if await self.ended() and self.error is not None:
            raise self.error

    @property
    def open(self) -> bool:
        return not self._reading.done()

    async def close(self) -> None:
        self._reading.cancel()
        self.writer.transport.abort()
        await asyncio.gather(self._reading, self.writer.wait_closed(), return_exceptions=True)


class Upstream:
    """A server that only listens; every byte that it gets stays in ``ends``, in order of arrival."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self._more = asyncio.Event()
        self.address = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.append(End(reader, writer))
        self._more.set()

    async def end(self, number: int) -> End:
        while len(self.ends) <= number:
            self._more.clear()
            await self._more.wait()
        return self.ends[number]


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    listening = Upstream()
    server = await asyncio.start_server(listening.accept, "127.0.0.1", 0)
    listening.address = join_address(*server.sockets[0].getsockname())
    try:
        yield listening
    finally:
        server.close()
        for end in listening.ends:
            await end.close()


class Between:
    """An upstream, a proxy before it, and clients of the proxy."""

    def __init__(self, stack: AsyncExitStack, upstream: Upstream, proxy: Proxy) -> None:
        self._stack = stack
        self.upstream = upstream
        self.proxy = proxy

    async def client(self) -> End:
        client = End(*await asyncio.open_connection(*split_address(self.proxy.address)))
        self._stack.push_async_callback(client.close)
        return client

    async def pair(self) -> tuple[End, End]:
        """A client and the upstream's end of its connection."""
        number = len(self.upstream.ends)
        return await self.client(), await self.upstream.end(number)


def reset(end: End) -> None:
    """End a connection with a reset, as a process that is killed with unread bytes does."""
    linger = struct.pack("ii", 1, 0)
    end.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    end.writer.transport.abort()


async def passes(client: End, server: End, towards: str = "upstream") -> bool:
    """Whether a byte gets through; False if the connection has ended."""
    source, sink = (client, server) if towards == "upstream" else (server, client)
    if not source.open:
        return False
    count = len(sink.received) + 1
    source.send(b"?")
    return not await has_all_or_ended(sink, count)


async def has_all_or_ended(end: End, count: int) -> bool:
    """Return once so many bytes are there (False) or the connection has ended before (True)."""
    coming = asyncio.ensure_future(end.has(count))
    ending = asyncio.ensure_future(end.ended())
    await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
    for task in (coming, ending):
        task.cancel()
    await asyncio.gather(coming, ending, return_exceptions=True)
    return len(end.received) < count


Scenario = Callable[[Between], Awaitable[None]]


def on_both_loops(scenario: Scenario) -> Callable[[Callable[[], asyncio.AbstractEventLoop]], None]:
    """Make a test of the scenario that runs on each kind of loop; what only the loop sees fails it too."""

    async def run() -> None:
        unseen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        async with asyncio.timeout(LIMIT), AsyncExitStack() as stack:
            listening = await stack.enter_async_context(upstream())
            proxy = await stack.enter_async_context(Proxy(listening.address, record_at_most=4000))
            await scenario(Between(stack, listening, proxy))
        assert unseen == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    @pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
    def test(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
            runner.run(run())

    return test


@on_both_loops
async def test_forwards_both_ways_and_ends_with_the_ends(between: Between) -> None:
    client, server = await between.pair()
    client.send(MEGABYTE)
    server.send(MEGABYTE[::-1])
    assert await server.has(len(MEGABYTE)) == MEGABYTE
    assert await client.has(len(MEGABYTE)) == MEGABYTE[::-1]
    client.writer.write_eof()
    assert not await server.ended()
    server.send(b"late")  # a connection that is half closed still answers
    await client.has(len(MEGABYTE) + 4)
    server.writer.write_eof()
    assert not await client.ended()
    seen = between.proxy.seen
    assert (seen.connections, seen.to_upstream, seen.to_client) == (1, 1 << 20, (1 << 20) + 4)
    assert (seen.cuts, seen.lost, seen.delayed, seen.held) == (0, 0, 0, 0)


@on_both_loops
async def test_a_reset_of_one_end_is_a_reset_of_the_other(between: Between) -> None:
    client, server = await between.pair()
    reset(server)
    assert await client.ended()
    await between.proxy.until(lambda seen: seen.lost == 1)
    assert between.proxy.seen.cuts == 0
    assert between.proxy.connections == 0


@on_both_loops
async def test_without_an_upstream_clients_are_reset(between: Between) -> None:
    nowhere = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    between.proxy.upstream = join_address(*nowhere.sockets[0].getsockname())
    nowhere.close()
    await nowhere.wait_closed()
    client = await between.client()
    assert await client.ended()
    between.proxy.upstream = between.upstream.address  # it came back
    client, server = await between.pair()
    client.send(b"x")
    assert await server.has(1) == b"x"


@on_both_loops
async def test_cut_resets_all_or_one(between: Between) -> None:
    pairs = [await between.pair() for _ in range(3)]
    assert between.proxy.cut(one=random.Random(4)) == 1
    await between.proxy.until(lambda seen: seen.cuts == 1)
    assert between.proxy.connections == 2
    pairs.append(await between.pair())  # those to come are not affected
    assert sum([await passes(*pair) for pair in pairs]) == 3
    assert between.proxy.cut() == 3
    for client, server in pairs:
        assert await client.ended()
        assert await server.ended()
    await between.proxy.until(lambda seen: seen.cuts == 4)


@on_both_loops
async def test_cut_of_a_connection_that_has_hardly_begun(between: Between) -> None:
    client = await between.client()
    await between.proxy.until(lambda seen: seen.connections == 1)
    assert between.proxy.cut() == 1
    assert await client.ended()
    assert between.proxy.cut() == 0
    assert between.proxy.seen.cuts == 1


@on_both_loops
async def test_cut_after_exactly_so_many_bytes(between: Between) -> None:
    count = 123_457
    clients = [await between.pair() for _ in range(2)]
    assert all([await passes(*pair) for pair in clients])
    between.proxy.cut_after(count, "to-upstream", one=random.Random(0))
    for client, _ in clients:
        client.send(MEGABYTE)
    await between.proxy.until(lambda seen: seen.cuts == 1)
    ((cut, cut_server),) = [pair for pair in clients if await has_all_or_ended(pair[1], 1 + len(MEGABYTE))]
    assert await cut.ended()
    assert await cut_server.ended()
    assert cut_server.received == b"?" + MEGABYTE[:count]


@on_both_loops
async def test_cut_after_waits_for_a_slow_reader(between: Between) -> None:
    count = 500_000
    client, server = await between.pair()
    server.pause()
    between.proxy.cut_after(count)
    client.send(MEGABYTE)
    await between.proxy.until(
        lambda seen: seen.to_upstream == count
    )  # into the kernel, where most of it stays
    assert between.proxy.seen.cuts == 0
    server.resume()
    assert await server.ended()
    assert server.received == MEGABYTE[:count]
    await between.proxy.until(lambda seen: seen.cuts == 1)


@on_both_loops
async def test_cut_after_on_connections_to_come_and_towards_the_client(between: Between) -> None:
    early = await between.pair()
    between.proxy.cut_after(3, "to-client", "coming")
    for _ in range(2):
        client, server = await between.pair()
        server.send(b"ab")
        await client.has(2)
        client.send(b"the other direction does not count")
        await server.has(34)
        server.send(b"cd")
        assert await client.ended()
        assert client.received == b"abc"
    assert between.proxy.seen.cuts == 2
    between.proxy.heal("cut-after")
    assert await passes(*early)
    assert await passes(*await between.pair())
    assert between.proxy.seen.cuts == 2


@on_both_loops
async def test_delayed_until_healed(between: Between) -> None:
    client, server = await between.pair()
    between.proxy.delay(3600, direction="to-upstream", scope="present")
    client.send(b"slow")
    client.writer.write_eof()  # the end does not overtake what was sent before
    await between.proxy.until(lambda seen: seen.delayed == 2)
    server.send(b"the other direction")
    await client.has(19)
    assert await passes(*await between.pair())
    assert server.open
    assert not server.received
    between.proxy.heal("delay")
    assert not await server.ended()
    assert server.received == b"slow"


@on_both_loops
async def test_jitter_keeps_the_order(between: Between) -> None:
    between.proxy.delay(0.0005, jitter=0.005)
    client, server = await between.pair()
    for number in range(100):
        client.send(bytes([number]))
        server.send(bytes([number]))
        await between.proxy.until(lambda seen, number=number: seen.delayed >= 2 * number)  # type: ignore[misc]
    assert await server.has(100) == bytes(range(100))
    assert await client.has(100) == bytes(range(100))
    assert between.proxy.seen.delayed > 100  # most were pieces by themselves


@on_both_loops
async def test_throttled_until_healed(between: Between) -> None:
    client, server = await between.pair()
    between.proxy.throttle(1 / 3600, "to-upstream")
    client.send(MEGABYTE)
    await between.proxy.until(lambda seen: seen.throttled == 1)
    assert await server.has(1) == MEGABYTE[:1]
    server.send(MEGABYTE)
    await client.has(len(MEGABYTE))
    assert server.received == MEGABYTE[:1]
    between.proxy.heal("throttle")
    assert await server.has(len(MEGABYTE)) == MEGABYTE


@on_both_loops
async def test_a_fast_throttle_passes_everything(between: Between) -> None:
    between.proxy.throttle(20e6)
    client, server = await between.pair()
    client.send(MEGABYTE)
    assert await server.has(len(MEGABYTE)) == MEGABYTE
    assert between.proxy.seen.throttled == len(MEGABYTE)


@on_both_loops
async def test_stalled_until_healed(between: Between) -> None:
    client, server = await between.pair()
    between.proxy.stall("to-upstream")
    client.send(MEGABYTE)
    await between.proxy.until(lambda seen: seen.held >= 1)
    server.send(b"the other direction")
    await client.has(19)
    assert not server.received
    between.proxy.heal()
    assert await server.has(len(MEGABYTE)) == MEGABYTE
    assert between.proxy.seen.swallowed == 0


@on_both_loops
async def test_a_stall_hides_the_end_of_a_connection(between: Between) -> None:
    pairs = [await between.pair() for _ in range(2)]
    between.proxy.stall(scope="present")
    reset(pairs[0][0])
    pairs[1][0].writer.write_eof()
    await between.proxy.until(lambda seen: seen.held >= 2)  # both have met it
    assert await passes(*await between.pair())
    assert all(server.open for _, server in pairs)
    between.proxy.heal()
    assert await pairs[0][1].ended()
    assert not await pairs[1][1].ended()


@on_both_loops
async def test_a_stall_of_connections_to_come(between: Between) -> None:
    early = await between.pair()
    between.proxy.stall(scope="coming")
    late = await between.pair()
    late[0].send(b"?")
    await between.proxy.until(lambda seen: seen.held >= 1)
    assert await passes(*early)
    assert not late[1].received
    between.proxy.heal("stall")
    await late[1].has(1)


@on_both_loops
async def test_swallowed_bytes_never_arrive(between: Between) -> None:
    client, server = await between.pair()
    untouched = await between.pair()
    between.proxy.swallow("to-upstream")
    client.send(MEGABYTE)
    await between.proxy.until(lambda seen: seen.swallowed == len(MEGABYTE))
    server.send(b"the other direction")
    await client.has(19)
    between.proxy.heal("delay")  # another fault than the one there is
    client.send(b"more")
    await between.proxy.until(lambda seen: seen.swallowed == len(MEGABYTE) + 4)
    assert client.open
    assert server.open
    assert not server.received
    between.proxy.heal("swallow")
    assert await client.ended()
    assert await server.ended()
    assert not server.received
    assert await passes(*untouched)
    assert (between.proxy.seen.broken, between.proxy.seen.cuts) == (1, 0)


@on_both_loops
async def test_a_lost_client_is_not_heard_of_through_a_black_hole(between: Between) -> None:
    client, server = await between.pair()
    between.proxy.swallow("to-upstream")
    reset(client)
    await between.proxy.until(lambda seen: seen.hidden == 1)
    server.send(b"x")  # runs into a closed socket
    await between.proxy.until(lambda seen: seen.hidden == 2)
    assert await passes(*await between.pair(), towards="client")
    assert server.open
    between.proxy.heal()
    assert await server.ended()


@on_both_loops
async def test_refused_until_healed(between: Between) -> None:
    present = await between.pair()
    address = between.proxy.address
    for _ in range(3):
        between.proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await between.client()
        between.proxy.refuse(after_accept=True)  # the stronger one stays
        with pytest.raises(ConnectionRefusedError):
            await between.client()
        assert await passes(*present)
        between.proxy.heal("refuse")
        assert between.proxy.address == address
        assert await passes(*await between.pair())
    assert between.proxy.seen.refusals == 6
    assert between.proxy.seen.refused == 0


@on_both_loops
async def test_reset_as_soon_as_accepted(between: Between) -> None:
    between.proxy.refuse(after_accept=True)
    with pytest.raises(ConnectionResetError):  # on connecting or reading, as it happens
        await (await between.client()).ended_well()
    assert between.proxy.seen.refused == 1
    assert between.proxy.seen.connections == 0
    between.proxy.heal()
    assert await passes(*await between.pair())


@on_both_loops
async def test_duplicate_replays_what_was_sent(between: Between) -> None:
    client, server = await between.pair()
    await between.pair()  # nothing sent, nothing to replay
    client.send(b"hello, push")
    await server.has(11)
    assert between.proxy.duplicate() == 1
    replay = await between.upstream.end(2)
    assert await replay.has(11) == b"hello, push"
    replay.send(MEGABYTE)  # is read, and reaches nobody
    await replay.writer.drain()
    await between.proxy.until(lambda seen: seen.duplicated == 1)
    assert await passes(client, server)
    assert replay.open
    assert not client.received
    between.proxy.heal()
    await replay.ended()
    assert between.proxy.seen.replayed == 11
    assert await passes(client, server)


@on_both_loops
async def test_duplicate_that_does_not_stay_ends_behind_its_last_byte(between: Between) -> None:
    client, server = await between.pair()
    client.send(MEGABYTE)
    await server.has(len(MEGABYTE))
    assert between.proxy.duplicate(one=random.Random(0), stay=False) == 1
    replay = await between.upstream.end(1)
    assert not await replay.ended()
    assert replay.received == MEGABYTE[:4000]  # as much as is recorded at most


@on_both_loops
async def test_duplicate_without_an_upstream(between: Between) -> None:
    client, server = await between.pair()
    assert await passes(client, server)
    nowhere = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    between.proxy.upstream = join_address(*nowhere.sockets[0].getsockname())
    nowhere.close()
    await nowhere.wait_closed()
    assert between.proxy.duplicate() == 1
    await between.proxy.until(lambda seen: seen.replays_failed == 1)
    assert between.proxy.seen.duplicated == 0


@on_both_loops
async def test_heal_ends_everything(between: Between) -> None:
    proxy = between.proxy
    proxy.delay(3600)
    proxy.throttle(0.001)
    proxy.stall()
    proxy.cut_after(1, "both", "all")
    proxy.refuse()
    proxy.heal()
    client, server = await between.pair()
    client.send(MEGABYTE)
    assert await server.has(len(MEGABYTE)) == MEGABYTE
    assert await passes(client, server, towards="client")
    assert proxy.seen.cuts == proxy.seen.delayed == proxy.seen.throttled == proxy.seen.held == 0


@on_both_loops
async def test_leaving_ends_everything(between: Between) -> None:
    async with Proxy(between.upstream.address) as proxy:
        clients = [End(*await asyncio.open_connection(*split_address(proxy.address))) for _ in range(3)]
        address = proxy.address
        server = await between.upstream.end(0)
        clients[0].send(b"hello")
        await proxy.until(lambda seen: seen.to_upstream == 5)
        proxy.duplicate()
        await proxy.until(lambda seen: seen.duplicated == 1)
        proxy.stall()
        clients[0].send(MEGABYTE)
        await proxy.until(lambda seen: seen.held >= 1)
    assert await server.ended()
    for client in clients:
        assert await client.ended()
        await client.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*split_address(address))


@pytest.mark.parametrize(
    ("field", "value"),
    [("latency", -1.0), ("jitter", float("inf")), ("rate", 0.0), ("rate", float("nan")), ("cut_after", -1)],
)
def test_conditions_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .* not {value!r}"):
        Conditions(**{field: value})  # type: ignore[arg-type]


@on_both_loops
async def test_faults_out_of_range_change_nothing(between: Between) -> None:
    pair = await between.pair()
    with pytest.raises(ValueError, match="count must be 1 byte or more, not 0"):
        between.proxy.cut_after(0)
    with pytest.raises(ValueError, match="rate"):
        between.proxy.throttle(-1)
    with pytest.raises(ValueError, match=r"direction must be .* not 'up'"):
        between.proxy.stall("up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scope must be .* not 'past'"):
        between.proxy.stall(scope="past")  # type: ignore[arg-type]
    assert await passes(*pair)
