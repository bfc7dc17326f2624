import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from psworker.keys import as_keys, hash_features

TOP = (1 << 64) - 1


@pytest.mark.parametrize(
    ("value", "keys", "shape"),
    [
        ([], [], (0,)),
        ([3, 1, 3], [3, 1, 3], (3,)),
        ([TOP, 1], [TOP, 1], (2,)),
        ([1 << 63, 0], [1 << 63, 0], (2,)),
        (((1, 2), (3, TOP)), [1, 2, 3, TOP], (2, 2)),
        ([np.uint64(TOP), 5], [TOP, 5], (2,)),
        ([np.arange(2), np.arange(2)], [0, 1, 0, 1], (2, 2)),
        (7, [7], ()),
        (np.uint64(TOP), [TOP], ()),
        (np.int8(7), [7], ()),
        (np.array([1, 2], np.int8), [1, 2], (2,)),
        (np.array([1, 2], np.int64), [1, 2], (2,)),
        (np.array([[1], [2]], ">u8"), [1, 2], (2, 1)),
        (np.array([1, 2], ">i4"), [1, 2], (2,)),
        (np.arange(6, dtype=np.uint64).reshape(2, 3).T, [0, 3, 1, 4, 2, 5], (3, 2)),
        (np.arange(6)[::-2], [5, 3, 1], (3,)),
        (np.zeros((3, 0), np.uint64), [], (3, 0)),
        (np.broadcast_to(np.uint64(4), 3), [4, 4, 4], (3,)),
        (range(3), [0, 1, 2], (3,)),
    ],
)
def test_whole_numbers_of_any_kind_are_keys(value: Any, keys: list[int], shape: tuple[int, ...]) -> None:
    found, found_shape = as_keys(value)
    assert found.dtype == np.dtype("<u8")
    assert found.flags.c_contiguous
    assert found.tolist() == keys
    assert found_shape == shape


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([-1], "-1"),
        ([0, 1 << 64], "18446744073709551616"),
        ([1.0], "1.0"),
        ([1, 2.5], "2.5"),
        ([True, 2], "True"),
        ([None], "None"),
        (["7"], "7"),
        ([[1], [2, 3]], "[1]"),
        (None, "None"),
        ("abc", "abc"),
        ({1, 2}, "{1, 2}"),
        (1.5, "1.5"),
        (True, "True"),
        (np.array([3, -2, -7]), "-7"),
        (np.array([-1], np.int8), "-1"),
        (np.array([1.0]), "float64"),
        (np.array([]), "float64"),
        (np.array([True]), "bool"),
        (np.array([1], object), "dtype('O')"),
        (np.array(["1"]), "<U1"),
        (np.array([1j]), "complex128"),
        (np.array(["2020-01-01"], "datetime64[D]"), "M8[D]"),
        (np.float32(1), "float32"),
    ],
)
def test_what_is_no_key_is_refused_by_name(value: Any, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        as_keys(value)
    assert caught.value.field == "keys"
    assert text in caught.value.value


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_an_array_of_64_bit_integers_is_not_copied(dtype: Any) -> None:
    array = np.arange(12, dtype=dtype).reshape(3, 4)
    assert np.shares_memory(as_keys(array)[0], array)


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        as_keys(np.broadcast_to(np.uint64(1), 1 << 40))
    assert (caught.value.field, caught.value.value) == ("keys", str(1 << 40))


# --- features


@given(st.lists(st.text() | st.binary(), max_size=20), st.integers(0, TOP))
def test_a_feature_is_the_hash_of_its_text(features: list[str | bytes], seed: int) -> None:
    raw = [one.encode() if isinstance(one, str) else one for one in features]
    found = hash_features(features, seed)
    assert found.dtype == np.uint64
    assert found.tolist() == [xxhash.xxh3_64(one, seed=seed).intdigest() for one in raw]


def test_features_have_the_same_keys_in_every_process() -> None:
    expected = [16543050526560878400, 6748675957732712302]
    program = "from psworker import hash_features; print(hash_features(['user=17', 'ü']).tolist())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(expected)
    assert hash_features(["user=17", b"\xc3\xbc"]).tolist() == expected
    assert hash_features(["user=17"], seed=1).tolist() != expected[:1]
    assert hash_features(iter([])).shape == (0,)


@pytest.mark.parametrize(
    ("features", "seed", "field", "text"),
    [
        ("user=17", 0, "features", "user=17"),
        (b"user=17", 0, "features", "user=17"),
        (["a", 17], 0, "features", "17"),
        ([None], 0, "features", "None"),
        (["a"], -1, "seed", "-1"),
        (["a"], 1 << 64, "seed", str(1 << 64)),
        (["a"], 1.0, "seed", "1.0"),
        (["a"], True, "seed", "True"),
    ],
)
def test_what_is_no_feature_is_refused(features: Any, seed: Any, field: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        hash_features(features, seed)
    assert caught.value.field == field
    assert text in caught.value.value
