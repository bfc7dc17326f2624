"""A client's link to one server: the same requests and replies, over as many connections as it takes.

When a connection breaks, what is unanswered is sent again on the next one, in the order in which it was first
sent. The server knows retries by their numbers, so nothing counts twice. Every request has one budget for all
its retries; when that is spent it fails, and says that its outcome is unknown.

A list of keys is sent once on a connection and named from then on. If the server does not know it any more,
the request is sent again with its keys, at once: at staleness 0 the other shards' answers wait for this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, cast

from protocol.addresses import join_address
from protocol.backoff import Backoff
from protocol.connection import Answer, Array, Connection, Pending, RefuseAll, Traffic, check_length
from protocol.credentials import Credentials
from protocol.errors import (
    ConnectionLost,
    FrameTooLarge,
    NotReady,
    PSError,
    ShuttingDown,
    UnknownKeys,
    WireError,
)
from protocol.events import about
from protocol.messages import Empty, Hello, Mark, Ping, Request, Welcome
from protocol.sequences import UNDER_WAY
from protocol.tensors import payload_length
from psworker.dialling import MAX_PAYLOAD, greet, reach
from psworker.known_keys import Keyed, KnownKeys, names_keys

__all__ = ["Link", "Recovery"]

_log = logging.getLogger(__name__)

_SILENT_INTERVALS: Final = 2
"""Heartbeat intervals without a byte, in or out, after which a connection is given up: before the
coordinator gives the worker up."""

_HEALTHY_AFTER: Final = 5.0
"""Seconds that a connection has to last for what waits on it to count as waiting for a good reason."""


_Numbered = Callable[[int], Request]


class _Once(NamedTuple):
    """A request that must count once; ``again``: under a new number, for its keys were not known."""

    numbered: _Numbered
    arrays: Sequence[Array]
    into: Sequence[Array] | None
    again: bool = False


class _Keyed(Pending):
    """A request that names keys: ``whole`` has all of them, what is sent only those that are not known."""

    __slots__ = ("whole",)

    def __init__(
        self, request: Keyed, arrays: Sequence[Array], into: Sequence[Array] | None, future: Answer
    ) -> None:
        super().__init__(request, arrays, into, future)
        self.whole = request, arrays


@dataclass(slots=True)
class Recovery:
    """What it took to go on: connections made anew, and requests sent again."""

    reconnects: int = 0
    retries: int = 0


class Link(RefuseAll):
    """The link to one server.

    Args:
        address: host and port.
        hello: said on every connection.
        traffic: where bytes are counted.
        recovery: where reconnects and retries are counted.
        reconnect_for: seconds that a request may take from its first trouble to its answer.
        values: the dtype in which rows are to travel, which the server has to take; None: that of each table.
        marked: called when the server asks for markers of a checkpoint; None: it has no business to.
        credentials: who this end is; None: nobody asks.

    Attributes:
        hello: may be changed; it is said on the next connection.
        timeline: of the server's state, as of the last connection.
    """

    def __init__(
        self,
        address: tuple[str, int],
        hello: Hello,
        traffic: Traffic,
        recovery: Recovery,
        reconnect_for: float,
        values: str | None = None,
        marked: Callable[[int], None] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.hello = hello
        self.timeline = 0
        self._max_frame = MAX_PAYLOAD
        self._marked = marked
        self._address = address
        self._traffic = traffic
        self._recovery = recovery
        self._reconnect_for = reconnect_for
        self._values = values
        self._credentials = credentials
        self._connection: Connection | None = None
        self._waiting: list[Pending] = []  # for the next connection
        self._reconnecting: asyncio.Task[None] | None = None
        self._error: PSError | None = None
        self._seq = 0
        self._numbered: deque[Answer] = deque()  # from the oldest that is not answered
        self._held: deque[tuple[_Once, Answer]] = deque()  # until fewer are under way
        self._known = KnownKeys()
        self._progress = 0
        self._moved = self._taken = 0.0
        self._ping: Answer | None = None

    async def open(self) -> None:
        """Connect, trying again while nobody answers.

        Raises:
            Unreachable: nobody answered in time.
            PSError: the server refuses.
        """
        try:
            connection = await reach(
                *self._address,
                hello=self.hello,
                within=self._reconnect_for,
                traffic=self._traffic,
                handler=self,
                values=self._values,
                credentials=self._credentials,
            )
        except PSError as error:
            self.fail(error)
            raise
        self._take(connection)

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        """Take nothing but what a coordinator may ask a worker for."""
        if isinstance(request, Mark) and self._marked is not None:
            return ()
        return super().prepare(connection, request)

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        """Do what the coordinator asks for."""
        assert self._marked is not None  # noqa: S101 (prepare)
        self._marked(request.checkpoint)
        connection.reply(request_id, Empty())

    def _take(self, connection: Connection) -> None:
        """Go on with a new connection."""
        welcome: Welcome = connection.session
        self.timeline = max(self.timeline, welcome.timeline)
        self._max_frame = welcome.max_frame
        connection.resend = True
        self._connection = connection
        self._taken = self._moved = asyncio.get_running_loop().time()
        self._progress = -1
        waiting, self._waiting = self._waiting, []
        self._recovery.retries += sum(pending.since is not None for pending in waiting)
        self._known.clear()
        for pending in waiting:
            self._submit(connection, pending)

    # --- requests

    def check(self, arrays: Sequence[Array]) -> None:
        """Refuse a payload, with all its keys, that the server would end the connection for.

        Raises:
            FrameTooLarge: it is above the server's limit.
        """
        one = len(arrays) == 1
        length = arrays[0].nbytes if one else payload_length([array.nbytes for array in arrays])
        if length > self._max_frame:
            raise FrameTooLarge(
                f"{self._name} takes at most {self._max_frame} bytes at once (--max-frame); "
                "push or pull less in one request",
                field="payload length",
                value=length,
            )

    def send(
        self, request: Request, arrays: Sequence[Array] = (), into: Sequence[Array] | None = None
    ) -> Answer:
        """Send a request that may be done twice; as ``Connection.send``."""
        if not names_keys(request):
            return self._send(request, arrays, into)
        answer = self._send_keyed(cast(Keyed, request), arrays, into)
        again = partial(self._send_keyed, cast(Keyed, request), arrays, into, again=True)
        future = self._or_again(answer, again)
        future.add_done_callback(partial(_give_up_with, answer))
        return future

    def _send(self, request: Request, arrays: Sequence[Array], into: Sequence[Array] | None) -> Answer:
        if self._connection is not None and self._error is None:
            return self._connection.send(request, arrays, into)
        future: Answer = asyncio.get_running_loop().create_future()
        self._wait(Pending(request, arrays, into, future))
        return future

    def _wait(self, pending: Pending) -> None:
        """Have a request sent on the next connection."""
        if self._error is not None:
            pending.future.set_exception(self._error)
        else:
            check_length(pending.request)  # now, for later nobody could be told
            self._waiting.append(pending)

    def send_once(
        self,
        numbered: _Numbered,
        arrays: Sequence[Array] = (),
        into: Sequence[Array] | None = None,
    ) -> Answer:
        """Send a request that must count once; ``numbered`` makes it of its sequence number.

        Requests are numbered in the order of the calls. At most ``UNDER_WAY`` are sent before the first of
        them is answered, which bounds what the server has to remember.
        """
        return self._send_once(_Once(numbered, arrays, into))

    def _send_once(self, once: _Once) -> Answer:
        if self._held or (self._numbered and self._is_full()):
            future: Answer = asyncio.get_running_loop().create_future()
            if not self._held:
                self._numbered[0].add_done_callback(self._send_held)
            self._held.append((once, future))
            return future
        return self._send_numbered(once)

    def _send_numbered(self, once: _Once) -> Answer:
        request = once.numbered(self._seq + 1)
        keyed = names_keys(request)
        if keyed:
            answer = self._send_keyed(cast(Keyed, request), once.arrays, once.into, again=once.again)
        else:
            answer = self._send(request, once.arrays, once.into)
        self._seq += 1  # now, for what cannot be sent at all has no number
        self._numbered.append(answer)
        if keyed and not once.again:
            return self._or_again(answer, partial(self._send_once, once._replace(again=True)))
        return answer

    def _is_full(self) -> bool:
        numbered = self._numbered
        while numbered and numbered[0].done():
            numbered.popleft()
        return len(numbered) >= UNDER_WAY

    def _send_held(self, _: Answer) -> None:
        while self._held and not self._is_full():
            once, future = self._held.popleft()
            if future.cancelled():
                continue
            try:
                self._send_numbered(once).add_done_callback(partial(_pass_on, future))
            except PSError as error:
                future.set_exception(error)
        if self._held:
            self._numbered[0].add_done_callback(self._send_held)

    # --- requests that name keys

    def _send_keyed(
        self,
        request: Keyed,
        arrays: Sequence[Array],
        into: Sequence[Array] | None,
        *,
        again: bool = False,
    ) -> Answer:
        """Send a request without the keys that are known; ``again``: with all of them."""
        future: Answer = asyncio.get_running_loop().create_future()
        pending = _Keyed(request, arrays, into, future)
        if self._connection is not None and self._error is None:
            self._submit(self._connection, pending, again=again)
        else:
            self._wait(pending)
        return future

    def _submit(self, connection: Connection, pending: Pending, *, again: bool = False) -> None:
        if isinstance(pending, _Keyed):
            # What is sent again may be a retry, of which the server might not look at the keys.
            whole = again or pending.since is not None
            pending.request, pending.arrays = self._known.shorten(*pending.whole, whole=whole)
            try:
                connection.submit(pending)
            except PSError:
                self._known.clear()  # it was not sent
                raise
        else:
            connection.submit(pending)

    def _or_again(self, answer: Answer, again: Callable[[], Answer]) -> Answer:
        """Return the answer, or that to a second try if the server did not know the keys."""
        future: Answer = asyncio.get_running_loop().create_future()

        def settle(answer: Answer) -> None:
            if answer.cancelled() or not isinstance(answer.exception(), UnknownKeys):
                _pass_on(future, answer)
                return
            self._known.clear()
            try:
                again().add_done_callback(partial(_pass_on, future))
            except PSError as error:
                if not future.done():
                    future.set_exception(error)

        answer.add_done_callback(settle)
        return future

    # --- when the connection breaks

    def lost(self, connection: Connection) -> None:
        """Take note that a connection has ended, and make another."""
        if connection is not self._connection:
            return
        self._connection = None
        if self._error is not None:
            return
        if isinstance(connection.error, WireError):  # trying again would change nothing
            self.fail(connection.error)
            return
        # What its caller has given up need not be asked again, unless its number would be missing.
        now = asyncio.get_running_loop().time()
        for pending in connection.take_unanswered():
            if pending.since is None or now - self._taken > _HEALTHY_AFTER:
                pending.since = now
            if not pending.future.done() or hasattr(pending.request, "seq"):
                self._waiting.append(pending)
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect(now))

    async def _reconnect(self, began: float) -> None:
        loop, backoff = asyncio.get_running_loop(), Backoff()
        _log.warning(
            "the connection to %s has ended; trying for %g s", self._name, self._reconnect_for,
            extra=about("link.lost", server=self._name),
        )  # fmt: skip
        while True:
            left = began + self._reconnect_for - loop.time()
            if left <= 0:
                self.fail(
                    ConnectionLost(
                        f"the server has not answered for {self._reconnect_for:g} s; whether what was under "
                        "way was applied is unknown",
                        field="server",
                        value=self._name,
                    )
                )
                return
            self._expire(loop.time())
            await asyncio.sleep(backoff.pause(left))
            try:
                async with asyncio.timeout_at(began + self._reconnect_for):
                    connection = await greet(
                        *self._address, self.hello, self._traffic, self, self._values, self._credentials
                    )
            except (OSError, ConnectionLost, ShuttingDown, NotReady) as error:
                _log.debug("no answer from %s: %s", self._name, error)
                continue
            except PSError as error:
                self.fail(error)
                return
            self._recovery.reconnects += 1
            _log.info(
                "connected to %s again; requests that go on: %d", self._name, len(self._waiting),
                extra=about("link.back", server=self._name),
            )  # fmt: skip
            self._take(connection)
            return

    def _expire(self, now: float) -> None:
        """Fail the requests whose budget is spent, though connections come and go."""
        left = []
        for pending in self._waiting:
            spent = pending.since is not None and now - pending.since > self._reconnect_for
            if not spent or hasattr(pending.request, "seq"):
                left.append(pending)
            if spent and not pending.future.done():
                pending.future.set_exception(
                    ConnectionLost(
                        f"not answered within {self._reconnect_for:g} s over several connections; whether it "
                        "was applied is unknown",
                        field="op",
                        value=pending.request.op,
                    )
                )
        self._waiting = left

    def watch(self, interval: float) -> None:
        """Ask whether the server is there, and give up a silent connection; to be called every interval."""
        connection, now = self._connection, asyncio.get_running_loop().time()
        if connection is None:
            return
        progress = connection.progress
        if progress != self._progress:
            self._progress, self._moved = progress, now
        elif now - self._moved > _SILENT_INTERVALS * interval:
            _log.warning(
                "%s is silent; connecting again", self._name, extra=about("link.lost", server=self._name)
            )
            connection.abort()
        elif self._ping is None or self._ping.done():
            self._ping = self.send(Ping())
            self._ping.add_done_callback(_look_at)

    @property
    def _name(self) -> str:
        return join_address(*self._address)

    # --- the end

    def fail(self, error: PSError) -> None:
        """End the link: all that is under way, and all that comes, fails with ``error``.

        What comes fails with the first error of several: that is the reason, and not that it was closed then.
        """
        self._error = self._error or error
        if self._reconnecting is not None and self._reconnecting is not asyncio.current_task():
            self._reconnecting.cancel()
        waiting, self._waiting = self._waiting, []
        held, self._held = self._held, deque()
        for future in (*(pending.future for pending in waiting), *(future for _, future in held)):
            if not future.done():
                future.set_exception(error)
        if self._connection is not None:
            self._connection.close(error)

    async def close(self) -> None:
        """End the link and wait for the socket to close."""
        connection = self._connection
        self.fail(ConnectionLost("the connection was closed at this end"))
        if connection is not None:
            connection.abort()  # a server that reads nothing would never take what is queued
        if self._reconnecting is not None:
            await asyncio.wait([self._reconnecting])
        if connection is not None:
            await connection.wait_closed()


def _pass_on(future: Answer, answer: Answer) -> None:
    if future.done():
        _look_at(answer)
    elif answer.cancelled():
        future.cancel()
    elif (error := answer.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(answer.result())


def _give_up_with(answer: Answer, future: Answer) -> None:
    if future.cancelled():
        answer.cancel()


def _look_at(answer: Answer) -> None:
    """Retrieve an error that nobody else is interested in: the link takes care of it."""
    if not answer.cancelled():
        answer.exception()
