"""Floating-point numbers in 16 bits: float16 (IEEE 754 binary16) and bfloat16 (the upper half of float32).

All are rounded to nearest, ties to even. bfloat16 has the range of float32 and 8 bits of precision; float16
has 11, and nothing above 65,504.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import BadTensor
from protocol.tensors import DTYPES, pieces

__all__ = ["NARROWER", "narrow", "widen"]

Array = npt.NDArray[Any]

NARROWER: Final = {
    "float32": ("float16", "bfloat16"),
    "float64": ("float16", "bfloat16", "float32"),
}
"""What the numbers of a dtype may travel as, besides itself."""

_INFINITY: Final = np.uint32(0x7F800000)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_BELOW_OVERFLOW: Final = np.uint32(0x7F7F7FFF)
"""The largest float32, as bits, that is not rounded to infinity in bfloat16."""

_HALF: Final = np.uint32(0x7FFF)
_SHIFT: Final = np.uint32(16)
_ONE: Final = np.uint32(1)
_QUIET: Final = np.uint16(0x40)
"""The bit that a NaN keeps, whatever is cut off."""


def narrow(values: Array, wire: str, name: str) -> Array:
    """Return 1-d ``values`` as they travel: as ``wire``; bfloat16 as uint16. The same array if they are that.

    NaN stays NaN, and infinity infinity. float64 becomes bfloat16 by way of float32.

    Args:
        values: float32 or float64 of shape (n,).
        wire: the dtype of ``values``, or one of ``NARROWER``.
        name: of the tensor, for the error.

    Raises:
        BadTensor: a finite number is too large for ``wire``.
    """
    if wire == values.dtype.name:
        return values
    out = np.empty(values.size, np.uint16 if wire == "bfloat16" else DTYPES[wire])
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            for piece in pieces(values):
                if wire == "bfloat16":
                    _round_to_upper_half(values[piece].astype(np.float32, copy=False), out[piece])
                else:
                    np.copyto(out[piece], values[piece], casting="same_kind")
    except FloatingPointError:
        raise BadTensor(f"a number is too large for {wire}", field="values", value=name) from None
    return out


def _round_to_upper_half(values: Array, out: Array) -> None:
    bits = values.view(np.uint32)
    magnitude = bits & _MAGNITUDE
    rounded = bits >> _SHIFT
    rounded &= _ONE
    rounded += _HALF
    rounded += bits  # a NaN may wrap around; it is put right below
    rounded >>= _SHIFT
    np.copyto(out, rounded, casting="unsafe")
    if magnitude.max() > _BELOW_OVERFLOW:
        if ((magnitude > _BELOW_OVERFLOW) & (magnitude < _INFINITY)).any():
            raise FloatingPointError
        nan = magnitude > _INFINITY
        out[nan] = (bits[nan] >> _SHIFT).astype(np.uint16) | _QUIET


def widen(values: Array, wire: str, out: Array) -> None:
    """Write to ``out`` (1-d, float32 or float64) the numbers that arrived as ``wire``; exact, and NaN is NaN.

    Args:
        values: of shape (n,); the dtype of ``wire``, uint16 for bfloat16.
        wire: the dtype of ``out``, or one of ``NARROWER``.
        out: of shape (n,).
    """
    for piece in pieces(out):
        if wire == "bfloat16":
            bits = values[piece].astype(np.uint32)
            bits <<= _SHIFT
            np.copyto(out[piece], bits.view(np.float32))
        else:
            np.copyto(out[piece], values[piece])
