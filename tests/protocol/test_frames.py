import itertools
import random
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BadFrame, FrameTooLarge, VersionMismatch, WireError
from protocol.frames import (
    DIRECT,
    END,
    HELLO_HEADER,
    MAGIC,
    MAX_HEADER,
    PRELUDE,
    FrameReader,
    Head,
    Segment,
    encode_prelude,
)

Cuts = Sequence[tuple[int, bool]]
"""Pieces of a payload: their length, and whether they are kept or thrown away."""

ONES = itertools.repeat(1)
LIMIT = 1 << 20


class Frame:
    def __init__(self, header: int, cuts: Cuts, seed: int) -> None:
        numbers = random.Random(seed)
        self.header = numbers.randbytes(header)
        self.pieces = [(numbers.randbytes(length), keep) for length, keep in cuts]

    @property
    def wire(self) -> bytes:
        payload = b"".join(piece for piece, _ in self.pieces)
        return encode_prelude(len(self.header), len(payload)) + self.header + payload

    @property
    def kept(self) -> list[bytes]:
        return [piece for piece, keep in self.pieces if keep]

    def __repr__(self) -> str:
        return f"Frame({len(self.header)}, {[(len(piece), keep) for piece, keep in self.pieces]})"


def read(
    stream: bytes, chunks: Iterable[int], frames: Sequence[Frame]
) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield header and kept pieces of every frame that a reader finds in ``stream``."""
    reader, position, sizes = FrameReader(LIMIT), 0, iter(chunks)
    plans = iter(frames)
    header, filled = b"", list[bytearray]()
    while True:
        while (event := reader.next_event()) is not None:
            if isinstance(event, Head):
                pieces = next(plans).pieces
                header = event.header
                segments: list[Segment] = [
                    memoryview(bytearray(len(piece))) if keep else len(piece) for piece, keep in pieces
                ]
                filled = [s.obj for s in segments if isinstance(s, memoryview)]  # type: ignore[misc]
                assert event.payload == sum(len(piece) for piece, _ in pieces)
                reader.receive_into(segments)
            else:
                assert event == END
                yield header, [bytes(piece) for piece in filled]
        if position == len(stream):
            return
        buffer = reader.get_buffer()
        count = min(len(buffer), next(sizes), len(stream) - position)
        assert count > 0
        buffer[:count] = stream[position : position + count]
        reader.received(count)
        position += count


def around(*values: int) -> st.SearchStrategy[int]:
    return st.sampled_from(values).flatmap(lambda value: st.integers(max(0, value - 21), value + 1))


headers = st.integers(0, 300) | around(DIRECT).map(lambda n: n - PRELUDE.size) | around(MAX_HEADER - 1)
pieces = st.tuples(st.integers(0, 200) | around(DIRECT, 2 * DIRECT, 5 * DIRECT), st.booleans())
frames = st.builds(Frame, headers, st.lists(pieces, max_size=4), st.integers(0, 1 << 32))
chunkings = st.lists(st.integers(1, 100) | around(DIRECT, MAX_HEADER, 1 << 20).filter(bool), min_size=1)


@settings(deadline=None)
@given(st.lists(frames, max_size=5), chunkings)
def test_any_split_of_a_stream_yields_the_same_frames(sent: list[Frame], chunks: list[int]) -> None:
    stream = b"".join(frame.wire for frame in sent)
    # The smallest chunk sizes of a random list would otherwise rule: a megabyte, byte by byte.
    sizes = itertools.chain(chunks, itertools.cycle([*chunks, len(stream) // 50 + 1]))
    assert list(read(stream, sizes, sent)) == [(frame.header, frame.kept) for frame in sent]


def test_byte_by_byte_yields_the_same_frames() -> None:
    sent = [
        Frame(0, [], 1),
        Frame(7, [(70, True), (58, False), (DIRECT + 1, True)], 2),
        Frame(DIRECT + 1, [(DIRECT + 1, False), (3, True)], 3),
        Frame(MAX_HEADER, [(1, True)], 4),
        Frame(1, [(0, True)], 5),
    ]
    stream = b"".join(frame.wire for frame in sent)
    assert list(read(stream, ONES, sent)) == [(frame.header, frame.kept) for frame in sent]


@settings(deadline=None)
@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_a_truncated_stream_yields_only_the_frames_it_holds_in_full(
    sent: list[Frame], data: st.DataObject
) -> None:
    stream = b"".join(frame.wire for frame in sent)
    length = data.draw(st.integers(0, len(stream) - 1))
    ends = itertools.accumulate(len(frame.wire) for frame in sent)
    complete = sum(end <= length for end in ends)
    found = list(read(stream[:length], itertools.repeat(1 << 20), sent))
    assert found == [(frame.header, frame.kept) for frame in sent[:complete]]


def events(stream: bytes, limit: int = LIMIT) -> list[Head | str]:
    """Return what a reader makes of bytes whose payloads are thrown away."""
    reader, found = FrameReader(limit), list[Head | str]()
    while True:
        while (event := reader.next_event()) is not None:
            found.append(event)
            if isinstance(event, Head):
                reader.receive_into([event.payload])
        if not stream:
            return found
        buffer = reader.get_buffer()
        count = min(len(buffer), len(stream))
        buffer[:count] = stream[:count]
        reader.received(count)
        stream = stream[count:]


@given(st.binary(max_size=200), st.integers(0, 20))
def test_garbage_is_a_wire_error_or_waits_for_more(garbage: bytes, valid: int) -> None:
    stream = encode_prelude(3, 5)[:valid] + garbage
    try:
        found = events(stream)
    except WireError:
        return
    assert MAGIC.startswith(stream[:4])
    assert len(found) <= 2 * len(stream) // PRELUDE.size


@given(st.integers(0, 3), st.integers(0, 255))
def test_wrong_magic_is_noticed_at_its_first_wrong_byte(right: int, byte: int) -> None:
    assert events(MAGIC[:right]) == []
    stream = MAGIC[:right] + bytes([byte])
    if MAGIC.startswith(stream):
        assert events(stream) == []
    else:
        with pytest.raises(BadFrame) as caught:
            events(stream)
        assert caught.value.field == "magic"


@pytest.mark.parametrize("stream", [b"\x16\x03\x01\x02\x00\x01", b"\x15\x03\x03"])
def test_tls_is_called_by_its_name(stream: bytes) -> None:
    with pytest.raises(BadFrame, match="this is TLS") as caught:
        events(stream)
    assert caught.value.field == "tls"


@pytest.mark.parametrize("stream", [b"GET / HTTP/1.1\r\n", b"\x16\x02", b"\x00", b"APS\x02"])
def test_other_protocols_are_refused(stream: bytes) -> None:
    with pytest.raises(BadFrame, match="not the asyncps protocol"):
        events(stream)


@pytest.mark.parametrize(
    ("prelude", "error", "field"),
    [
        ((MAGIC, 0, 0, 1, 0), VersionMismatch, "version"),
        ((MAGIC, 2, 0, 1, 0), VersionMismatch, "version"),
        ((MAGIC, 65535, 65535, 1 << 31, 1 << 63), VersionMismatch, "version"),
        ((MAGIC, 1, 1, 1, 0), BadFrame, "flags"),
        ((MAGIC, 1, 65535, 1, 0), BadFrame, "flags"),
        ((MAGIC, 1, 0, MAX_HEADER + 1, 0), FrameTooLarge, "header length"),
        ((MAGIC, 1, 0, (1 << 32) - 1, 0), FrameTooLarge, "header length"),
        ((MAGIC, 1, 0, 1, LIMIT + 1), FrameTooLarge, "payload length"),
        ((MAGIC, 1, 0, 1, (1 << 64) - 1), FrameTooLarge, "payload length"),
    ],
)
def test_a_bad_prelude_is_refused_before_its_header_comes(
    prelude: tuple[bytes, int, int, int, int], error: type[WireError], field: str
) -> None:
    stream = PRELUDE.pack(*prelude)
    assert events(stream[:-1]) == []
    with pytest.raises(error) as caught:
        events(stream)
    assert type(caught.value) is error
    assert caught.value.field == field
    assert int(caught.value.value) in prelude


def test_header_and_payload_at_their_limits_are_taken() -> None:
    header = b"h" * MAX_HEADER
    found = events(encode_prelude(len(header), LIMIT) + header + bytes(LIMIT))
    assert found == [Head(header, LIMIT), END]


@pytest.mark.parametrize("header", [0, 10, MAX_HEADER])
@pytest.mark.parametrize("payload", [0, 1 << 40, (1 << 64) - 1])
def test_nothing_is_allocated_on_an_announced_length(header: int, payload: int) -> None:
    stream = encode_prelude(header, payload) + bytes(min(header, 10))
    tracemalloc.start()
    try:
        events(stream, limit=(1 << 64) - 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MAX_HEADER


def test_skipping_a_large_payload_takes_no_memory() -> None:
    reader = FrameReader(1 << 40)
    stream = encode_prelude(0, 1 << 40)
    reader.get_buffer()[: len(stream)] = stream
    reader.received(len(stream))
    tracemalloc.start()
    try:
        assert reader.next_event() == Head(b"", 1 << 40)
        reader.receive_into([1 << 40])
        for _ in range(1000):
            reader.received(len(reader.get_buffer()))
            assert reader.next_event() is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < DIRECT


def test_a_large_payload_is_received_where_it_belongs() -> None:
    target = np.zeros(DIRECT + 10, np.uint8)
    reader = FrameReader(LIMIT)
    stream = encode_prelude(2, 5 + len(target)) + b"hd" + b"small" + b"\x07"
    reader.get_buffer()[: len(stream)] = stream
    reader.received(len(stream))
    assert reader.next_event() == Head(b"hd", 5 + len(target))
    small = bytearray(5)
    reader.receive_into([memoryview(small), target.data])
    assert reader.next_event() is None
    assert bytes(small) == b"small"

    missing = target[1:]  # its first byte came along with the header
    while len(missing) >= DIRECT:
        buffer = np.frombuffer(reader.get_buffer(), np.uint8)
        assert np.shares_memory(buffer, target)
        assert len(buffer) == len(missing)
        buffer[:4] = 7
        reader.received(4)
        assert reader.next_event() is None
        missing = missing[4:]
    while len(missing):
        buffer = np.frombuffer(reader.get_buffer(), np.uint8)
        assert not np.shares_memory(buffer, target)
        buffer[:1] = 7
        reader.received(1)
        missing = missing[1:]
        if len(missing):
            assert reader.next_event() is None
    assert reader.next_event() == END
    assert (target == 7).all()


@given(st.integers(0, 200), st.lists(st.integers(0, 100), max_size=4))
def test_segments_of_another_length_than_the_payload_are_a_mistake(payload: int, lengths: list[int]) -> None:
    reader = FrameReader(LIMIT)
    stream = encode_prelude(0, payload)
    reader.get_buffer()[: len(stream)] = stream
    reader.received(len(stream))
    assert reader.next_event() == Head(b"", payload)
    if sum(lengths) == payload:
        reader.receive_into(lengths)
    else:
        with pytest.raises(ValueError, match=f"segments hold {sum(lengths)} bytes"):
            reader.receive_into(lengths)


def test_what_may_be_sent_before_the_hello_is_short_and_has_no_payload() -> None:
    for header, payload, field in ((HELLO_HEADER + 1, 0, "header length"), (10, 1, "payload length")):
        reader = FrameReader(0, HELLO_HEADER)
        feed(reader, encode_prelude(header, payload))
        with pytest.raises(FrameTooLarge, match="before the hello is answered") as caught:
            reader.next_event()
        assert caught.value.field == field


def test_once_let_in_a_peer_may_send_longer_frames() -> None:
    reader = FrameReader(0, HELLO_HEADER)
    feed(reader, encode_prelude(HELLO_HEADER, 0) + bytes(HELLO_HEADER))
    assert reader.next_event() == Head(bytes(HELLO_HEADER), 0)
    assert reader.next_event() == END
    reader.accept(LIMIT)
    feed(reader, encode_prelude(HELLO_HEADER + 1, LIMIT) + bytes(HELLO_HEADER + 1))
    assert reader.next_event() == Head(bytes(HELLO_HEADER + 1), LIMIT)


def test_a_reader_is_amid_a_frame_from_its_first_byte_to_its_last() -> None:
    reader = FrameReader(LIMIT)
    wire = encode_prelude(3, 2) + b"abc" + b"de"
    assert not reader.is_amid
    for position, byte in enumerate(wire):
        feed(reader, bytes([byte]))
        while (event := reader.next_event()) is not None:
            if isinstance(event, Head):
                reader.receive_into([2])
        assert reader.is_amid == (position < len(wire) - 1)


def feed(reader: FrameReader, data: bytes) -> None:
    while data:
        buffer = reader.get_buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        reader.received(count)
        data = data[count:]
