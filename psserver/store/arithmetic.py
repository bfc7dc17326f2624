"""Passes over long arrays: in pieces that stay in the cache, on several threads where it pays.

A gradient is read from main memory once: each piece is checked, scaled and added while it is in the cache.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.tensors import PIECE, piece_is_finite, pieces
from psserver.optimizers import Update

__all__ = ["INLINE", "THREADS", "accumulate", "apply", "each_part", "scale"]

Array = npt.NDArray[Any]

INLINE: Final = 4 * 1024 * 1024
"""Updates of more bytes than this, about a millisecond of work, leave the event loop for threads."""

THREADS: Final = max(1, min(4, os.cpu_count() or 1))
"""More threads than this do not add faster: main memory is the limit."""


def apply(update: Update, values: Array, gradient: Array) -> bool:
    """Turn ``gradient`` into the new values; return whether they are all finite.

    Where they are not, ``gradient`` is spoilt; ``values`` is as before in any case.
    """
    if gradient.nbytes <= PIECE:
        update(values, gradient)
        return piece_is_finite(gradient)
    for piece in pieces(gradient):
        part = gradient[piece]
        update(values[piece], part)
        if not piece_is_finite(part):
            return False
    return True


def accumulate(total: Array, gradient: Array, out: Array, ratio: float) -> bool:
    """Make ``out``, which may be one of the two, ``total + ratio * gradient``; no other is changed."""
    for piece in pieces(gradient):
        part = gradient[piece]
        if ratio != 1.0:
            part = np.multiply(part, ratio)
        np.add(total[piece], part, out=out[piece])
    return True


def scale(array: Array, out: Array, factor: float) -> bool:
    """Make ``out``, which may be ``array``, ``factor * array``."""
    np.multiply(array, factor, out=out)
    return True


async def each_part(threads: Executor, work: Callable[..., bool], *arrays: Array) -> bool:
    """Run ``work`` on equal stretches of the ``arrays``, one a thread; return whether all were true."""
    size = arrays[0].size
    length = -(-size // THREADS)
    length += -length % 16  # threads do not share a cache line
    loop = asyncio.get_running_loop()
    parts = [
        loop.run_in_executor(threads, work, *(array[begin : begin + length] for array in arrays))
        for begin in range(0, size, length)
    ]
    return all(await asyncio.gather(*parts))
