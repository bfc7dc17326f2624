"""How arrays lie in a payload: raw little-endian numbers, each array at a multiple of 64 bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import BadRequest, BadTensor
from protocol.fields import Name
from protocol.frames import Segment

__all__ = [
    "ALIGN",
    "DTYPES",
    "MAX_ELEMENTS",
    "DTypeName",
    "Part",
    "Shape",
    "all_finite",
    "as_bytes",
    "dtype_name",
    "payload_length",
    "piece_is_finite",
    "pieces",
    "segments",
    "write_buffers",
]

ALIGN: Final = 64
MAX_DIMENSIONS: Final = 8
MAX_ELEMENTS: Final = 1 << 48

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(code)
    for name, code in {
        "float16": "<f2",
        "float32": "<f4",
        "float64": "<f8",
        "int8": "<i1",
        "int16": "<i2",
        "int32": "<i4",
        "int64": "<i8",
        "uint8": "<u1",
        "uint16": "<u2",
        "uint32": "<u4",
        "uint64": "<u8",
    }.items()
}
"""The dtypes that may travel. A peer's text is looked up here and never given to ``np.dtype``."""

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_PADDING: Final = bytes(ALIGN)

Array = npt.NDArray[Any]

PIECE: Final = 256 * 1024
"""Bytes of an array that are worked on at a time: three such pieces fit a second-level cache."""

_ZEROS: Final = {
    dtype: np.zeros(PIECE // dtype.itemsize, dtype) for dtype in DTYPES.values() if dtype.kind == "f"
}


def _check_dtype(value: object, field: str) -> None:
    if value not in DTYPES:
        raise BadRequest(f"a dtype is one of {', '.join(DTYPES)}", field=field, value=value)


def _check_shape(value: object, field: str) -> None:
    shape: tuple[int, ...] = value  # type: ignore[assignment]
    if len(shape) > MAX_DIMENSIONS:
        raise BadRequest(f"a shape has at most {MAX_DIMENSIONS} dimensions", field=field, value=shape)
    if 0 in shape:
        raise BadRequest("every dimension is at least 1", field=field, value=shape)
    if math.prod(shape) > MAX_ELEMENTS:
        raise BadRequest(f"a tensor has at most {MAX_ELEMENTS} elements", field=field, value=shape)


DTypeName = Annotated[str, _check_dtype]
Shape = Annotated[tuple[int, ...], _check_shape]


@dataclass(frozen=True, slots=True)
class Part:
    """What a payload holds of one tensor: ``elements`` numbers of ``dtype``."""

    recurs: ClassVar[bool] = True
    name: Name
    dtype: DTypeName
    elements: int

    @property
    def nbytes(self) -> int:
        """Bytes in the payload, without padding."""
        return self.elements * DTYPES[self.dtype].itemsize


def dtype_name(dtype: np.dtype[Any], field: str = "dtype") -> str:
    """Return the name of ``dtype`` on the wire.

    Raises:
        BadTensor: arrays of that dtype do not travel.
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise BadTensor(
            f"arrays travel as one of {', '.join(DTYPES)}; convert it first",
            field=field,
            value=dtype,
        ) from None


def _padding(length: int) -> int:
    return -length % ALIGN


def payload_length(sizes: Iterable[int]) -> int:
    """Return the length of a payload that holds arrays of these ``sizes`` in bytes."""
    length = 0
    for size in sizes:
        length += _padding(length) + size
    return length


def segments(arrays: Sequence[Array]) -> list[Segment]:
    """Return where the pieces of a payload for ``arrays`` go, in the order of the payload."""
    if len(arrays) == 1:
        return [as_bytes(arrays[0])]
    found: list[Segment] = []
    length = 0
    for array in arrays:
        gap = _padding(length)
        if gap:
            found.append(gap)
        found.append(as_bytes(array))
        length += gap + array.nbytes
    return found


def write_buffers(arrays: Sequence[Array]) -> list[memoryview | bytes]:
    """Return the pieces of the payload for C-contiguous ``arrays``; none of the numbers is copied."""
    if len(arrays) == 1:
        return [as_bytes(arrays[0])]
    found: list[memoryview | bytes] = []
    length = 0
    for array in arrays:
        gap = _padding(length)
        if gap:
            found.append(_PADDING[:gap])
        found.append(as_bytes(array))
        length += gap + array.nbytes
    return found


def as_bytes(array: Array) -> memoryview:
    """Return the memory of a C-contiguous ``array`` as bytes."""
    if array.size == 0:
        return memoryview(b"")
    return array.data.cast("B")


def pieces(array: Array) -> Iterator[slice]:
    """Yield slices of a 1-d ``array`` that are worked on while they are in the cache."""
    length = PIECE // array.itemsize
    for begin in range(0, array.size, length):
        yield slice(begin, begin + length)


def piece_is_finite(piece: Array) -> bool:
    """Return whether a piece is free of NaN and infinity; integers always are."""
    zeros = _ZEROS.get(piece.dtype)
    # 0 * x is NaN exactly if x is NaN or infinite, and then the products' sum is too. One pass, no
    # temporary and, unlike a sum of the values, no overflow of its own.
    return zeros is None or not piece.dot(zeros[: piece.size])


def all_finite(array: Array) -> bool:
    """Return whether ``array`` (1-d) is free of NaN and infinity; integers always are."""
    return all(piece_is_finite(array[piece]) for piece in pieces(array))
