"""The one asyncio connection that clients and servers use: frames in, frames out, replies matched by id.

Either end may send requests. A payload is received straight into the arrays it is meant for, and arrays
are sent from where they are: whoever sends an array must not write to it afterwards.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import socket as socket_module
import ssl
import sys
import termios
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from protocol.errors import (
    BadFrame,
    BadRequest,
    BadTensor,
    ConnectionLost,
    FrameTooLarge,
    PSError,
    ShuttingDown,
    WireError,
)
from protocol.frames import DIRECT, MAX_HEADER, FrameReader, Head, Segment, encode_prelude
from protocol.messages import (
    Empty,
    Header,
    Reply,
    Request,
    decode_header,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from protocol.tensors import DTYPES, Part, payload_length, segments, write_buffers
from protocol.tls_layer import TLSLayer

__all__ = [
    "Answer",
    "Array",
    "Connection",
    "Handler",
    "Pending",
    "RefuseAll",
    "Traffic",
    "check_length",
    "dial",
]

Array = npt.NDArray[Any]

Answer = asyncio.Future[tuple[Any, Sequence[Array]]]
"""A reply that is on its way, and the arrays that come with it."""

_JOINED: Final = DIRECT
"""Frames up to this many bytes are sent as one piece: copying them costs less than a longer writev."""

_QUEUED: Final = 64 * 1024 * 1024
"""A server reads no further requests from a peer while this many bytes wait to be sent to it."""


_UNASKED: Final = 64 * 1024 * 1024
"""Bytes accepted of a reply whose size the asker does not know beforehand, such as a status."""

_LONGEST_ID: Final = 1 << 63
"""An id that takes as many bytes as any."""

_KEEPALIVE: Final = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 30_000,
}
"""Seconds of silence before the kernel asks, between two such questions, and how many go unanswered; and
milliseconds after which it gives up on what it has sent and nobody has confirmed, or has room for."""


class Handler(Protocol):
    """Who answers the requests of a connection. Its methods are called from the event loop."""

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        """Return the arrays that the request's payload is received into, as its ``tensors`` say.

        Called when the header has arrived, and the payload has the length that it says. Raise a ``PSError``
        to refuse the request; its payload is then thrown away.
        """
        ...

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        """Answer the request, now or later, with ``connection.reply`` or ``connection.fail``."""
        ...

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        """Take note of a request that was answered with an error, or of bytes that made no sense."""
        ...

    def lost(self, connection: Connection) -> None:
        """Take note that the connection has ended; nothing can be sent on it any more."""
        ...


class RefuseAll:
    """The handler of an end that only sends requests."""

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        """Refuse the request."""
        raise BadRequest("this end answers no requests", field="op", value=request.op)

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        """Never called: ``prepare`` refuses."""
        raise AssertionError

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        """Do nothing: the peer has been told."""

    def lost(self, connection: Connection) -> None:
        """Do nothing: pending requests have been failed."""


@dataclass(slots=True)
class Traffic:
    """Bytes that one or several connections have received and sent."""

    received: int = 0
    sent: int = 0


class Pending:
    """A request of ours whose reply has not come yet; ``into`` None takes any tensors.

    ``since`` is for whoever sends it again on another connection: when its trouble began.
    """

    __slots__ = ("arrays", "future", "into", "request", "since")

    def __init__(
        self, request: Request, arrays: Sequence[Array], into: Sequence[Array] | None, future: Answer
    ) -> None:
        self.request = request
        self.arrays = arrays
        self.into = into
        self.future = future
        self.since: float | None = None


class Connection(asyncio.BufferedProtocol):
    """One TCP connection.

    Args:
        handler: who answers the peer's requests.
        max_payload: largest payload accepted from the peer, in bytes.
        traffic: where bytes are counted; shared by all connections of a server.
        server: stop reading while the peer does not read what it asked for. Only one end may do so, else
            both could wait for each other.
        resend: requests that are unanswered when the connection is lost do not fail: the handler takes them
            with ``take_unanswered`` and sends them again elsewhere.

    Attributes:
        peer: the peer's address, for logs.
        session: whatever the handler keeps about the peer.
        greeted: whether the peer has said hello; kept by the handler.
        expects: if not empty, the only operations that are looked at; kept by the handler.
        opened: the loop's time at which the connection was made.
        received: bytes received on it.
        awaited: answers to the peer that take their time, and are being worked on; kept by the handler.
        resend: requests that are unanswered when the connection is lost do not fail: the handler takes them
            with ``take_unanswered`` and sends them again elsewhere.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        max_payload: int,
        traffic: Traffic,
        server: bool = False,
    ) -> None:
        self.peer = ""
        self.session: Any = None
        self.greeted = False
        self.expects: Collection[str] = ()
        self.opened = 0.0
        self.received = 0
        self.awaited = 0
        self._sent = 0
        self.resend = False
        self._handler = handler
        self._reader = FrameReader(max_payload)
        self._traffic = traffic
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._pending: dict[int, Pending] = {}  # by id, in the order of sending
        # Held back until the peer reads; a notice has no ``Pending``.
        self._queue: deque[tuple[int, bytes, Pending | None]] = deque()
        self._unanswered: list[Pending] = []
        # The frame whose payload is arriving: a request, or the reply to ``_arriving_for``. None: refused.
        self._arriving: Any = None
        self._arriving_id = 0
        self._arriving_arrays: Sequence[Array] = ()
        self._arriving_for: Pending | None = None
        self._paused = False
        self._owed = 0  # bytes of replies that are being made
        self._full = False  # a server's peer must first read its replies
        self._ended: asyncio.Future[None] | None = None
        self._error: PSError | None = None  # why no more requests can be sent

    # --- what users of a connection call

    def send(
        self, request: Request, arrays: Sequence[Array] = (), into: Sequence[Array] | None = None
    ) -> Answer:
        """Send a request; return the future of its reply and the arrays that come with it.

        Requests leave in the order of the calls. The future fails with what the peer answers, or with
        ``ConnectionLost``. A request whose future is cancelled is under way all the same: its ``arrays`` may
        yet be read, and ``into`` written, until the connection has ended.

        Args:
            request: the request; its ``tensors`` must describe ``arrays``.
            arrays: C-contiguous arrays to send. They must not change before the reply has come.
            into: writeable arrays that the reply's payload is received into. None: new arrays are made.

        Raises:
            FrameTooLarge: the request names too much at once.
        """
        future: Answer = asyncio.get_running_loop().create_future()
        self.submit(Pending(request, arrays, into, future))
        return future

    def submit(self, pending: Pending) -> None:
        """Send a request that was made for this or another connection, as ``send`` does."""
        if self._error is not None:
            self._settle(pending, self._error)
            return
        request_id = next(self._ids)
        header = encode_request(request_id, pending.request)
        if len(header) > MAX_HEADER:
            raise _too_long(header)
        if self._paused:
            self._queue.append((request_id, header, pending))
        else:
            self._pending[request_id] = pending
            self._send(header, pending.arrays)

    async def request(
        self, request: Request, arrays: Sequence[Array] = (), into: Sequence[Array] | None = None
    ) -> tuple[Any, Sequence[Array]]:
        """Send a request and return its reply and the arrays that came with it; as ``send``.

        Raises:
            PSError: what the peer answered, or ``ConnectionLost``.
        """
        return await self.send(request, arrays, into)

    def notify(self, request: Request) -> None:
        """Send a request that is not answered, in its turn; does nothing once the connection has ended."""
        if self._error is None:
            header = encode_request(0, request)
            if len(header) > MAX_HEADER:
                raise _too_long(header)
            if self._paused:
                self._queue.append((0, header, None))
            else:
                self._send(header, ())

    def take_unanswered(self) -> list[Pending]:
        """Return the requests that were under way when the connection was lost, in the order of sending."""
        taken, self._unanswered = self._unanswered, []
        return taken

    @property
    def progress(self) -> int:
        """A number that changes while bytes come in or go out, however slowly."""
        if self._transport is None:
            return self.received
        waiting = self._transport.get_write_buffer_size() + _unacknowledged(self._transport)
        return self.received + self._sent - waiting

    @property
    def is_amid_frame(self) -> bool:
        """Whether the rest of a frame that the peer has begun to send is waited for."""
        return self._reader.is_amid and not self._full

    @property
    def unsent(self) -> int:
        """Bytes that wait here, as the kernel takes no more of them; 0 once the connection has ended."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def drained(self) -> int:
        """Bytes that the kernel has taken so far."""
        return self._sent - self.unsent

    def limit_unsent(self, most: int | None = None) -> None:
        """Have a server read no further requests while more than so many bytes wait; None: the usual."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=_QUEUED if most is None else most)

    def accept(self, max_payload: int, max_header: int = MAX_HEADER) -> None:
        """Change how long the payloads and headers of the frames to come may be."""
        self._reader.accept(max_payload, max_header)

    @property
    def channel(self) -> bytes:
        """What proofs on this connection are bound to: of the server's certificate; empty without TLS."""
        return self._transport.channel if isinstance(self._transport, TLSLayer) else b""

    @property
    def error(self) -> PSError | None:
        """Why nothing can be sent any more; None while it can."""
        return self._error

    def reply(self, request_id: int, reply: Reply, arrays: Sequence[Array] = ()) -> None:
        """Answer a request of the peer's; does nothing once the connection has ended."""
        if self._error is None and request_id:
            header = encode_reply(request_id, reply)
            if len(header) > MAX_HEADER:
                raise _too_long(header)
            self._send(header, arrays)

    def fail(self, request_id: int, op: str, error: PSError) -> None:
        """Answer a request of the peer's with an error; without an ``op`` it could not be read."""
        self._handler.refused(self, op, error)
        if self._error is None and (request_id or not op):
            self._send(encode_error(request_id, error), ())

    def owe(self, nbytes: int) -> None:
        """Count the bytes of a reply that is being made as if they waited already; negative: no more.

        Else a peer could ask for any number of them before the first one waits to be read.
        """
        self._owed += nbytes
        self._weigh()
        if nbytes < 0:
            self._read_on()
        elif self._full and self._transport is not None:
            self._transport.pause_reading()

    @property
    def is_open(self) -> bool:
        """Whether requests and replies can still be sent."""
        return self._error is None

    def close(self, reason: PSError | None = None) -> None:
        """Send what is queued and end the connection; pending requests fail with ``reason``."""
        self._end(reason or ConnectionLost("the connection was closed at this end"))
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return when the socket is closed."""
        if self._ended is not None:
            await asyncio.shield(self._ended)

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "?"
        loop = asyncio.get_running_loop()
        self.opened = loop.time()
        self._ended = loop.create_future()
        _keep_alive(self._transport)
        if self._server:
            self._transport.set_write_buffer_limits(high=_QUEUED)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Act on ``nbytes`` new bytes."""
        self._traffic.received += nbytes
        self.received += nbytes
        self._reader.received(nbytes)
        self._process()

    def eof_received(self) -> bool:
        """Close: a peer that sends no more takes no replies either."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is pending."""
        if self.resend and self._error is None:
            self._unanswered = self._under_way()
            self._pending.clear()
            self._queue.clear()
        if isinstance(exc, PSError):
            self._handler.refused(self, "", exc)
            self._end(exc)
        self._end(ConnectionLost(f"the connection to {self.peer} ended" + (f": {exc}" if exc else "")))
        self._transport = None  # asyncio's own raises when it is aborted once more
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self._handler.lost(self)

    def pause_writing(self) -> None:
        """Hold further requests back; a server reads no more of them either."""
        self._paused = True
        self._weigh()
        if self._server and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._weigh()
        while self._queue and not self._paused:
            request_id, header, pending = self._queue.popleft()
            if pending is not None:
                self._pending[request_id] = pending
            self._send(header, pending.arrays if pending is not None else ())
        self._read_on()

    def _read_on(self) -> None:
        """Act on what a server has not looked at while it owed too much, and read more."""
        if self._server and self._transport is not None and not self._full:
            self._process()
            if not self._full and self._error is None and self._transport is not None:
                self._transport.resume_reading()

    def _weigh(self) -> None:
        """See whether a server's peer must first read its replies."""
        self._full = self._server and (self._paused or self._owed > _QUEUED)

    # --- receiving

    def _process(self) -> None:
        """Act on what has arrived, up to where a server's peer must first read its replies."""
        reader = self._reader
        try:
            while self._error is None and not self._full:
                event = reader.next_event()
                if event is None:
                    return
                if type(event) is Head:
                    self._begin(event)
                else:
                    self._complete()
        except WireError as error:
            self._reject(error)

    def _begin(self, head: Head) -> None:
        """Decide where the payload of the frame goes whose header has arrived."""
        arrays: Sequence[Array] = ()
        pending, message = None, None
        request_id, op = 0, ""
        try:
            header = decode_header(head.header)
            request_id, op = header.id, header.op
            if op == "error" and request_id == 0:
                self.close(decode_reply(header, Empty))  # it belongs to no request, hence to all
            elif op in ("ok", "error"):
                pending = self._pending.get(request_id)
                if self.resend and op == "error" and header.fields.get("code") == ShuttingDown.code:
                    pending = None  # unanswered, also if cancelled: the connection is about to end
                elif pending is not None and pending.future.done():
                    del self._pending[request_id]
                    pending = None  # its arrays are the caller's again
                if pending is not None:
                    message, arrays = self._begin_reply(header, pending, head.payload)
            else:
                if self.expects and op not in self.expects:
                    raise BadRequest("the first request of a connection is hello", field="op", value=op)
                message = decode_request(header)
                _check_payload(getattr(message, "tensors", ()), head.payload)
                arrays = self._handler.prepare(self, message)
        except PSError as error:
            if pending is not None:
                del self._pending[request_id]
                self._settle(pending, error)
            else:
                self.fail(request_id, op, error)
            pending, message, arrays = None, None, ()
        self._arriving, self._arriving_id = message, request_id
        self._arriving_arrays, self._arriving_for = arrays, pending
        if head.payload:
            into: Sequence[Segment] = segments(arrays) if arrays else (head.payload,)
            self._reader.receive_into(into)

    def _begin_reply(self, header: Header, pending: Pending, payload: int) -> tuple[Any, Sequence[Array]]:
        message = decode_reply(header, pending.request.reply)
        if isinstance(message, PSError):
            _check_payload((), payload)
            return message, ()
        parts: tuple[Part, ...] = getattr(message, "tensors", ())
        _check_payload(parts, payload)
        arrays = pending.into
        if arrays is None:
            if payload > _UNASKED:
                raise FrameTooLarge("a reply of unknown size is too long", field="payload", value=payload)
            arrays = [np.empty(part.elements, DTYPES[part.dtype]) for part in parts]
        elif not _match(parts, arrays):
            raise BadTensor("the reply holds other tensors than asked for", field="tensors", value=parts)
        return message, arrays

    def _complete(self) -> None:
        """Act on a frame that has arrived in full."""
        message, arrays, pending = self._arriving, self._arriving_arrays, self._arriving_for
        self._arriving, self._arriving_arrays, self._arriving_for = None, (), None
        if message is None:
            return
        if pending is not None:
            self._pending.pop(self._arriving_id, None)
            self._settle(pending, message, arrays)
        else:
            self._handler.handle(self, self._arriving_id, message, arrays)

    @staticmethod
    def _settle(pending: Pending, message: Any, arrays: Sequence[Array] = ()) -> None:
        if pending.future.done():
            return
        if isinstance(message, PSError):
            pending.future.set_exception(message)
        else:
            pending.future.set_result((message, arrays))

    def _reject(self, error: WireError) -> None:
        """The peer's bytes make no sense: say so if it may understand, and end the connection."""
        self._handler.refused(self, "", error)
        if self._error is None and not (isinstance(error, BadFrame) and error.field == "magic"):
            self._send(encode_error(0, error), ())
        self.close(error)

    # --- sending

    def _send(self, header: bytes, arrays: Sequence[Array]) -> None:
        transport = cast(asyncio.Transport, self._transport)
        if not arrays:
            frame = encode_prelude(len(header), 0) + header
            self._sent += len(frame)
            self._traffic.sent += len(frame)
            transport.write(frame)
            return
        payload = _length(arrays)
        prelude = encode_prelude(len(header), payload)
        length = len(prelude) + len(header) + payload
        self._sent += length
        self._traffic.sent += length
        if payload <= _JOINED:
            transport.write(b"".join([prelude, header, *write_buffers(arrays)]))
        else:
            # The header goes ahead: the peer is woken, and reads it, while the payload is still being copied.
            transport.write(prelude + header)
            pieces = write_buffers(arrays)
            if len(pieces) == 1:
                transport.write(pieces[0])
            else:
                transport.writelines(pieces)

    # --- ending

    def _under_way(self) -> list[Pending]:
        """Return the requests that are not answered, in the order of sending."""
        queued = (pending for _, _, pending in self._queue if pending is not None)
        return [*self._pending.values(), *queued]

    def _end(self, reason: PSError) -> None:
        if self._error is not None:
            return
        self._error = reason.with_traceback(None)  # whose frames would hold this connection
        for pending in self._under_way():
            self._settle(pending, reason)
        self._pending.clear()
        self._queue.clear()


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return how many bytes the kernel holds that the peer's has not confirmed; 0 where it does not tell."""
    socket = transport.get_extra_info("socket")
    if socket is None or transport.is_closing():
        return 0
    try:
        answer = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)


def _keep_alive(transport: asyncio.Transport) -> None:
    """Have the kernel notice a peer that is gone without a word, also where nothing is being sent."""
    socket = transport.get_extra_info("socket")
    if socket is None:
        return
    socket.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        option = getattr(socket_module, name, None)  # not on every platform
        if option is not None:
            socket.setsockopt(IPPROTO_TCP, option, value)


def _too_long(header: bytes) -> FrameTooLarge:
    return FrameTooLarge(
        f"a header has at most {MAX_HEADER} bytes; name fewer tensors in one request",
        field="header length",
        value=len(header),
    )


def check_length(request: Request) -> None:
    """Refuse a request that no connection can send, whatever its id.

    Raises:
        FrameTooLarge: it names too much at once.
    """
    header = encode_request(_LONGEST_ID, request)
    if len(header) > MAX_HEADER:
        raise _too_long(header)


def _check_payload(parts: Sequence[Part], payload: int) -> None:
    """Refuse a frame whose two lengths disagree, before anything is allocated for it."""
    expected = parts[0].nbytes if len(parts) == 1 else payload_length([part.nbytes for part in parts])
    if expected != payload:
        raise BadTensor(f"the tensors named have {expected} bytes", field="payload length", value=payload)


def _length(arrays: Sequence[Array]) -> int:
    if len(arrays) == 1:
        return arrays[0].nbytes
    return payload_length([array.nbytes for array in arrays])


def _match(parts: Sequence[Part], arrays: Sequence[Array]) -> bool:
    if len(parts) != len(arrays):
        return False
    for part, array in zip(parts, arrays, strict=True):
        if part.elements != array.size or DTYPES[part.dtype] != array.dtype:
            return False
    return True


async def dial(
    host: str,
    port: int,
    handler: Handler,
    *,
    max_payload: int,
    traffic: Traffic,
    tls: ssl.SSLContext | None = None,
) -> Connection:
    """Connect to a server, through TLS if there is a context for it.

    Raises:
        OSError: nobody answers there.
        Unauthenticated: its certificate is not the right one, or it speaks no TLS.
    """
    loop = asyncio.get_running_loop()
    made = Connection(handler, max_payload=max_payload, traffic=traffic)
    if tls is None:
        await loop.create_connection(lambda: made, host, port)
        return made
    layer = TLSLayer(made, tls, host=host)
    try:
        await loop.create_connection(lambda: layer, host, port)
        await layer.established()
    except BaseException:
        layer.abort()
        raise
    return made
