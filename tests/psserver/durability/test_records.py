import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from protocol.tensors import ALIGN, DTYPES
from psserver.durability.records import (
    HEADER,
    Array,
    Batch,
    Damaged,
    Foreign,
    Gathered,
    Key,
    RecordHeader,
    SegmentHeader,
    data_buffers,
    decode_record_header,
    decode_segment_header,
    encode_record,
    encode_segment_header,
    parse_meta,
)

U64 = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**40).map(lambda number: number * ALIGN)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.lists(st.text(max_size=8) | st.integers(0, 2**40), min_size=1, max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    raw = draw(st.binary(max_size=300))
    return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


BATCHES = st.builds(
    Batch,
    st.lists(PLAIN, max_size=6),
    st.dictionaries(KEYS, PLAIN, max_size=4),
    st.dictionaries(KEYS, st.tuples(PLAIN, arrays()), max_size=4),
)


def gathered(batch: Batch) -> Gathered:
    return Gathered(
        [msgpack.packb(event) for event in batch.events],
        {key: msgpack.packb((key, document)) for key, document in batch.docs.items()},
        {key: (msgpack.packb((key, info)), array) for key, (info, array) in batch.arrays.items()},
    )


def encoded(batch: Batch, position: int = 0, synced: int = 0) -> bytes:
    buffers, length = encode_record(gathered(batch), 7, position, synced)
    data = b"".join(bytes(buffer) for buffer in buffers)
    assert len(data) == length
    return data


def decoded(data: bytes) -> Batch:
    header = decode_record_header(data[:HEADER])
    begin = header.length - header.data
    batch = parse_meta(header, data[HEADER:begin])
    assert xxh3_64_intdigest(data[begin : header.length]) == header.data_checksum
    for buffer in data_buffers(batch):
        buffer[:] = data[begin : begin + len(buffer)]
        begin += len(buffer)
    assert begin == header.length
    return batch


def plain(batch: Batch) -> tuple[Any, ...]:
    """What can be compared; in the order of the keys, too."""
    values = [(key, info, array.dtype, array.tobytes()) for key, (info, array) in batch.arrays.items()]
    return batch.events, list(batch.docs.items()), values


def record(meta: bytes, data: bytes = b"", *, announced: int | None = None) -> tuple[RecordHeader, bytes]:
    """A header whose checksums are right, and the padded meta."""
    padded = meta + bytes(-len(meta) % ALIGN)
    length = len(data) if announced is None else announced
    checksums = xxh3_64_intdigest(padded), xxh3_64_intdigest(data)
    return RecordHeader(7, 0, 0, len(meta), length, *checksums), padded


@given(BATCHES, POSITIONS, st.data())
def test_a_batch_comes_back(batch: Batch, position: int, data: st.DataObject) -> None:
    synced = data.draw(st.integers(0, position))
    raw = encoded(batch, position, synced)
    header = decode_record_header(raw[:HEADER])
    assert (header.log_id, header.position, header.synced) == (7, position, synced)
    assert header.length == len(raw)
    assert len(raw) % ALIGN == 0
    assert plain(decoded(raw)) == plain(batch)


@given(BATCHES, BATCHES)
def test_a_merged_batch_is_as_good_as_the_two(first: Batch, second: Batch) -> None:
    merged = gathered(first)
    merged.add(gathered(second))
    raw = b"".join(bytes(buffer) for buffer in encode_record(merged, 7, 0, 0)[0])
    expected = Batch(
        first.events + second.events, {**first.docs, **second.docs}, {**first.arrays, **second.arrays}
    )
    assert plain(decoded(raw)) == plain(expected)


def test_arrays_are_written_from_where_they_are_and_aligned() -> None:
    values: list[Array] = [np.arange(3, dtype=np.float64), np.arange(17, dtype=np.int8)]
    batch = Batch([["push"]], {}, {("block", n): (None, array) for n, array in enumerate(values)})
    buffers, _ = encode_record(gathered(batch), 7, 0, 0)
    views = [buffer for buffer in buffers if isinstance(buffer, memoryview)]
    assert len(views) == len(values)
    assert all(np.shares_memory(np.asarray(view), array) for view, array in zip(views, values, strict=True))
    offset = 0
    for buffer in buffers:
        if isinstance(buffer, memoryview):
            assert offset % ALIGN == 0
        offset += len(buffer)


def test_a_dtype_that_is_not_in_the_table_is_not_written() -> None:
    batch = Batch([], {}, {("a",): (None, np.zeros(2, np.complex128))})
    with pytest.raises(KeyError):
        encode_record(gathered(batch), 7, 0, 0)


@given(BATCHES, st.data())
def test_a_flipped_bit_is_noticed_wherever_it_is(batch: Batch, data: st.DataObject) -> None:
    raw = bytearray(encoded(batch))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Damaged, AssertionError)):
        decoded(bytes(raw))


@given(U64, st.integers(0, 2**32 - 1), POSITIONS, U64, st.integers(0, HEADER * 8 - 1))
def test_a_segments_header_comes_back_or_is_damaged(
    segment: int, repair: int, start: int, log_id: int, bit: int
) -> None:
    header = SegmentHeader(segment, repair, start, log_id)
    raw = bytearray(encode_segment_header(header))
    assert decode_segment_header(bytes(raw)) == header
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged):
        decode_segment_header(bytes(raw))


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version_is_said_so(version: int) -> None:
    fields = struct.pack("<8sIIQQQ16x", b"PSUPDLOG", version, 0, 1, 0, 7)
    with pytest.raises(Foreign, match=f"format version {version}, this software reads 1"):
        decode_segment_header(fields + struct.pack("<Q", xxh3_64_intdigest(fields)))


@pytest.mark.parametrize(
    ("position", "synced", "length"),
    [(1, 0, 0), (64, 128, 0), (1 << 63, 0, 0), (0, 0, 1 << 63), (0, 0, 63)],
)
def test_numbers_that_no_record_has_are_refused(position: int, synced: int, length: int) -> None:
    fields = struct.pack("<4sIQQQQQQ", b"PSUR", 0, 7, position, synced, length, 0, 0)
    with pytest.raises(Damaged, match=f"position {position}"):
        decode_record_header(fields + struct.pack("<Q", xxh3_64_intdigest(fields)))


@given(st.binary(max_size=2 * HEADER))
def test_garbage_is_no_header(raw: bytes) -> None:
    for decode in (decode_segment_header, decode_record_header):
        with pytest.raises(Damaged):
            decode(raw)


@given(st.binary(max_size=200) | PLAIN.map(msgpack.packb) | st.tuples(PLAIN, PLAIN, PLAIN).map(msgpack.packb))
def test_meta_whose_checksum_is_right_is_a_batch_or_foreign(raw: bytes) -> None:
    header, padded = record(raw)
    try:
        batch = parse_meta(header, padded)
    except Foreign:
        return
    assert type(batch.events) is list


def array_entry(dtype: Any, elements: Any, key: Any = ("a",)) -> bytes:
    return bytes(msgpack.packb([[], [], [[[key, None], dtype, elements]]]))


@pytest.mark.parametrize(
    ("raw", "announced"),
    [
        pytest.param(array_entry("float32", 16), 0, id="an array without data"),
        pytest.param(msgpack.packb([[], [], []]), 64, id="data without an array"),
        pytest.param(array_entry("float32", -1), 0, id="a negative length"),
        pytest.param(array_entry("float32", True), 64, id="a boolean length"),
        pytest.param(array_entry("float32", 2**62), 2**61, id="a length that is not there"),
        pytest.param(array_entry("complex128", 1), 64, id="another dtype"),
        pytest.param(array_entry(["float32"], 1), 64, id="a list as dtype"),
        pytest.param(array_entry("float32", 1, key="a"), 64, id="a key that is no list"),
        pytest.param(array_entry("float32", 1, key=[1.5]), 64, id="a key with a float"),
        pytest.param(array_entry("float32", 1, key=[True]), 64, id="a key with a boolean"),
        pytest.param(msgpack.packb([[], [], [[[["a"], 1], "int8", 0]] * 2]), 0, id="an array twice"),
        pytest.param(msgpack.packb([[], [[["a"], 1]] * 2, []]), 0, id="a document twice"),
        pytest.param(msgpack.packb([{}, [], []]), 0, id="events that are no list"),
        pytest.param(msgpack.packb([[], []]), 0, id="two parts"),
        pytest.param(msgpack.packb([[], [], []]) + b"\x01", 0, id="more behind it"),
        pytest.param(b"\xdd\xff\xff\xff\xff" * 40, 0, id="arrays of four billion"),
        pytest.param(b"\x91" * 5000 + b"\x01", 0, id="too deep"),
        pytest.param(b"\xc1", 0, id="not msgpack"),
        pytest.param(b"\x93\x91\xa1\xff\x90\x90", 0, id="not UTF-8"),
        pytest.param(b"", 0, id="empty"),
    ],
)
def test_meta_that_makes_no_sense_is_foreign_and_costs_nothing(raw: bytes, announced: int) -> None:
    header, padded = record(raw, announced=announced)
    tracemalloc.start()
    try:
        with pytest.raises(Foreign):
            parse_meta(header, padded)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@settings(max_examples=50)
@given(st.integers(1, 2000), st.sampled_from([b"\xdd", b"\xdf"]), st.integers(0, 2**32 - 1))
def test_an_announced_length_is_not_believed(times: int, kind: bytes, length: int) -> None:
    header, padded = record((kind + length.to_bytes(4, "big")) * times)
    tracemalloc.start()
    try:
        with pytest.raises(Foreign):
            parse_meta(header, padded)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_keys_and_documents_keep_their_types() -> None:
    key: Key = ("share", "job", 3)
    batch = decoded(encoded(Batch([], {key: {"a": [1, None, 2.5]}}, {})))
    assert batch.docs == {key: {"a": [1, None, 2.5]}}
