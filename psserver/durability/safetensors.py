"""The safetensors format: a file of named arrays that PyTorch, JAX and NumPy users can open.

    8 bytes     length of the header, little-endian
    header      JSON: {"__metadata__": {text: text}, KEY: {"dtype", "shape", "data_offsets": [begin, end]}}
    data        the arrays, without gaps; offsets count from here

We pad the header with spaces so that the data begin at a multiple of 64 bytes. No I/O here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import shorten
from protocol.tensors import ALIGN, DTYPES, MAX_DIMENSIONS, MAX_ELEMENTS

__all__ = ["LENGTH", "MOST_HEADER", "Array", "Contents", "header", "header_length", "parse_header"]

LENGTH: Final = 8
"""Bytes before the header."""

MOST_HEADER: Final = 100_000_000
"""Bytes of the longest header; the safetensors package reads no longer one either."""

_METADATA: Final = "__metadata__"
_CODES: Final = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
_DTYPES: Final = {code: name for name, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Array:
    """What a file says of an array: the name of its dtype as in ``DTYPES``, its shape; no dimension is 0."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Contents:
    """What a header says: ``arrays`` in the order in which their data lie, the first at byte ``start``."""

    start: int
    arrays: tuple[Array, ...]
    metadata: Mapping[str, str]


def header(arrays: Iterable[Array], metadata: Mapping[str, str]) -> bytes:
    """Return what comes before the data of ``arrays``, which follow in this order.

    Raises:
        ValueError: there are so many arrays that nobody would read the header.
    """
    entries: dict[str, Any] = {_METADATA: dict(metadata)}
    begin = 0
    for array in arrays:
        end = begin + array.nbytes
        entries[array.key] = {
            "dtype": _CODES[array.dtype],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH + len(text)) % ALIGN)
    if len(text) > MOST_HEADER:
        raise ValueError(f"a header of {len(text)} bytes, more than {MOST_HEADER}; use fewer tensors")
    return len(text).to_bytes(LENGTH, "little") + text


def header_length(first: bytes, size: int) -> int:
    """Return the bytes of a header, without those of its length, from a file's ``first`` 8 bytes.

    Args:
        first: of the file.
        size: the bytes of the file.

    Raises:
        ValueError: no file of that size begins like this.
    """
    if len(first) < LENGTH:
        raise ValueError(f"{len(first)} bytes are too few for the header's length")
    length = int.from_bytes(first, "little")
    if length > min(MOST_HEADER, size - LENGTH):
        raise ValueError(f"offset 0: a header of {length} bytes in a file of {size}")
    return length


def parse_header(text: bytes, size: int) -> Contents:
    """Return what a header says.

    Args:
        text: the header without its length.
        size: the bytes of the file.

    Raises:
        ValueError: the message says what is wrong with the header, or with the file's size.
    """
    start = LENGTH + len(text)
    entries = _json(text)
    metadata = _metadata(entries.pop(_METADATA, {}))
    found = sorted((_array(key, entry) for key, entry in entries.items()), key=lambda one: one[0])
    end = 0
    for begin, array in found:
        if begin != end:
            raise ValueError(f"{shorten(array.key)} begins at {begin} of the data and not at {end}")
        end += array.nbytes
    if start + end != size:
        raise ValueError(f"header and data are {start + end} bytes, the file has {size}")
    return Contents(start, tuple(array for _, array in found), metadata)


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"offset {LENGTH}: the header is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"offset {LENGTH}: the header is no JSON: {shorten(str(error))}") from None
    if type(found) is not dict:
        raise ValueError(f"offset {LENGTH}: the header is no JSON object")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _metadata(entry: object) -> dict[str, str]:
    if type(entry) is not dict or not all(type(value) is str for value in entry.values()):
        raise ValueError(f"{_METADATA} is no object of texts")
    return entry


def _array(key: str, entry: object) -> tuple[int, Array]:
    """Return where the data of an array begin, and what it is."""
    name = shorten(key)
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} needs dtype, shape and data_offsets, nothing else")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(code) is not str or code not in _DTYPES:
        raise ValueError(f"{name} has a dtype that is none of {', '.join(_DTYPES)}: {shorten(code)}")
    if not _are_integers(shape, 1) or len(shape) > MAX_DIMENSIONS or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"{name} has no possible shape: {shorten(shape)}")
    array = Array(key, _DTYPES[code], tuple(shape))
    if not _are_integers(offsets, 0) or len(offsets) != 2 or offsets[1] - offsets[0] != array.nbytes:
        raise ValueError(f"{name} has {array.nbytes} bytes, and other data_offsets: {shorten(offsets)}")
    return offsets[0], array


def _are_integers(value: object, least: int) -> bool:
    return type(value) is list and all(type(item) is int and item >= least for item in value)
