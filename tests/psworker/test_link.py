import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from protocol.compression.keys import digest_of
from protocol.connection import Answer, Array, Connection, Traffic
from protocol.errors import (
    BadFrame,
    BadRequest,
    BadTensor,
    ConnectionLost,
    Fenced,
    FrameTooLarge,
    PSError,
    ShuttingDown,
    UnknownKeys,
    Unreachable,
    VersionMismatch,
)
from protocol.messages import Empty, Hello, Ping, Pull, Pulled, Push, Pushed, Welcome
from protocol.sequences import UNDER_WAY
from protocol.tables import VALUES, Rows
from protocol.tensors import DTYPES, Part
from psworker.link import Link, Recovery
from tests.cluster import hello, holds
from tests.ports import reserved_port

W = Part("w", "float32", 3)


@dataclass
class Asked:
    """A request that has arrived and waits for the test to answer it."""

    connection: Connection
    id: int
    request: Any
    arrays: Sequence[Array]

    def answer(self) -> None:
        match self.request:
            case Push():
                self.connection.reply(self.id, Pushed(self.request.seq))
            case Pull():
                values = [np.arange(3, dtype=np.float32)]
                self.connection.reply(self.id, Pulled(1, (W,)), values)
            case _:
                self.connection.reply(self.id, Empty())

    def refuse(self, error: PSError) -> None:
        self.connection.fail(self.id, self.request.op, error)


class Scripted:
    """A server that greets, and does else what the test says."""

    def __init__(self, takes: tuple[str, ...] = VALUES) -> None:
        self.takes = takes
        self.hellos: list[Hello] = []
        self.refuse_with: PSError | None = None
        self.greets = True
        self.accepted = 0
        self.connections: list[Connection] = []
        self._asked: asyncio.Queue[Asked] = asyncio.Queue()
        self._greeted = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._reservation = ExitStack()  # its port stays its own while it is deaf
        self.port = self._reservation.enter_context(reserved_port())

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._accept, "127.0.0.1", self.port)

    def deafen(self) -> None:
        """Take no more connections."""
        assert self._listener is not None
        self._listener.close()

    def _accept(self) -> Connection:
        connection = Connection(self, max_payload=1 << 30, traffic=Traffic(), server=True)
        self.connections.append(connection)
        self.accepted += 1
        return connection

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        parts: Sequence[Part] = getattr(request, "tensors", ())
        return [np.empty(part.elements, DTYPES[part.dtype]) for part in parts]

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        if not isinstance(request, Hello):
            self._asked.put_nowait(Asked(connection, request_id, request, arrays))
            return
        self.hellos.append(request)
        self._greeted.set()
        if not self.greets:
            return
        if self.refuse_with is not None:
            connection.fail(request_id, "hello", self.refuse_with)
        else:
            connection.reply(request_id, Welcome(1, "scripted", 0, 1, 1 << 30, 0, self.takes))

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        pass

    def lost(self, connection: Connection) -> None:
        self.connections.remove(connection)

    async def next(self) -> Asked:
        return await self._asked.get()

    async def take(self, count: int) -> list[Asked]:
        return [await self.next() for _ in range(count)]

    def nothing_else(self) -> bool:
        return self._asked.empty()

    async def greeted(self, count: int) -> None:
        """Wait until so many hellos were said."""
        while len(self.hellos) < count:
            self._greeted.clear()
            await self._greeted.wait()

    def hang_up(self) -> None:
        for connection in self.connections:
            connection.abort()

    async def stop(self) -> None:
        self.deafen()
        self._reservation.close()
        self.hang_up()
        await asyncio.gather(*(connection.wait_closed() for connection in self.connections))


@asynccontextmanager
async def linked(
    reconnect_for: float = 60.0, values: str | None = None, takes: tuple[str, ...] = VALUES
) -> AsyncIterator[tuple[Link, Scripted]]:
    """An open link. An error that nobody has looked at fails the test."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    server = Scripted(takes)
    await server.listen()
    link = Link(("127.0.0.1", server.port), hello("job", 1, 2), Traffic(), Recovery(), reconnect_for, values)
    try:
        async with asyncio.timeout(30):
            await link.open()
            yield link, server
    finally:
        await link.close()
        await server.stop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left
    gc.collect()
    assert unseen == []


def recovery(link: Link) -> Recovery:
    return link._recovery


def push(link: Link, value: float = 1.0, step: int = 0, part: Part = W) -> Answer:
    values = np.full(part.elements, value, np.float32)
    return link.send_once(lambda seq: Push((part,), step, seq), (values,))


def numbers(asked: Sequence[Asked]) -> list[int]:
    return [one.request.seq for one in asked]


# --- as long as nothing breaks


async def test_requests_are_numbered_in_the_order_of_the_calls() -> None:
    async with linked() as (link, server):
        answers = [push(link, value) for value in (1.0, 2.0, 3.0)]
        asked = await server.take(3)
        assert numbers(asked) == [1, 2, 3]
        assert [one.arrays[0][0] for one in asked] == [1.0, 2.0, 3.0]
        for one in asked:
            one.answer()
        assert [reply.version for reply, _ in await asyncio.gather(*answers)] == [1, 2, 3]


async def test_more_than_a_server_remembers_is_held_back_and_goes_in_order() -> None:
    async with linked() as (link, server):
        answers = [push(link) for _ in range(2 * UNDER_WAY + 3)]
        asked = await server.take(UNDER_WAY)
        probe = link.send(Ping())  # behind all that was sent
        (ping,) = await server.take(1)
        assert isinstance(ping.request, Ping)
        asked[1].answer()  # which is not the oldest: its number must still be remembered
        await answers[1]
        ping.answer()
        await probe
        assert server.nothing_else()
        asked[0].answer()
        asked += await server.take(2)  # of the first two the places are free
        for one in asked[2:]:
            one.answer()
        while len(asked) < len(answers):
            asked.append(await server.next())
            asked[-1].answer()
        assert numbers(asked) == list(range(1, len(answers) + 1))
        replies = await asyncio.gather(*answers)
        assert [reply.version for reply, _ in replies] == numbers(asked)


async def test_an_error_is_the_answer_of_its_request_alone() -> None:
    async with linked() as (link, server):
        bad, good = push(link), push(link)
        first, second = await server.take(2)
        first.refuse(BadTensor("no such size", field="w", value=3))
        second.answer()
        with pytest.raises(BadTensor, match="no such size"):
            await bad
        assert (await good)[0] == Pushed(2)
        assert server.accepted == 1


@pytest.mark.parametrize("connected", [True, False])
async def test_what_is_too_long_to_be_sent_is_refused_and_has_no_number(connected: bool) -> None:
    async with linked() as (link, server):
        if not connected:
            server.hang_up()
            await lost(link)
        too_long = tuple(Part("x" * 128, "float32", 1) for _ in range(1000))
        with pytest.raises(FrameTooLarge):
            link.send_once(lambda seq: Push(too_long, 0, seq), [np.zeros(1, np.float32)] * 1000)
        with pytest.raises(FrameTooLarge):
            link.send(Pull(("x" * 128,) * 1000))
        answer = push(link)
        asked = await server.next()
        assert asked.request.seq == 1
        asked.answer()
        await answer


async def test_a_held_request_that_is_too_long_fails_alone() -> None:
    async with linked() as (link, server):
        answers = [push(link) for _ in range(UNDER_WAY)]
        too_long = tuple(Part("x" * 128, "float32", 1) for _ in range(1000))
        bad = link.send_once(lambda seq: Push(too_long, 0, seq), [np.zeros(1, np.float32)] * 1000)
        answers.append(push(link))
        asked = await server.take(UNDER_WAY)
        asked[0].answer()
        asked.append(await server.next())
        assert asked[-1].request.seq == UNDER_WAY + 1
        with pytest.raises(FrameTooLarge):
            await bad
        for one in asked[1:]:
            one.answer()
        await asyncio.gather(*answers)


async def lost(link: Link) -> None:
    """Wait until the link has noticed that its connection has ended."""
    await holds(lambda: link._connection is None)


# --- requests that name keys

KEYS = np.arange(1 << 40, (1 << 40) + 64 * 3, 3, dtype=np.uint64) * np.uint64(1 << 40)
ROWS = Rows("emb", KEYS.size, digest_of(KEYS), "raw", "float32")
PART = Part("emb", "uint64", KEYS.size)


def pull_rows(link: Link) -> Answer:
    return link.send(Pull((), (ROWS,), (PART,)), (KEYS,))


def push_rows(link: Link, value: float = 1.0) -> Answer:
    values = np.full(KEYS.size, value, np.float32)
    parts = (PART, Part("emb", "float32", KEYS.size))
    return link.send_once(lambda seq: Push(parts, 0, seq, 1.0, None, (ROWS,)), (KEYS, values))


def codings(asked: Sequence[Asked]) -> list[str]:
    """Return how the keys came, which must be there unless they are known."""
    for one in asked:
        pushed = isinstance(one.request, Push)
        (rows,) = one.request.rows if pushed else one.request.wanted
        assert len(one.arrays) == pushed + (rows.coding != "known")
        assert rows.coding == "known" or (one.arrays[0] == KEYS).all()
    return [
        (one.request.rows if isinstance(one.request, Push) else one.request.wanted)[0].coding for one in asked
    ]


UNKNOWN = UnknownKeys("who?", field="emb", value=ROWS.digest)


async def test_keys_are_sent_once_and_named_from_then_on() -> None:
    async with linked() as (link, server):
        answers = [pull_rows(link), push_rows(link), pull_rows(link), push_rows(link)]
        asked = await server.take(4)
        assert codings(asked) == ["raw", "known", "known", "known"]
        for one in asked:
            one.answer()
        await asyncio.gather(*answers)


async def test_a_pull_whose_keys_are_not_known_is_sent_again_with_them() -> None:
    async with linked() as (link, server):
        answers = [pull_rows(link) for _ in range(3)]
        asked = await server.take(3)
        asked[0].answer()
        asked[1].refuse(UNKNOWN)
        asked[2].refuse(UNKNOWN)
        again = await server.take(2)
        assert codings(again) == ["raw", "raw"]
        for one in again:
            one.answer()
        await asyncio.gather(*answers)
        answer = pull_rows(link)
        last = await server.take(1)
        assert codings(last) == ["known"]
        last[0].answer()
        await answer


async def test_a_push_whose_keys_are_not_known_is_sent_again_under_a_new_number() -> None:
    async with linked() as (link, server):
        answers = [push_rows(link, value) for value in (1.0, 2.0, 3.0)]
        asked = await server.take(3)
        asked[0].answer()
        asked[1].refuse(UNKNOWN)
        asked[2].answer()
        (again,) = await server.take(1)
        assert (numbers(asked), numbers([again])) == ([1, 2, 3], [4])
        assert codings([*asked, again]) == ["raw", "known", "known", "raw"]
        assert again.arrays[1][0] == 2.0
        again.answer()
        replies = await asyncio.gather(*answers)
        assert [reply.version for reply, _ in replies] == [1, 4, 3]


@pytest.mark.parametrize("send", [pull_rows, push_rows])
async def test_a_server_that_does_not_know_keys_that_it_was_sent(send: Callable[[Link], Answer]) -> None:
    async with linked() as (link, server):
        answer = send(link)
        for _ in range(2):
            (asked,) = await server.take(1)
            assert codings([asked]) == ["raw"]
            asked.refuse(UNKNOWN)
        with pytest.raises(UnknownKeys):
            await answer
        assert server.nothing_else()


async def test_a_new_connection_knows_no_keys() -> None:
    async with linked() as (link, server):
        first = [pull_rows(link), push_rows(link), push_rows(link)]
        assert codings(await server.take(3)) == ["raw", "known", "known"]
        server.hang_up()
        asked = await server.take(3)
        assert codings(asked) == ["raw", "raw", "raw"]  # which of them the server knows as retries is open
        first.append(pull_rows(link))
        asked += await server.take(1)
        assert codings(asked[-1:]) == ["known"]
        assert numbers(asked[1:3]) == [1, 2]
        for one in asked:
            one.answer()
        await asyncio.gather(*first)


async def test_what_is_asked_while_there_is_no_connection_carries_its_keys_once() -> None:
    async with linked() as (link, server):
        answer = pull_rows(link)
        (asked,) = await server.take(1)
        asked.answer()
        await answer
        server.hang_up()
        await lost(link)
        answers = [pull_rows(link), push_rows(link)]
        both = await server.take(2)
        assert codings(both) == ["raw", "known"]
        for one in both:
            one.answer()
        await asyncio.gather(*answers)


async def test_a_refusal_that_comes_again_after_a_break_is_followed_by_a_new_number() -> None:
    async with linked() as (link, server):
        answers = [pull_rows(link), push_rows(link)]
        asked = await server.take(2)
        asked[0].answer()
        await answers[0]
        server.hang_up()  # with the refusal on its way
        (retry,) = await server.take(1)
        assert (codings([retry]), numbers([retry])) == (["raw"], [1])
        retry.refuse(UNKNOWN)
        (again,) = await server.take(1)
        assert (codings([again]), numbers([again])) == (["raw"], [2])
        again.answer()
        assert (await answers[1])[0] == Pushed(2)


async def test_keys_of_held_pushes_are_named_too() -> None:
    async with linked() as (link, server):
        answers = [push_rows(link) for _ in range(UNDER_WAY + 2)]
        asked = await server.take(UNDER_WAY)
        asked[1].refuse(UNKNOWN)  # and waits for its turn
        asked[0].answer()
        asked += await server.take(2)
        asked[2].answer()
        asked += await server.take(1)
        assert numbers(asked) == list(range(1, UNDER_WAY + 4))
        assert codings(asked[-3:]) == ["raw", "known", "raw"]
        for one in asked[3:]:
            one.answer()
        replies = await asyncio.gather(*answers)
        assert replies[1][0].version == UNDER_WAY + 3


async def test_a_request_that_is_too_long_makes_no_keys_known() -> None:
    async with linked() as (link, server):
        with pytest.raises(FrameTooLarge):
            link.send(Pull(("x" * 128,) * 1000, (ROWS,), (PART,)), (KEYS,))
        answer = pull_rows(link)
        asked = await server.take(1)
        assert codings(asked) == ["raw"]
        asked[0].answer()
        await answer


async def test_a_pull_of_rows_that_was_given_up_is_not_asked_again() -> None:
    async with linked() as (link, server):
        answer = pull_rows(link)
        (asked,) = await server.take(1)
        answer.cancel()
        await asyncio.sleep(0)
        asked.refuse(UNKNOWN)
        ping = link.send(Ping())
        (asked,) = await server.take(1)
        assert isinstance(asked.request, Ping)
        asked.answer()
        await ping


async def test_a_push_of_rows_that_was_given_up_is_sent_again_all_the_same() -> None:
    async with linked() as (link, server):
        answer = push_rows(link)
        (asked,) = await server.take(1)
        answer.cancel()
        asked.refuse(UNKNOWN)  # at staleness 0 others wait for it
        (again,) = await server.take(1)
        assert numbers([again]) == [2]
        again.answer()
        await holds(link._numbered[-1].done)


async def test_a_link_that_ends_fails_what_names_keys() -> None:
    async with linked() as (link, server):
        answers = [push_rows(link) for _ in range(UNDER_WAY + 2)]
        await server.take(UNDER_WAY)
        link.fail(Fenced("out"))
        answers += [pull_rows(link), push_rows(link)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert {type(one) for one in found} == {Fenced}


@pytest.mark.parametrize("values", [None, "float16", "bfloat16"])
async def test_a_server_that_takes_rows_as_asked_for(values: str | None) -> None:
    async with linked(values=values) as (link, server):
        answer = pull_rows(link)
        (await server.next()).answer()
        await answer


async def test_a_server_that_does_not_take_rows_as_asked_for() -> None:
    with pytest.raises(BadRequest) as caught:
        async with linked(values="float16", takes=("float32", "bfloat16")):
            raise AssertionError("the server takes no float16")
    assert (caught.value.field, caught.value.value) == ("values", "float16")
    assert "float32, bfloat16" in caught.value.message


# --- when the connection breaks


async def test_what_is_unanswered_is_sent_again_in_order_and_nothing_else_is() -> None:
    async with linked() as (link, server):
        answers = [push(link, value) for value in (1.0, 2.0, 3.0, 4.0)]
        asked = await server.take(4)
        asked[0].answer()
        asked[2].answer()
        await asyncio.gather(answers[0], answers[2])
        server.hang_up()
        again = await server.take(2)
        assert numbers(again) == [2, 4]
        assert [one.arrays[0][0] for one in again] == [2.0, 4.0]
        answers.append(push(link))
        again += await server.take(1)
        assert again[-1].request.seq == 5
        for one in again:
            one.answer()
        assert [reply.version for reply, _ in await asyncio.gather(*answers)] == [1, 2, 3, 4, 5]
        assert recovery(link) == Recovery(reconnects=1, retries=2)


async def test_it_goes_on_over_as_many_connections_as_it_takes() -> None:
    async with linked() as (link, server):
        answers = [push(link, value) for value in (1.0, 2.0)]
        for _ in range(6):
            assert numbers(await server.take(2)) == [1, 2]
            server.hang_up()
        for one in await server.take(2):
            one.answer()
        await asyncio.gather(*answers)
        assert recovery(link) == Recovery(reconnects=6, retries=12)


async def test_what_comes_while_there_is_no_connection_goes_behind_what_was_under_way() -> None:
    async with linked() as (link, server):
        answers = [push(link), link.send(Ping())]
        await server.take(2)
        server.deafen()
        server.hang_up()
        await lost(link)
        answers += [push(link), link.send(Pull(("w",))), push(link)]
        await server.listen()
        asked = await server.take(5)
        assert [one.request.op for one in asked] == ["push", "ping", "push", "pull", "push"]
        assert numbers([asked[0], asked[2], asked[4]]) == [1, 2, 3]
        for one in asked:
            one.answer()
        await asyncio.gather(*answers)
        assert recovery(link).retries == 2  # the others were not sent before


async def test_a_reply_that_is_cut_in_the_midst_is_received_again() -> None:
    """Into the same arrays: the caller's."""
    async with linked() as (link, server):
        part = Part("w", "float32", 1 << 20)
        into = [np.zeros(part.elements, np.float32)]
        answer = link.send(Pull(("w",)), into=into)
        asked = await server.next()
        asked.connection.reply(asked.id, Pulled(1, (part,)), [np.full(part.elements, 7, np.float32)])
        await holds(lambda: bool(into[0].any()))  # its first bytes have arrived
        server.hang_up()
        asked = await server.next()
        asked.connection.reply(asked.id, Pulled(2, (part,)), [np.full(part.elements, 8, np.float32)])
        reply, _ = await answer
        assert reply.version == 2
        assert (into[0] == 8).all()


async def test_the_hello_is_said_on_each_connection_as_it_is_then() -> None:
    async with linked() as (link, server):
        link.hello = hello("job", 3, 4)
        server.hang_up()
        await server.greeted(2)
        assert server.hellos == [hello("job", 1, 2), hello("job", 3, 4)]


async def test_more_than_a_server_remembers_is_held_back_without_a_connection_too() -> None:
    async with linked() as (link, server):
        server.hang_up()
        await lost(link)
        answers = [push(link) for _ in range(UNDER_WAY + 2)]
        asked = await server.take(UNDER_WAY)
        probe = link.send(Ping())
        ping = await server.next()
        assert isinstance(ping.request, Ping)
        ping.answer()
        await probe
        for one in asked:
            one.answer()
        asked += await server.take(2)
        for one in asked[UNDER_WAY:]:
            one.answer()
        assert numbers(asked) == list(range(1, UNDER_WAY + 3))
        await asyncio.gather(*answers)


async def test_a_server_that_stops_answers_nothing_for_good() -> None:
    """ShuttingDown is no answer to what another connection may yet be asked."""
    async with linked() as (link, server):
        answers = [push(link), push(link)]
        first, _ = await server.take(2)
        first.refuse(ShuttingDown("the server is stopping"))
        server.hang_up()
        again = await server.take(2)
        assert numbers(again) == [1, 2]
        for one in again:
            one.answer()
        await asyncio.gather(*answers)


@pytest.mark.parametrize("error", [ConnectionLost("busy"), ShuttingDown("the server is stopping")])
async def test_a_server_that_cannot_greet_yet_is_tried_again(error: PSError) -> None:
    async with linked() as (link, server):
        answer = push(link)
        await server.next()
        server.refuse_with = error
        server.hang_up()
        await server.greeted(3)
        server.refuse_with = None
        (await server.next()).answer()
        await answer


# --- what callers have given up


async def test_a_cancelled_push_leaves_no_gap_in_the_numbers() -> None:
    async with linked() as (link, server):
        answers = [push(link, value) for value in (1.0, 2.0, 3.0)]
        await server.take(3)
        answers[1].cancel()
        server.hang_up()
        asked = await server.take(3)
        assert numbers(asked) == [1, 2, 3]
        assert asked[1].arrays[0][0] == 2.0  # with its content: the first try may have counted
        for one in asked:
            one.answer()
        await asyncio.gather(answers[0], answers[2])


async def test_a_cancelled_push_that_was_held_back_has_no_number() -> None:
    async with linked() as (link, server):
        answers = [push(link) for _ in range(UNDER_WAY + 3)]
        answers[UNDER_WAY].cancel()
        asked = await server.take(UNDER_WAY)
        for one in asked:
            one.answer()
        rest = await server.take(2)
        assert numbers(rest) == [UNDER_WAY + 1, UNDER_WAY + 2]
        for one in rest:
            one.answer()
        del answers[UNDER_WAY]
        await asyncio.gather(*answers)


async def test_cancelling_the_oldest_lets_what_is_held_go() -> None:
    async with linked() as (link, server):
        answers = [push(link) for _ in range(UNDER_WAY + 1)]
        answers[0].cancel()
        asked = await server.take(UNDER_WAY + 1)
        assert numbers(asked) == list(range(1, UNDER_WAY + 2))
        for one in asked:
            one.answer()
        await asyncio.gather(*answers[1:])


async def test_a_held_push_whose_caller_goes_once_it_was_sent_is_still_sent_again() -> None:
    async with linked() as (link, server):
        answers = [push(link) for _ in range(UNDER_WAY + 1)]
        asked = await server.take(UNDER_WAY)
        for one in asked:
            one.answer()
        await asyncio.gather(*answers[:-1])
        await server.next()
        answers[-1].cancel()
        server.hang_up()
        again = await server.next()
        assert again.request.seq == UNDER_WAY + 1
        again.refuse(BadTensor("nobody looks at this"))
        after = push(link)
        (await server.next()).answer()
        await after


async def test_a_question_whose_caller_has_gone_is_not_asked_again() -> None:
    async with linked() as (link, server):
        given_up, wanted = link.send(Pull(("w",))), link.send(Pull(("v",)))
        await server.take(2)
        given_up.cancel()
        server.hang_up()
        asked = await server.next()
        assert asked.request.names == ("v",)
        asked.answer()
        await wanted
        assert server.nothing_else()


# --- the budget


async def test_a_server_that_stays_away_is_given_up() -> None:
    async with linked(reconnect_for=0.2) as (link, server):
        answers = [link.send(Ping()), *(push(link) for _ in range(UNDER_WAY + 1))]  # the last is held back
        await server.take(UNDER_WAY + 1)
        server.deafen()
        server.hang_up()
        await lost(link)
        answers.append(push(link))
        for answer in answers:
            with pytest.raises(ConnectionLost, match="unknown") as caught:
                await answer
            assert (caught.value.field, caught.value.value) == ("server", f"127.0.0.1:{server.port}")
        for attempt in (push(link), link.send(Ping())):  # at once, now
            assert attempt.done()
            with pytest.raises(ConnectionLost):
                await attempt


async def test_a_server_that_hangs_when_it_is_greeted_is_given_up() -> None:
    async with linked(reconnect_for=0.2) as (link, server):
        answer = push(link)
        server.greets = False
        server.hang_up()
        with pytest.raises(ConnectionLost, match="unknown"):
            await answer


async def test_a_request_that_is_never_answered_is_given_up_though_connections_come() -> None:
    """And its number is not missing afterwards."""
    async with linked(reconnect_for=60.0) as (link, server):
        answers = {"push": push(link), "pull": link.send(Pull(("w",)))}
        await server.take(2)
        server.hang_up()
        await server.take(2)  # again
        assert link._connection is not None
        for pending in link._connection._pending.values():
            assert pending.since is not None
            pending.since -= 61.0  # as if its trouble had begun so long ago
        server.hang_up()
        for op, answer in answers.items():
            with pytest.raises(ConnectionLost, match="unknown") as caught:
                await answer
            assert (caught.value.field, caught.value.value) == ("op", op)
        after = push(link)
        asked = await server.take(2)
        assert numbers(asked) == [1, 2]
        for one in asked:
            one.answer()
        assert (await after)[0] == Pushed(2)


async def test_with_no_time_to_try_a_broken_connection_is_the_end() -> None:
    async with linked(reconnect_for=0.0) as (link, server):
        answer = push(link)
        await server.next()
        server.hang_up()
        with pytest.raises(ConnectionLost):
            await answer
        assert server.accepted == 1


async def test_nobody_there_to_begin_with() -> None:
    with reserved_port() as port:
        link = Link(("127.0.0.1", port), hello(), Traffic(), Recovery(), 0.05)
        with pytest.raises(Unreachable):
            await link.open()
        with pytest.raises(Unreachable):  # rather than waiting for ever
            await link.send(Ping())
        await link.close()


async def test_what_is_sent_before_the_link_is_open_goes_when_it_is() -> None:
    server = Scripted()
    await server.listen()
    link = Link(("127.0.0.1", server.port), hello(), Traffic(), Recovery(), 60.0)
    answer = push(link)
    await link.open()
    (await server.next()).answer()
    await answer
    assert recovery(link) == Recovery()
    await link.close()
    await server.stop()


# --- what trying again would not change


async def test_bytes_that_make_no_sense_end_the_link() -> None:
    async with linked() as (link, server):
        answer = push(link)
        asked = await server.next()
        assert asked.connection._transport is not None
        asked.connection._transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))
        with pytest.raises(BadFrame):
            await answer
        with pytest.raises(BadFrame):
            await push(link)
        assert server.accepted == 1


async def test_a_server_that_says_that_our_bytes_make_no_sense_ends_the_link() -> None:
    async with linked() as (link, server):
        answer = push(link)
        asked = await server.next()
        asked.connection.fail(0, "", FrameTooLarge("at most 10 bytes", field="payload length", value=12))
        with pytest.raises(FrameTooLarge, match="at most 10"):
            await answer
        with pytest.raises(FrameTooLarge):
            await push(link)
        assert server.accepted == 1


async def test_a_server_that_came_back_as_another_is_not_asked_for_long() -> None:
    async with linked() as (link, server):
        answer = push(link)
        await server.next()
        server.refuse_with = VersionMismatch("this server speaks another")
        server.hang_up()
        with pytest.raises(VersionMismatch):
            await answer


# --- silence


async def test_a_connection_on_which_nothing_moves_is_given_up() -> None:
    async with linked() as (link, server):
        answer = push(link)
        asked = [await server.next(), await ping(link, server)]
        while server.accepted == 1:
            link.watch(0.0)
            await asyncio.sleep(0)
        again = await server.take(2)
        assert [one.request for one in again] == [one.request for one in asked]
        for one in again:
            one.answer()
        await answer
        assert recovery(link) == Recovery(reconnects=1, retries=2)


async def ping(link: Link, server: Scripted) -> Asked:
    """Have the link ask whether the server is there."""
    while server.nothing_else():
        link.watch(1000.0)
        await asyncio.sleep(0)
    asked = await server.next()
    assert isinstance(asked.request, Ping)
    return asked


async def test_a_connection_on_which_something_moves_is_not_given_up() -> None:
    async with linked() as (link, server):
        answer = push(link)
        waiting = await server.next()
        for _ in range(20):
            pinged = await ping(link, server)
            assert link._ping is not None
            pinged.answer()
            await link._ping
            link.watch(0.0)
        waiting.answer()
        await answer
        assert server.accepted == 1


async def test_one_question_at_a_time_whether_it_is_there() -> None:
    async with linked() as (link, server):
        pinged = await ping(link, server)
        for _ in range(10):
            link.watch(1000.0)
        question = link.send(Pull(("w",)))
        (asked,) = await server.take(1)
        assert isinstance(asked.request, Pull)
        for one in (pinged, asked):
            one.answer()
        await question
        await ping(link, server)


# --- the end


async def test_after_the_end_nothing_is_sent() -> None:
    async with linked() as (link, server):
        answers = [push(link) for _ in range(UNDER_WAY + 1)]
        await server.take(UNDER_WAY)
        await link.close()
        for answer in (*answers, push(link)):
            with pytest.raises(ConnectionLost):
                await answer
        assert server.nothing_else()


async def test_what_comes_after_the_end_is_told_its_reason() -> None:
    async with linked() as (link, _):
        link.fail(Fenced("out", field="worker", value=1))
        await link.close()
        with pytest.raises(Fenced):
            await push(link)


async def test_the_end_while_a_server_is_tried_again() -> None:
    async with linked() as (link, server):
        answer = push(link)
        await server.next()
        server.greets = False
        server.hang_up()
        await server.greeted(2)
        await link.close()
        with pytest.raises(ConnectionLost):
            await answer


async def test_a_link_that_has_failed_is_not_taken_up_again() -> None:
    async with linked() as (link, server):
        server.deafen()
        server.hang_up()
        await lost(link)
        answer = push(link)
        link.fail(BadTensor("for whatever reason"))
        with pytest.raises(BadTensor):
            await answer
        await server.listen()
        with pytest.raises(BadTensor):
            await link.send(Ping())
        assert link._reconnecting is not None
        await asyncio.wait([link._reconnecting])
        assert server.accepted == 1


@pytest.mark.parametrize("elements", [4, 8 << 20])
async def test_the_end_does_not_wait_for_a_server_that_reads_nothing(elements: int) -> None:
    async with linked() as (link, server):
        (connection,) = server.connections
        assert connection._transport is not None
        connection._transport.pause_reading()
        answer = push(link, part=Part("w", "float32", elements))
        await link.close()
        with pytest.raises(ConnectionLost):
            await answer


async def test_who_waits_for_the_end_may_be_cancelled() -> None:
    async with linked() as (link, server):
        server.greets = False
        server.hang_up()
        await server.greeted(2)
        closing = asyncio.create_task(link.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
