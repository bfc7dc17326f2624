from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, BadTensor
from protocol.fields import array_decoder
from protocol.tensors import (
    ALIGN,
    DTYPES,
    MAX_ELEMENTS,
    DTypeName,
    Part,
    Shape,
    as_bytes,
    dtype_name,
    payload_length,
    segments,
    write_buffers,
)

Array = npt.NDArray[Any]

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.integers(0, 300).map(lambda n: (n,))


def filled(shape: tuple[int, ...], dtype: str) -> Array:
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    numbers = np.arange(1, size + 1, dtype=np.uint64) % 251 + 1
    return numbers.astype(np.uint8).view(DTYPES[dtype]).reshape(shape)


arrays = st.lists(st.builds(filled, shapes, st.sampled_from(sorted(DTYPES))), max_size=6)


@dataclass(frozen=True, slots=True)
class Described:
    dtype: DTypeName
    shape: Shape


described = array_decoder(Described)


@given(arrays)
def test_what_is_sent_is_what_is_received(sent: list[Array]) -> None:
    payload = b"".join(write_buffers(sent))
    received = [np.zeros(array.shape, array.dtype) for array in sent]
    position = 0
    for segment in segments(received):
        if isinstance(segment, int):
            assert payload[position : position + segment] == bytes(segment)
            position += segment
        elif len(segment):
            segment[:] = payload[position : position + len(segment)]
            position += len(segment)
    assert position == len(payload) == payload_length(array.nbytes for array in sent)
    assert [array.tobytes() for array in received] == [array.tobytes() for array in sent]


@given(arrays)
def test_every_array_begins_at_a_multiple_of_64(sent: list[Array]) -> None:
    payload = b"".join(write_buffers(sent))
    position = 0
    for array in sent:
        position = -(-position // ALIGN) * ALIGN
        assert payload[position : position + array.nbytes] == array.tobytes()
        position += array.nbytes
    assert position == len(payload)


@given(st.lists(st.integers(0, 1 << 62), max_size=20))
def test_a_payload_is_as_long_as_its_arrays_and_less_than_64_bytes_for_each(sizes: list[int]) -> None:
    assert sum(sizes) <= payload_length(sizes) <= sum(sizes) + (ALIGN - 1) * max(0, len(sizes) - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (0, 5), (1,) * 8])
def test_any_contiguous_array_is_seen_as_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    array = filled(shape, dtype)
    view = as_bytes(array)
    assert (view.format, view.ndim, len(view)) == ("B", 1, array.nbytes)
    assert view == array.tobytes()
    if array.size:
        assert np.shares_memory(np.frombuffer(view, np.uint8), array)


def test_numbers_are_not_copied_for_sending() -> None:
    sent = [filled((3,), "float32"), filled((1000, 100), "float64"), filled((5,), "int8")]
    pieces = [np.frombuffer(piece, np.uint8) for piece in write_buffers(sent)]
    assert [len(piece) for piece in pieces] == [12, 52, 800_000, 5]
    for array, piece in zip(sent, (pieces[0], *pieces[2:]), strict=True):
        assert np.shares_memory(array, piece)


def test_a_read_only_array_can_be_sent() -> None:
    array = filled((9,), "int16")
    array.flags.writeable = False
    assert b"".join(write_buffers([array])) == array.tobytes()


@pytest.mark.parametrize(
    "array", [filled((4, 6), "int32").T, filled((9,), "int32")[::2], filled((4, 6), "int32")[:, 1:]]
)
def test_arrays_that_are_not_contiguous_are_never_sent_in_the_wrong_order(array: Array) -> None:
    with pytest.raises(TypeError, match="contiguous"):
        write_buffers([array])


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_keeps_its_name_on_the_wire(name: str) -> None:
    assert dtype_name(DTYPES[name]) == name
    assert DTYPES[name] == np.dtype(name)
    assert DTYPES[name].newbyteorder("<") == DTYPES[name]


def test_c_types_of_one_size_are_one_dtype() -> None:
    assert dtype_name(np.dtype(np.longlong)) == dtype_name(np.dtype(np.int64)) == "int64"


REFUSED = [
    np.dtype(object),
    np.dtype(bool),
    np.dtype(">f4"),
    np.dtype(">i8"),
    np.dtype(">u2"),
    np.dtype([("a", "<f4")]),
    np.dtype(("<f4", (2,))),
    np.dtype("S4"),
    np.dtype("U4"),
    np.dtype("V4"),
    np.dtype("datetime64[s]"),
    np.dtype(np.complex64),
    np.dtype(np.longdouble),
]


@pytest.mark.parametrize("dtype", REFUSED, ids=str)
def test_other_dtypes_do_not_travel(dtype: np.dtype[Any]) -> None:
    with pytest.raises(BadTensor, match=r"float32.*convert it first") as caught:
        dtype_name(dtype, "gradients")
    assert caught.value.field == "gradients"
    assert caught.value.value == repr(dtype)


@pytest.mark.parametrize(
    "name",
    [dtype.str for dtype in REFUSED] + ["", "Float32", "float", "f4", "<f4", "O", "object", "i4,i4", "a\0"],
)
def test_a_peers_dtype_is_one_of_a_fixed_table(name: str) -> None:
    with pytest.raises(BadRequest, match="a dtype is one of") as caught:
        described([name, []], "spec")
    assert caught.value.field == "dtype"


@pytest.mark.parametrize(
    "shape", [[], [1], [3, 4], [1] * 8, [MAX_ELEMENTS], [1 << 24, 1 << 24], [64, 64, 64, 64, 64, 64, 64, 64]]
)
def test_shapes_up_to_the_limits_are_taken(shape: list[int]) -> None:
    assert described(["int8", shape], "spec").shape == tuple(shape)


@pytest.mark.parametrize(
    "shape",
    [
        [0],
        [3, 0],
        [0, 1 << 62],
        [-1],
        [2, -2],
        [1] * 9,
        [MAX_ELEMENTS + 1],
        [1 << 32, 1 << 32],
        [(1 << 63) - 1] * 8,
        [1 << 63],
        [1 << 64],
        [True],
        [2.0],
        ["2"],
        [None],
        [[2]],
        4,
        None,
        {"0": 1},
        "34",
    ],
)
def test_other_shapes_are_refused(shape: object) -> None:
    with pytest.raises(BadRequest) as caught:
        described(["int8", shape], "spec")
    assert caught.value.field == "shape"


def test_a_part_knows_its_bytes_however_large() -> None:
    assert Part("w", "float64", 5).nbytes == 40
    assert Part("w", "float16", (1 << 63) - 1).nbytes == (1 << 64) - 2
