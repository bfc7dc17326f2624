import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.tensors import DTYPES
from psserver.durability.safetensors import (
    LENGTH,
    MOST_HEADER,
    Array,
    Contents,
    header,
    header_length,
    parse_header,
)

ARRAYS = st.lists(
    st.builds(
        Array,
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda k: k != "__metadata__"),
        st.sampled_from(sorted(DTYPES)),
        st.lists(st.integers(1, 5), max_size=4).map(tuple),
    ),
    unique_by=lambda array: array.key,
    max_size=6,
)


def size_of(first: bytes, arrays: list[Array]) -> int:
    return len(first) + sum(array.nbytes for array in arrays)


def text_of(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def entry(dtype: Any = "F32", shape: Any = (2,), data_offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets, **more}


@given(ARRAYS, st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_a_header_says_what_it_was_made_of(arrays: list[Array], metadata: dict[str, str]) -> None:
    first = header(arrays, metadata)
    size = size_of(first, arrays)
    assert len(first) % 64 == 0
    assert header_length(first[:LENGTH], size) == len(first) - LENGTH
    assert parse_header(first[LENGTH:], size) == Contents(len(first), tuple(arrays), metadata)


@given(ARRAYS)
def test_the_package_reads_what_we_write(arrays: list[Array]) -> None:
    data = [np.random.default_rng(i).bytes(array.nbytes) for i, array in enumerate(arrays)]
    found = safetensors.numpy.load(header(arrays, {"format": "asyncps"}) + b"".join(data))
    assert found.keys() == {array.key for array in arrays}
    for array, raw in zip(arrays, data, strict=True):
        assert found[array.key].dtype == DTYPES[array.dtype]
        assert found[array.key].shape == array.shape
        assert found[array.key].tobytes() == raw


@given(ARRAYS)
def test_we_read_what_the_package_writes(arrays: list[Array]) -> None:
    values = {array.key: np.zeros(array.shape, DTYPES[array.dtype]) for array in arrays}
    data = safetensors.numpy.save(values, {"a": "b"} if arrays else None)
    length = header_length(data[:LENGTH], len(data))
    found = parse_header(data[LENGTH : LENGTH + length], len(data))
    assert set(found.arrays) == set(arrays)
    assert found.start == LENGTH + length


def test_the_package_reads_our_metadata(tmp_path: Path) -> None:
    array = Array("job/w", "uint8", (3,))
    (tmp_path / "x").write_bytes(header([array], {"format": "asyncps 1", "job/w": "0:3 of [3]"}) + b"abc")
    with safetensors.safe_open(tmp_path / "x", framework="numpy") as opened:
        assert opened.metadata() == {"format": "asyncps 1", "job/w": "0:3 of [3]"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe", "no JSON"),
        (b'{"a":NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a":1' + b"0" * 5000 + b"}", "no JSON"),
        (text_of(__metadata__={"a": 1}), "__metadata__"),
        (text_of(__metadata__=["a"]), "__metadata__"),
        (b'{"a":{},"a":{}}', "a key comes twice"),
        (text_of(a=1), "a needs dtype"),
        (text_of(a={}), "a needs dtype"),
        (text_of(a=entry(more=1)), "a needs dtype"),
        (text_of(a=entry(dtype="BF16")), "dtype that is none of F16, F32"),
        (text_of(a=entry(dtype=["F32"])), "dtype that is none of F16, F32"),
        (text_of(a=entry(shape="2")), "no possible shape: 2"),
        (text_of(a=entry(shape=[2.0])), "no possible shape"),
        (text_of(a=entry(shape=[True])), "no possible shape"),
        (text_of(a=entry(shape=[0], data_offsets=[0, 0])), "no possible shape"),
        (text_of(a=entry(shape=[-1, -2])), "no possible shape"),
        (text_of(a=entry(shape=[1] * 9, data_offsets=[0, 4])), "no possible shape"),
        (text_of(a=entry(shape=[1 << 40, 1 << 40])), "no possible shape"),
        (text_of(a=entry(shape=[10**4000])), "no possible shape"),
        (text_of(a=entry(data_offsets=[0])), "8 bytes, and other data_offsets"),
        (text_of(a=entry(data_offsets=[0, 8, 16])), "other data_offsets"),
        (text_of(a=entry(data_offsets=[8, 0])), "other data_offsets"),
        (text_of(a=entry(data_offsets=[-8, 0])), "other data_offsets"),
        (text_of(a=entry(data_offsets=[0, "8"])), "other data_offsets"),
        (text_of(a=entry(data_offsets=[4, 12])), "a begins at 4 of the data and not at 0"),
        (text_of(a=entry(), b=entry()), "b begins at 0 of the data and not at 8"),
        (text_of(a=entry(), b=entry(data_offsets=[9, 17])), "b begins at 9 of the data and not at 8"),
    ],
)
def test_a_wrong_header_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_header(text, LENGTH + len(text) + 8)


@pytest.mark.parametrize("more", [-1, 1])
def test_the_file_is_as_long_as_the_header_says(more: int) -> None:
    text = text_of(a=entry())
    with pytest.raises(ValueError, match="the file has"):
        parse_header(text, LENGTH + len(text) + 8 + more)


@pytest.mark.parametrize("first", [b"", b"\x00" * 7])
def test_a_file_without_a_length(first: bytes) -> None:
    with pytest.raises(ValueError, match="too few"):
        header_length(first, len(first))


@pytest.mark.parametrize(
    ("length", "size"), [(1, 8), (93, 100), (1 << 63, 100), ((1 << 64) - 1, 100), (MOST_HEADER + 1, 1 << 40)]
)
def test_a_length_is_checked_against_the_file_and_a_limit(length: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"offset 0: a header of {length} bytes in a file of {size}"):
        header_length(length.to_bytes(LENGTH, "little"), size)


def test_no_header_is_written_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psserver.durability.safetensors.MOST_HEADER", 100)
    with pytest.raises(ValueError, match="use fewer tensors"):
        header([Array("x" * 100, "uint8", (1,))], {})


KEYS = st.sampled_from(["__metadata__", "a", "dtype", "shape", "data_offsets"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.dictionaries(KEYS, JSON, max_size=3).map(lambda x: json.dumps(x).encode()))
def test_whatever_a_header_is_it_is_read_or_refused(text: bytes) -> None:
    size = LENGTH + len(text)
    try:
        found = parse_header(text, size)
    except ValueError:
        return
    assert found.start + sum(array.nbytes for array in found.arrays) == size
