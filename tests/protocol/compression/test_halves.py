import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.compression.halves import NARROWER, narrow, widen
from protocol.errors import BadTensor
from protocol.tensors import PIECE

Array = npt.NDArray[Any]

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
OVERFLOWS = {"float16": 65520.0, "bfloat16": 3.3961775292304e38}
BITS = {"float16": 11, "bfloat16": 8}
PAIRS = [(dtype, wire) for dtype, wires in NARROWER.items() for wire in wires]
HALVES = pytest.mark.parametrize("wire", ["float16", "bfloat16"])


def there_and_back(values: Array, wire: str) -> Array:
    sent = narrow(values, wire, "emb")
    out = np.empty_like(values)
    widen(sent, wire, out)
    return out


def all_halves(wire: str) -> Array:
    """Every number of the format, NaNs left out, as float32."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(bits.size, np.float32)
    with np.errstate(invalid="ignore"):
        widen(bits if wire == "bfloat16" else bits.view(np.float16), wire, out)
    return out[~np.isnan(out)]


@HALVES
def test_what_fits_arrives_as_it_was(wire: str) -> None:
    values = all_halves(wire)
    back = there_and_back(values, wire)
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))  # also the sign of zero


@HALVES
def test_the_nearest_is_taken_and_of_two_the_even_one(wire: str) -> None:
    values = np.unique(all_halves(wire))
    finite = values[np.isfinite(values)].astype(np.float64)
    middle = (finite[:-1] + finite[1:]) / 2
    between = middle.astype(np.float32)
    below, above = np.nextafter(between, np.float32(-np.inf)), np.nextafter(between, np.float32(np.inf))
    exact = between.astype(np.float64) == middle  # among the smallest bfloat16 float32 has no numbers between
    np.testing.assert_array_equal(there_and_back(below[exact], wire), finite[:-1][exact])
    np.testing.assert_array_equal(there_and_back(above[exact], wire), finite[1:][exact])
    taken = narrow(there_and_back(between[exact], wire), wire, "emb").view(np.uint16)
    assert not (taken & 1).any()


@HALVES
@given(values=hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-60000, 60000, width=32)))
@example(values=np.zeros(0, np.float32))
def test_the_error_is_half_a_unit_of_the_last_place(wire: str, values: Array) -> None:
    back = there_and_back(values, wire)
    assert back.dtype == values.dtype
    smallest = 2.0**-25 if wire == "float16" else 2.0**-134
    bound = np.maximum(np.abs(values.astype(np.float64)) * 2.0 ** -BITS[wire], smallest)
    assert (np.abs(back.astype(np.float64) - values) <= bound).all()


@HALVES
def test_every_nan_stays_nan_and_infinity_infinity(wire: str) -> None:
    bits = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF, 0x7F80FFFF]
    nans = np.array(bits, np.uint32).view(np.float32)
    assert np.isnan(there_and_back(nans, wire)).all()
    mixed = np.array([1.0, math.inf, math.nan, -math.inf, -1.0], np.float32)
    np.testing.assert_array_equal(there_and_back(mixed, wire), mixed)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@HALVES
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, 299_999])
def test_what_is_too_large_is_refused(wire: str, dtype: str, sign: int, place: int) -> None:
    values = np.zeros(300_000, dtype)
    assert values.nbytes > PIECE
    values[place] = sign * LARGEST[wire]
    values[5] = math.nan
    assert there_and_back(values, wire)[place] == sign * LARGEST[wire]
    values[place] = sign * OVERFLOWS[wire]
    with pytest.raises(BadTensor) as caught:
        narrow(values, wire, "emb")
    assert (caught.value.field, caught.value.value) == ("values", "emb")
    assert wire in caught.value.message


def test_a_float64_that_is_no_float32_is_refused() -> None:
    assert there_and_back(np.array([1e38, 1 / 3]), "float32").tolist() == [
        float(np.float32(1e38)),
        float(np.float32(1 / 3)),
    ]
    for wire in ("float32", "bfloat16", "float16"):
        with pytest.raises(BadTensor):
            narrow(np.array([0.0, 1e39]), wire, "emb")


@pytest.mark.parametrize(("dtype", "wire"), PAIRS)
def test_large_arrays_are_as_small_ones(dtype: str, wire: str) -> None:
    values = np.random.default_rng(7).normal(size=200_001).astype(dtype)
    back = there_and_back(values, wire)
    for begin in (0, 99_990, 199_990):
        np.testing.assert_array_equal(
            back[begin : begin + 11], there_and_back(values[begin : begin + 11].copy(), wire)
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_travels_as_it_is_is_not_copied(dtype: str) -> None:
    values = np.zeros(3, dtype)
    assert narrow(values, dtype, "emb") is values
