"""The one asyncio connection that clients and servers use: frames in, frames out, replies matched by id.

Either end may send requests. A payload is received straight into the arrays it is meant for, and arrays
are sent from where they are: whoever sends an array must not write to it afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
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

__all__ = ["Array", "Connection", "Handler", "RefuseAll", "Traffic", "dial"]

Array = npt.NDArray[Any]

_JOINED: Final = DIRECT
"""Frames up to this many bytes are sent as one piece: copying them costs less than a longer writev."""

_QUEUED: Final = 64 * 1024 * 1024
"""A server reads no further requests from a peer while this many bytes wait to be sent to it."""


_UNASKED: Final = 64 * 1024 * 1024
"""Bytes accepted of a reply whose size the asker does not know beforehand, such as a status."""


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


@dataclass(slots=True)
class _Pending:
    """A request of ours whose reply is on its way; ``into`` None takes any tensors."""

    future: asyncio.Future[tuple[Any, Sequence[Array]]]
    expected: type
    into: Sequence[Array] | None


class Connection(asyncio.BufferedProtocol):
    """One TCP connection.

    Args:
        handler: who answers the peer's requests.
        max_payload: largest payload accepted from the peer, in bytes.
        traffic: where bytes are counted; shared by all connections of a server.
        server: stop reading while the peer does not read what it asked for. Only one end may do so, else
            both could wait for each other.

    Attributes:
        peer: the peer's address, for logs.
        session: whatever the handler keeps about the peer.
        greeted: whether the peer has said hello; kept by the handler.
        opened: the loop's time at which the connection was made.
    """

    def __init__(self, handler: Handler, *, max_payload: int, traffic: Traffic, server: bool = False) -> None:
        self.peer = ""
        self.session: Any = None
        self.greeted = False
        self.opened = 0.0
        self._handler = handler
        self._reader = FrameReader(max_payload)
        self._traffic = traffic
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        # The frame whose payload is arriving: a request, or the reply to ``_arriving_for``. None: refused.
        self._arriving: Any = None
        self._arriving_id = 0
        self._arriving_arrays: Sequence[Array] = ()
        self._arriving_for: _Pending | None = None
        self._writable: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._error: PSError | None = None  # why no more requests can be sent

    # --- what users of a connection call

    async def request(
        self, request: Request, arrays: Sequence[Array] = (), into: Sequence[Array] | None = None
    ) -> tuple[Any, Sequence[Array]]:
        """Send a request and return its reply and the arrays that came with it.

        A request that was cancelled may still be under way: its ``arrays`` may yet be read, and ``into``
        written, until the connection has ended.

        Args:
            request: the request; its ``tensors`` must describe ``arrays``.
            arrays: C-contiguous arrays to send. They must not change before this returns.
            into: writeable arrays that the reply's payload is received into. None: new arrays are made.

        Raises:
            PSError: what the peer answered, or ``ConnectionLost``.
        """
        while self._writable is not None and self._error is None:
            await asyncio.shield(self._writable)
        if self._error is not None:
            raise self._error
        request_id = next(self._ids)
        future: asyncio.Future[tuple[Any, Sequence[Array]]]
        future = asyncio.get_running_loop().create_future()
        self._send(encode_request(request_id, request), arrays)
        self._pending[request_id] = _Pending(future, request.reply, into)
        try:
            return await future
        finally:
            self._pending.pop(request_id, None)

    def reply(self, request_id: int, reply: Reply, arrays: Sequence[Array] = ()) -> None:
        """Answer a request of the peer's; does nothing once the connection has ended."""
        if self._error is None:
            self._send(encode_reply(request_id, reply), arrays)

    def fail(self, request_id: int, op: str, error: PSError) -> None:
        """Answer a request of the peer's with an error."""
        self._handler.refused(self, op, error)
        if self._error is None:
            self._send(encode_error(request_id, error), ())

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
        if self._server:
            self._transport.set_write_buffer_limits(high=_QUEUED)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Act on ``nbytes`` new bytes."""
        self._traffic.received += nbytes
        self._reader.received(nbytes)
        self._process()

    def eof_received(self) -> bool:
        """Close: a peer that sends no more takes no replies either."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is pending."""
        reason = ConnectionLost(f"the connection to {self.peer} ended" + (f": {exc}" if exc else ""))
        self._end(reason)
        self._transport = None  # asyncio's own raises when it is aborted once more
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self._handler.lost(self)

    def pause_writing(self) -> None:
        """Hold further requests back; a server reads no more of them either."""
        self._writable = asyncio.get_running_loop().create_future()
        if self._server and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._release_writers()
        if self._server and self._transport is not None:
            self._process()
            if self._writable is None and self._error is None:
                self._transport.resume_reading()

    # --- receiving

    def _process(self) -> None:
        """Act on what has arrived, up to where a server's peer must first read its replies."""
        reader = self._reader
        try:
            while self._error is None and not (self._server and self._writable is not None):
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
                if pending is not None and pending.future.done():
                    pending = None  # its arrays are the caller's again
                if pending is not None:
                    message, arrays = self._begin_reply(header, pending, head.payload)
            else:
                message = decode_request(header)
                _check_payload(getattr(message, "tensors", ()), head.payload)
                arrays = self._handler.prepare(self, message)
        except PSError as error:
            if pending is not None:
                self._settle(pending, error)
            else:
                self.fail(request_id, op, error)
            pending, message, arrays = None, None, ()
        self._arriving, self._arriving_id = message, request_id
        self._arriving_arrays, self._arriving_for = arrays, pending
        if head.payload:
            into: Sequence[Segment] = segments(arrays) if arrays else (head.payload,)
            self._reader.receive_into(into)

    def _begin_reply(self, header: Header, pending: _Pending, payload: int) -> tuple[Any, Sequence[Array]]:
        message = decode_reply(header, pending.expected)
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
            self._settle(pending, message, arrays)
        else:
            self._handler.handle(self, self._arriving_id, message, arrays)

    @staticmethod
    def _settle(pending: _Pending, message: Any, arrays: Sequence[Array] = ()) -> None:
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
        if len(header) > MAX_HEADER:
            raise FrameTooLarge(
                f"a header has at most {MAX_HEADER} bytes; name fewer tensors in one request",
                field="header length",
                value=len(header),
            )
        transport = cast(asyncio.Transport, self._transport)
        if not arrays:
            frame = encode_prelude(len(header), 0) + header
            transport.write(frame)
            self._traffic.sent += len(frame)
            return
        payload = _length(arrays)
        prelude = encode_prelude(len(header), payload)
        self._traffic.sent += len(prelude) + len(header) + payload
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

    def _end(self, reason: PSError) -> None:
        if self._error is not None:
            return
        self._error = reason
        for pending in self._pending.values():
            self._settle(pending, reason)
        self._release_writers()

    def _release_writers(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None


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
) -> Connection:
    """Connect to a server.

    Raises:
        OSError: nobody answers there.
    """
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(
        lambda: Connection(handler, max_payload=max_payload, traffic=traffic), host, port
    )
    return made
