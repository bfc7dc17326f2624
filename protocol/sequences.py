"""How many numbered requests of a worker may be under way, and what tells two contents apart."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy.typing as npt

from protocol.messages import Finish, Lease, PushPull, Step

__all__ = ["UNDER_WAY", "WINDOW", "fingerprint_of_push", "fingerprint_of_work"]

UNDER_WAY: Final = 64
"""Numbered requests that a client has under way in one stream at most."""

WINDOW: Final = 2 * UNDER_WAY
"""Numbered requests of a worker that a server remembers in one stream."""

_SAMPLE: Final = 1024
"""Bytes of each array's beginning and end that are looked at: all of a small one, little of a large one."""

_STEP_AND_WEIGHT: Final = struct.Struct("<qd")


def fingerprint_of_push(request: Step, arrays: Sequence[npt.NDArray[Any]]) -> int:
    """Return 32 bits that tell the contents of two pushes apart, whatever their size at one cost."""
    found = zlib.crc32(_STEP_AND_WEIGHT.pack(request.step, request.weight))
    if type(request) is PushPull:
        found = zlib.crc32("/".join(("pull", *request.names)).encode(), found)
    for part, array in zip(request.tensors, arrays, strict=True):
        found = zlib.crc32(part.name.encode(), found)
        if array.nbytes <= 2 * _SAMPLE:
            found = zlib.crc32(array.data, found)
        else:
            length = _SAMPLE // array.itemsize
            found = zlib.crc32(array[-length:].data, zlib.crc32(array[:length].data, found))
    return found


def fingerprint_of_work(request: Lease | Finish) -> int:
    """Return 32 bits that tell two requests about chunks apart."""
    return zlib.crc32(repr(request).encode())
