"""Frames: a fixed prelude, a msgpack header, a raw payload. Sans-I/O.

    offset  size  field
    0       4     magic, b"APS\\x01"
    4       2     protocol version, little-endian as all numbers here
    6       2     flags, 0 in version 1
    8       4     length of the header, at most 64 KiB
    12      8     length of the payload, at most the receiver's limit
    20      ...   header, then payload

``FrameReader`` never sees a socket. Its owner asks where the next bytes go (``get_buffer``), says how
many came (``received``) and takes events. A large payload is received straight into the memory that the
owner names when it has read the header; only what came along with the header is copied.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from protocol.errors import BadFrame, FrameTooLarge, VersionMismatch, WireError

__all__ = [
    "DIRECT",
    "END",
    "HELLO_HEADER",
    "MAGIC",
    "MAX_HEADER",
    "PRELUDE",
    "VERSION",
    "FrameReader",
    "Head",
    "Segment",
    "encode_prelude",
]

MAGIC: Final = b"APS\x01"
VERSION: Final = 1
PRELUDE: Final = struct.Struct("<4sHHIQ")
MAX_HEADER: Final = 64 * 1024
HELLO_HEADER: Final = 4 * 1024
"""Bytes of the longest header of who has not been let in yet; a payload has none then."""

DIRECT: Final = 16 * 1024
"""Bytes from which on a piece of a payload is received into its place and not through the scratch
buffer: below it, one more system call costs more than copying."""

Segment = memoryview | int
"""Where a piece of a payload goes; a number is that many bytes to throw away."""

_TLS: Final = (b"\x15\x03", b"\x16\x03")  # how a TLS alert and a TLS handshake begin
_OURS: Final = (MAGIC, VERSION, 0)


class Head(NamedTuple):
    """A frame's header has arrived; ``payload`` bytes follow it."""

    header: bytes
    payload: int


END: Final = "end"
"""The event that ends a frame: its payload, if any, is in place."""


def encode_prelude(header: int, payload: int) -> bytes:
    """Return the prelude of a frame with ``header`` and ``payload`` bytes."""
    return PRELUDE.pack(MAGIC, VERSION, 0, header, payload)


class FrameReader:
    """Cut a stream of bytes into frames.

    Args:
        max_payload: largest payload accepted, in bytes. Checked before anything is allocated.
        max_header: longest header accepted, in bytes.

    Every frame yields ``Head`` and then ``END``. Between the two of a frame with a payload the owner must
    call ``receive_into``. ``WireError`` ends the stream: the reader must not be used afterwards.
    """

    def __init__(self, max_payload: int, max_header: int = MAX_HEADER) -> None:
        self._max_payload = max_payload
        self._max_header = max_header
        self._scratch = memoryview(bytearray(min(DIRECT, PRELUDE.size + max_header)))
        self._start = 0  # scratch[start:end] has arrived and is not consumed
        self._end = 0
        self._need = 0  # bytes that the scratch must be able to hold in one piece
        self._open = False  # between Head and END
        self._missing = 0  # bytes of the current payload that are not in place yet
        self._segments: list[Segment] = []  # what is still to be filled, last first
        self._direct = False  # the buffer handed out last was the payload's own

    def accept(self, max_payload: int, max_header: int = MAX_HEADER) -> None:
        """Change how long the payloads and headers of the frames to come may be."""
        self._max_payload = max_payload
        self._max_header = max_header
        if len(self._scratch) < DIRECT:
            kept = self._scratch[self._start : self._end]
            self._scratch = memoryview(bytearray(DIRECT))
            self._scratch[: len(kept)] = kept
            self._start, self._end = 0, len(kept)

    @property
    def is_amid(self) -> bool:
        """Whether a frame has begun to arrive, and is not all there."""
        return self._open or self._end > self._start

    def get_buffer(self) -> memoryview:
        """Return where the next bytes from the peer are to be written; never empty."""
        if self._missing and self._start == self._end:
            segment = self._segments[-1]
            if isinstance(segment, memoryview) and len(segment) >= DIRECT:
                self._direct = True
                return segment
        self._direct = False
        self._make_room()
        return self._scratch[self._end :]

    def received(self, count: int) -> None:
        """Say that ``count`` bytes were written to the buffer handed out last."""
        if self._direct:
            self._advance(count)
        else:
            self._end += count

    def receive_into(self, segments: Sequence[Segment]) -> None:
        """Say where the payload of the frame whose ``Head`` came last goes.

        Raises:
            ValueError: the segments' lengths do not add up to the payload's.
        """
        if len(segments) == 1 and not isinstance(segments[0], int) and len(segments[0]) == self._missing:
            self._segments = list(segments)  # the usual case
            return
        lengths = [s if isinstance(s, int) else len(s) for s in segments]
        if sum(lengths) != self._missing:
            raise ValueError(f"segments hold {sum(lengths)} bytes, the payload has {self._missing}")
        self._segments = [s for s, length in zip(segments, lengths, strict=True) if length]
        self._segments.reverse()

    def next_event(self) -> Head | Literal["end"] | None:
        """Return the next event, or None when more bytes are needed.

        Raises:
            WireError: the bytes are not a frame that may be received here.
        """
        if not self._open:
            return self._head()
        self._drain()
        if self._missing:
            return None
        self._open = False
        return END

    def _head(self) -> Head | None:
        available = self._end - self._start
        if available < PRELUDE.size:
            if not available:  # the usual case behind a frame
                self._start = self._end = 0
                self._need = PRELUDE.size
                return None
            self._check_magic(min(available, len(MAGIC)))
            self._need = PRELUDE.size
            return None
        magic, version, flags, header, payload = PRELUDE.unpack_from(self._scratch, self._start)
        if (magic, version, flags) != _OURS or header > self._max_header or payload > self._max_payload:
            raise self._refusal(version, flags, header, payload)
        self._need = PRELUDE.size + header
        if available < self._need:
            return None
        begin = self._start + PRELUDE.size
        self._start += self._need
        self._need = 0
        self._open = True
        self._missing = payload
        return Head(bytes(self._scratch[begin : begin + header]), payload)

    def _refusal(self, version: int, flags: int, header: int, payload: int) -> WireError:
        """Return what is wrong with a prelude, the first thing first."""
        self._check_magic(len(MAGIC))
        if version != VERSION:
            text = f"this end speaks protocol version {VERSION}"
            return VersionMismatch(text, field="version", value=version)
        if flags:
            return BadFrame("no flag is defined in version 1", field="flags", value=flags)
        if header > self._max_header:
            text = f"a header has at most {self._max_header} bytes{self._until_greeted}"
            return FrameTooLarge(text, field="header length", value=header)
        limit = "" if self._until_greeted else " (--max-frame)"
        text = f"a payload has at most {self._max_payload} bytes here{limit}{self._until_greeted}"
        return FrameTooLarge(text, field="payload length", value=payload)

    @property
    def _until_greeted(self) -> str:
        return "" if self._max_header == MAX_HEADER else " before the hello is answered"

    def _check_magic(self, count: int) -> None:
        begin = bytes(self._scratch[self._start : self._start + count])
        if begin[:2] in _TLS:
            text = "this is TLS, which this end was not told to speak (--tls-cert at servers, else --tls-ca)"
            raise BadFrame(text, field="tls", value=begin)
        if begin != MAGIC[:count]:
            raise BadFrame("this is not the asyncps protocol", field="magic", value=begin)

    def _make_room(self) -> None:
        """Free at least one byte behind ``end``, and all that the current header needs."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + max(self._need, self._end - self._start + 1) <= len(self._scratch):
            return
        kept = self._scratch[self._start : self._end]
        target = self._scratch
        if self._need > len(self._scratch):
            target = memoryview(bytearray(PRELUDE.size + MAX_HEADER))
        target[: len(kept)] = kept
        self._scratch = target
        self._start, self._end = 0, len(kept)

    def _drain(self) -> None:
        """Move what arrived through the scratch buffer to its place in the payload."""
        while self._missing and self._start < self._end:
            segment = self._segments[-1]
            wanted = segment if isinstance(segment, int) else len(segment)
            count = min(wanted, self._end - self._start)
            if isinstance(segment, memoryview):
                segment[:count] = self._scratch[self._start : self._start + count]
            self._start += count
            self._advance(count)

    def _advance(self, count: int) -> None:
        self._missing -= count
        segment = self._segments.pop()
        if isinstance(segment, int):
            if segment > count:
                self._segments.append(segment - count)
        elif len(segment) > count:
            self._segments.append(segment[count:])
