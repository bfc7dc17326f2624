"""How a list of keys lies in a payload, and what a server knows it again by.

A sorted list is sent as its first key and the differences that follow, in as few bytes each as the largest
needs; any other list as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from protocol.errors import BadRequest
from protocol.tables import Keys, Rows
from protocol.tensors import DTYPES, Part

__all__ = [
    "decode_keys",
    "digest_of",
    "encode_keys",
    "keys_part",
    "parts_of_rows",
    "parts_of_wanted",
    "values_part",
]

Array = npt.NDArray[Any]

_DELTAS: Final[dict[str, np.dtype[Any]]] = {
    "delta8": np.dtype("<u1"),
    "delta16": np.dtype("<u2"),
    "delta32": np.dtype("<u4"),
}
"""Codings of sorted lists, the shortest first, and what their differences are held in."""

_LARGEST: Final = {name: (1 << 8 * dtype.itemsize) - 1 for name, dtype in _DELTAS.items()}
_LOOKED_AT: Final = 32
"""Keys at the beginning that most lists which cannot be sent as differences are told by."""

_VALUES: Final = {"bfloat16": "uint16"}
"""The dtype in a payload, of what is none of NumPy's."""


def digest_of(keys: Keys) -> str:
    """Return the XXH3-128 of C-contiguous ``keys`` as little-endian numbers, in hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(keys.data if keys.size else b"")


def encode_keys(keys: Keys) -> tuple[str, Array]:
    """Return the shortest coding for ``keys`` and the array that is sent: ``keys`` themselves if ``raw``.

    Args:
        keys: uint64 of shape (n,), C-contiguous, fewer than 2^32.
    """
    if _increase(keys[:_LOOKED_AT]) is None:
        return "raw", keys
    deltas = _increase(keys)
    if deltas is None:
        return "raw", keys
    largest = int(deltas.max())
    coding = next(name for name, most in _LARGEST.items() if largest <= most)
    dtype = _DELTAS[coding]
    first = keys.itemsize // dtype.itemsize
    coded = np.empty(first + deltas.size, dtype)
    coded[:first] = keys[:1].view(dtype)
    coded[first:] = deltas
    return coding, coded


def _increase(keys: Keys) -> Keys | None:
    """Return the differences of sorted ``keys``; None unless there are some, and all are below 2^32."""
    if keys.size < 2 or keys[-1] < keys[0]:
        return None
    deltas = keys[1:] - keys[:-1]
    # Where keys fall, the difference has wrapped around, and may be small all the same (from 2^64-1 to 0).
    # But then there is a large one, or the last key is below the first: differences below 2^32, of fewer
    # than 2^32 keys, come to less than 2^64 together, which is once around.
    return deltas if deltas.max() < 1 << 32 else None


def decode_keys(coding: str, count: int, array: Array) -> Keys:
    """Return the ``count`` keys, uint64, that ``array`` holds: itself if ``raw``.

    Raises:
        BadRequest: the array has another length or dtype than such a list, or a key would be 2^64 or more.
    """
    elements = _elements(coding, count)
    if array.size != elements:
        raise BadRequest(f"{count} keys as {coding} are {elements} elements", field="keys", value=array.size)
    dtype = DTYPES[_dtype(coding)]
    if array.dtype != dtype:
        raise BadRequest(f"keys as {coding} are {dtype.name}", field="keys", value=array.dtype)
    if coding == "raw":
        return array
    first = elements - (count - 1)
    start = int(array[:first].view(np.uint64)[0])
    keys = np.empty(count, np.uint64)
    keys[0] = 0
    np.cumsum(array[first:], dtype=np.uint64, out=keys[1:])  # below 2^60: there are no more than MAX_KEYS
    last = start + int(keys[-1])
    if last >= 1 << 64:
        raise BadRequest("a key is below 2^64", field="keys", value=last)
    keys += np.uint64(start)
    return keys


def _dtype(coding: str) -> str:
    return "uint64" if coding == "raw" else _DELTAS[coding].name


def _elements(coding: str, count: int) -> int:
    if coding == "raw":
        return count
    if count == 0:
        raise BadRequest("no keys are sent as raw", field="coding", value=coding)
    return 8 // _DELTAS[coding].itemsize + count - 1


# --- what a payload holds


def keys_part(rows: Rows) -> Part | None:
    """Return what a payload holds of the keys; None where they are known.

    Raises:
        BadRequest: no keys, and a coding that has at least one.
    """
    if rows.coding == "known":
        return None
    return Part(rows.name, _dtype(rows.coding), _elements(rows.coding, rows.keys))


def values_part(rows: Rows, dim: int) -> Part:
    """Return what a payload holds of the rows' numbers, ``dim`` in each."""
    return Part(rows.name, _VALUES.get(rows.values, rows.values), rows.keys * dim)


def parts_of_rows(rows: Sequence[Rows], dims: Sequence[int]) -> list[Part]:
    """Return what a push holds after the dense gradients: of each table its keys, unless known, and values.

    Raises:
        BadRequest: as ``keys_part``.
    """
    found: list[Part] = []
    for one, dim in zip(rows, dims, strict=True):
        keys = keys_part(one)
        found += [values_part(one, dim)] if keys is None else [keys, values_part(one, dim)]
    return found


def parts_of_wanted(wanted: Iterable[Rows]) -> list[Part]:
    """Return what a request holds of the keys of the rows that it asks for, at its end.

    Raises:
        BadRequest: as ``keys_part``.
    """
    return [part for part in map(keys_part, wanted) if part is not None]
