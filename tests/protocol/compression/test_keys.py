import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.compression.keys import (
    decode_keys,
    digest_of,
    encode_keys,
    keys_part,
    parts_of_rows,
    parts_of_wanted,
    values_part,
)
from protocol.errors import BadRequest
from protocol.tables import Rows
from protocol.tensors import Part

TOP = (1 << 64) - 1
DIGEST = "0" * 32

Keys = npt.NDArray[np.uint64]


def keys_of(*keys: int) -> Keys:
    return np.array(keys, np.uint64)


def rows(keys: int, coding: str, values: str = "float32") -> Rows:
    return Rows("emb", keys, DIGEST, coding, values)


any_key = st.integers(0, TOP)
lists = st.lists(any_key | st.integers(0, 300), max_size=50).map(lambda keys: keys_of(*keys))
steps = st.sampled_from([1, 1 << 8, 1 << 16, 1 << 32, 1 << 34]).flatmap(
    lambda most: st.lists(st.integers(0, most), max_size=50)
)


@st.composite
def increasing(draw: st.DrawFn) -> Keys:
    """A sorted list, repeats included, whose differences are of about one size, up to the largest key."""
    taken = np.cumsum([0, *draw(steps)], dtype=np.uint64)
    start = draw(st.just(0) | st.just(TOP - int(taken[-1])) | st.integers(0, TOP - int(taken[-1])))
    return taken + np.uint64(start)


@given(lists | increasing() | lists.map(np.sort))
@example(keys_of())
@example(keys_of(TOP))
@example(keys_of(TOP, 0))
@example(keys_of(0, TOP, 0))
@example(keys_of(TOP - 1, TOP, 0, 1))
@example(keys_of(5, TOP, 6, 7))
@example(keys_of(0, 255, 511))
@example(keys_of(TOP - 1, TOP, TOP))
def test_keys_arrive_as_they_were(keys: Keys) -> None:
    coding, coded = encode_keys(keys)
    part = keys_part(rows(keys.size, coding))
    assert part is not None
    assert (part.dtype, part.elements) == (coded.dtype.name, coded.size)
    found = decode_keys(coding, keys.size, coded)
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, keys)


@given(increasing())
def test_a_sorted_list_is_sent_in_the_fewest_bytes(keys: Keys) -> None:
    coding, coded = encode_keys(keys)
    widest = max(np.diff(keys).tolist(), default=TOP)
    lengths = {1 << 8: 1, 1 << 16: 2, 1 << 32: 4}
    width = next((width for most, width in lengths.items() if widest < most), 8)
    assert coded.nbytes == 8 + width * (keys.size - 1)
    assert coding == ("raw" if width == 8 else f"delta{8 * width}")


def test_a_list_that_is_sent_as_it_is_is_not_copied() -> None:
    keys = keys_of(3, 1, 2)
    assert encode_keys(keys)[1] is keys
    assert decode_keys("raw", 3, keys) is keys


def test_a_long_list_that_falls_late() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    keys[-1] = 7
    for late in (keys, keys[::-1].copy(), np.roll(keys, 5000)):
        coding, coded = encode_keys(late)
        assert coding == "raw"
        np.testing.assert_array_equal(decode_keys(coding, late.size, coded), late)


def test_the_layout_of_differences() -> None:
    coding, coded = encode_keys(keys_of(0x0102030405060708, 0x0102030405060709, 0x0102030405060809))
    assert coding == "delta16"
    assert coded.tobytes() == bytes([8, 7, 6, 5, 4, 3, 2, 1, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("coding", "count", "array", "field"),
    [
        ("raw", 3, np.zeros(2, np.uint64), "keys"),
        ("raw", 2, np.zeros(2, np.int64), "keys"),
        ("raw", 2, np.zeros(2, np.uint32), "keys"),
        ("delta8", 3, np.zeros(9, np.uint8), "keys"),
        ("delta8", 3, np.zeros(11, np.uint8), "keys"),
        ("delta8", 3, np.zeros(10, np.uint16), "keys"),
        ("delta16", 3, np.zeros(10, np.uint16), "keys"),
        ("delta32", 1, np.zeros(1, np.uint32), "keys"),
        ("delta8", 0, np.zeros(0, np.uint8), "coding"),
        ("delta32", 0, np.zeros(1, np.uint32), "coding"),
        ("delta8", 2, np.full(9, 0xFF, np.uint8), "keys"),
        ("delta32", 3, np.full(4, 0xFFFFFFFF, np.uint32), "keys"),
    ],
)
def test_what_is_no_such_list_is_refused(
    coding: str, count: int, array: npt.NDArray[np.uint64], field: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_keys(coding, count, array)
    assert caught.value.field == field
    assert caught.value.value


def test_the_largest_key_may_be_reached_but_not_passed() -> None:
    coded = np.concatenate([keys_of(TOP - 5).view(np.uint8), np.array([2, 3], np.uint8)])
    assert decode_keys("delta8", 3, coded).tolist() == [TOP - 5, TOP - 3, TOP]
    coded[-1] = 4
    with pytest.raises(BadRequest) as caught:
        decode_keys("delta8", 3, coded)
    assert caught.value.value == str(1 << 64)


@given(lists)
def test_the_digest_is_that_of_the_little_endian_bytes(keys: Keys) -> None:
    assert (
        digest_of(keys) == xxhash.xxh3_128(b"".join(int(k).to_bytes(8, "little") for k in keys)).hexdigest()
    )


def test_what_a_payload_holds() -> None:
    a, b, c = rows(5, "delta16"), rows(5, "known", "bfloat16"), rows(0, "raw", "float64")
    assert keys_part(b) is None
    assert values_part(b, 3) == Part("emb", "uint16", 15)
    assert parts_of_rows((a, b, c), (2, 3, 4)) == [
        Part("emb", "uint16", 8),
        Part("emb", "float32", 10),
        Part("emb", "uint16", 15),
        Part("emb", "uint64", 0),
        Part("emb", "float64", 0),
    ]
    assert parts_of_wanted((a, b, c)) == [Part("emb", "uint16", 8), Part("emb", "uint64", 0)]
    with pytest.raises(BadRequest) as caught:
        parts_of_wanted((rows(0, "delta8"),))
    assert caught.value.field == "coding"
