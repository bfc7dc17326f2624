"""How many numbered requests of a worker may be under way, and what tells two contents apart."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy.typing as npt

from protocol.messages import Finish, Lease, PushPull, Reset, Step
from protocol.tables import Rows
from protocol.tensors import Part

__all__ = ["UNDER_WAY", "WINDOW", "fingerprint_of_push", "fingerprint_of_reset", "fingerprint_of_work"]

UNDER_WAY: Final = 64
"""Numbered requests that a client has under way in one stream at most."""

WINDOW: Final = 2 * UNDER_WAY
"""Numbered requests of a worker that a server remembers in one stream."""

Array = npt.NDArray[Any]

_SAMPLE: Final = 1024
"""Bytes of each array's beginning and end that are looked at: all of a small one, little of a large one."""

_STEP_AND_WEIGHT: Final = struct.Struct("<qd")


def fingerprint_of_push(request: Step, arrays: Sequence[Array]) -> int:
    """Return 32 bits that tell the contents of two pushes apart, whatever their size at one cost.

    Keys count by their digests: a retry may have them in the payload where the first try named them.
    """
    found = zlib.crc32(_STEP_AND_WEIGHT.pack(request.step, request.weight))
    wanted: tuple[Rows, ...] = ()
    if type(request) is PushPull:
        found = zlib.crc32("/".join(("pull", *request.names)).encode(), found)
        wanted = request.wanted
    for one in request.rows:
        found = zlib.crc32(f"push/{one.name}/{one.keys}/{one.digest}/{one.values}".encode(), found)
    for one in wanted:
        found = zlib.crc32(f"pull/{one.name}/{one.keys}/{one.digest}/{one.values}".encode(), found)
    parts: Sequence[Part] = request.tensors
    if request.rows or wanted:
        parts, arrays = _without_keys(parts, arrays, request.rows, wanted)
    return _of_arrays(parts, arrays, found)


def _of_arrays(parts: Sequence[Part], arrays: Sequence[Array], found: int) -> int:
    for part, array in zip(parts, arrays, strict=True):
        found = zlib.crc32(part.name.encode(), found)
        if array.nbytes <= 2 * _SAMPLE:
            found = zlib.crc32(array.data, found)
        else:
            length = _SAMPLE // array.itemsize
            found = zlib.crc32(array[-length:].data, zlib.crc32(array[:length].data, found))
    return found


def _without_keys(
    parts: Sequence[Part], arrays: Sequence[Array], rows: Sequence[Rows], wanted: Sequence[Rows]
) -> tuple[Sequence[Part], Sequence[Array]]:
    """Return the gradients alone, dense and of rows, of what a payload holds."""
    place = len(parts) - sum(2 - (one.coding == "known") for one in rows)
    place -= sum(one.coding != "known" for one in wanted)
    kept = list(range(place))
    for one in rows:
        place += one.coding != "known"
        kept.append(place)
        place += 1
    return [parts[index] for index in kept], [arrays[index] for index in kept]


def fingerprint_of_reset(request: Reset, arrays: Sequence[Array]) -> int:
    """Return the same of a reset, which differs from that of every push."""
    return _of_arrays(request.tensors, arrays, zlib.crc32("/".join(("reset", *request.tables)).encode()))


def fingerprint_of_work(request: Lease | Finish) -> int:
    """Return 32 bits that tell two requests about chunks apart."""
    return zlib.crc32(repr(request).encode())
