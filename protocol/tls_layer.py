"""A connection's bytes through TLS: a protocol to the loop's transport, and a transport to the connection.

The loops' own TLS loses the alert that tells a peer why it is refused, hides from the server who failed and
why, and cannot answer somebody who speaks no TLS. OpenSSL itself does no I/O here: bytes are handed to it and
taken from it.

The connection is told of the transport at once, before the handshake: a peer that does not come to its hello
in time costs the same with TLS as without. What it writes meanwhile waits.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from typing import Any, Final, cast

from protocol.errors import PSError, Unauthenticated
from protocol.frames import MAGIC
from protocol.tls import channel_of, unauthenticated

__all__ = ["TLSLayer"]

_HANDSHAKE: Final = 0x16  # the first byte of every TLS connection
_SMALL: Final = 4 * 1024
"""Bytes read at once at first; twice as many whenever they were all there."""

_LARGE: Final = 256 * 1024
"""Most bytes that are read, or encrypted and sent, at once."""

_BELOW: Final = 2 * _LARGE
"""Encrypted bytes from which on the transport below has enough for now; one more piece may follow."""


class TLSLayer(asyncio.BufferedProtocol, asyncio.Transport):
    """TLS under one connection.

    Args:
        upper: the connection.
        context: of this end.
        host: who was dialled; None at the server.
        refusal: bytes for a client that speaks this project's protocol without TLS.

    Attributes:
        channel: the binding of the server's certificate, once it is known.
    """

    def __init__(
        self,
        upper: asyncio.BufferedProtocol,
        context: ssl.SSLContext,
        *,
        host: str | None = None,
        channel: bytes = b"",
        refusal: bytes = b"",
    ) -> None:
        super().__init__()
        self.channel = channel
        self._upper = upper
        self._host = host
        self._refusal = refusal
        self._from_peer = ssl.MemoryBIO()
        self._to_peer = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._from_peer, self._to_peer, server_side=host is None, server_hostname=host
        )
        self._lower: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_SMALL))
        self._begun = False  # whether a byte has come
        self._established = asyncio.get_running_loop().create_future()
        self._established.add_done_callback(_look_at)
        self._waiting: deque[memoryview] = deque()  # plain bytes to send
        self._nwaiting = 0
        self._lower_full = False
        self._upper_paused = False
        self._high = self._low = 0
        self._reading = True
        self._closing = False
        self._problem: PSError | None = None

    async def established(self) -> None:
        """Return when the handshake is done.

        Raises:
            Unauthenticated: it has failed.
            ConnectionError: the connection has ended.
        """
        await asyncio.shield(self._established)

    # --- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport below, and say hello to the peer's TLS if this end begins."""
        self._lower = cast(asyncio.Transport, transport)
        self._lower.set_write_buffer_limits(high=_BELOW)
        self._upper.connection_made(self)
        if self._host is not None and not self._closing:
            self._advance()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Act on ``nbytes`` new bytes."""
        if self._closing:
            return
        if self._host is None and not self._begun and self._buffer[0] != _HANDSHAKE:
            self._answer_in_plain(bytes(self._buffer[: min(nbytes, len(MAGIC))]))
            return
        self._begun = True
        self._from_peer.write(self._buffer[:nbytes])
        if nbytes == len(self._buffer) < _LARGE:
            self._buffer = memoryview(bytearray(2 * nbytes))
        self._advance()

    def eof_received(self) -> bool:
        """Close: a peer that sends no more takes no replies either."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection, and why if it is known."""
        self._closing = True
        self._lower = None
        self._waiting.clear()
        self._nwaiting = 0
        if not self._established.done():
            ended = exc or ConnectionResetError("the peer ended the connection in the TLS handshake")
            self._established.set_exception(self._problem or ended)
        self._upper.connection_lost(self._problem or exc)

    def pause_writing(self) -> None:
        """Encrypt no more: what is below has enough."""
        self._lower_full = True

    def resume_writing(self) -> None:
        """Go on."""
        self._lower_full = False
        self._send()

    # --- the work

    def _advance(self) -> None:
        """Do what can be done with the bytes that have come."""
        try:
            if not self._established.done() and not self._shake_hands():
                return
            self._receive()
        except ssl.SSLError as error:
            self._fail(error)
        else:
            self._send()

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._pass_down()
            return False
        if self._host is not None:
            self.channel = channel_of(self._tls.getpeercert(binary_form=True) or b"")
        self._established.set_result(None)
        return True

    def _receive(self) -> None:
        """Hand plain bytes to the connection, as long as there are any and it takes them."""
        while self._reading and not self._closing:
            buffer = memoryview(self._upper.get_buffer(-1))
            count, more = self._decrypt(buffer)
            if count:
                self._upper.buffer_updated(count)
            if not more:
                return

    def _decrypt(self, buffer: memoryview) -> tuple[int, bool]:
        """Fill the buffer as far as possible; return how far, and whether there may be more."""
        count = 0
        try:
            while count < len(buffer):
                got: Any = self._tls.read(len(buffer) - count, buffer[count:])  # a number, with a buffer
                if not got:
                    break
                count += got
            else:
                return count, True
        except ssl.SSLWantReadError:
            return count, False
        except ssl.SSLZeroReturnError:
            pass
        asyncio.get_running_loop().call_soon(self.close)  # the peer has said goodbye
        return count, False

    def _send(self) -> None:
        """Encrypt and pass down what waits, as much as is taken."""
        if not self._established.done() or self._lower is None:
            return
        try:
            self._encrypt()
        except ssl.SSLError as error:
            self._fail(error)
            return
        if self._closing and not self._waiting:
            self._say_goodbye()
        elif self._upper_paused and self._nwaiting <= self._low:
            self._upper_paused = False
            self._upper.resume_writing()

    def _encrypt(self) -> None:
        while self._waiting and not self._lower_full:
            piece = self._waiting.popleft()
            self._tls.write(piece[:_LARGE])
            self._nwaiting -= len(piece[:_LARGE])
            if len(piece) > _LARGE:
                self._waiting.appendleft(piece[_LARGE:])
            if self._to_peer.pending >= _LARGE:
                self._pass_down()
        self._pass_down()

    def _pass_down(self) -> None:
        if self._to_peer.pending and self._lower is not None:
            self._lower.write(self._to_peer.read())

    def _fail(self, error: ssl.SSLError) -> None:
        """Tell the peer why, as TLS does, and end the connection."""
        self._pass_down()
        self._end(unauthenticated(error, server=self._host is None, host=self._host or ""))

    def _answer_in_plain(self, begin: bytes) -> None:
        """End the connection of a peer that speaks no TLS, and tell it why if it would understand."""
        if begin == MAGIC[: len(begin)] and self._lower is not None:
            self._lower.write(self._refusal)
        self._end(Unauthenticated("the client does not speak TLS", field="tls", value="plain"))

    def _end(self, problem: PSError) -> None:
        self._problem = problem
        self._closing = True
        if self._lower is not None:
            self._lower.close()

    def _say_goodbye(self) -> None:
        """End the connection in good order; the peer's own goodbye is not waited for."""
        if self._lower is None or self._lower.is_closing():
            return
        with suppress(ssl.SSLError):  # it wants to read that goodbye
            self._tls.unwrap()
        self._pass_down()
        self._lower.close()

    # --- what the connection calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, which must not change before it has left."""
        self.writelines([data])

    def writelines(self, list_of_data: Any) -> None:
        """Send several pieces."""
        if self._closing:
            return
        for data in list_of_data:
            piece = memoryview(data).cast("B")
            if len(piece):
                self._waiting.append(piece)
                self._nwaiting += len(piece)
        self._send()
        self._pause_if_full()

    def _pause_if_full(self) -> None:
        if self._nwaiting > self._high and not self._upper_paused:
            self._upper_paused = True
            self._upper.pause_writing()

    def pause_reading(self) -> None:
        """Hand no more bytes to the connection."""
        self._reading = False
        if self._lower is not None and not self._lower.is_closing():
            self._lower.pause_reading()

    def resume_reading(self) -> None:
        """Go on, with what has come already first."""
        if self._reading or self._closing:
            return
        self._reading = True
        if self._lower is not None:
            self._lower.resume_reading()
        asyncio.get_running_loop().call_soon(self._advance_if_open)

    def _advance_if_open(self) -> None:
        if not self._closing:
            self._advance()

    def close(self) -> None:
        """Send what waits and end the connection."""
        if self._closing:
            return
        self._closing = True
        if self._established.done():
            self._send()
        elif self._lower is not None:
            self._lower.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self._lower is not None:
            self._lower.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is ending."""
        return self._closing or self._lower is None or self._lower.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport below says."""
        return default if self._lower is None else self._lower.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait."""
        below = 0 if self._lower is None else self._lower.get_write_buffer_size()
        return self._nwaiting + self._to_peer.pending + below

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set from how many waiting bytes on the connection is asked to pause, those below included."""
        self._high = max(0, (high or 0) - _BELOW - _LARGE)
        self._low = min(self._high // 4 if low is None else low, self._high)
        self._pause_if_full()


def _look_at(established: asyncio.Future[None]) -> None:
    """Retrieve the error: the connection is told of it, too."""
    if not established.cancelled():
        established.exception()
