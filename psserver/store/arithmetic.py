"""Passes over long arrays: in pieces that stay in the cache, on several threads where it pays.

A gradient is read from main memory once: each piece is clipped, applied and checked while it is in the cache.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.tensors import PIECE, piece_is_finite, pieces
from psserver.optimizers import Hyper, Penalty, Rule

__all__ = [
    "INLINE",
    "THREADS",
    "Update",
    "accumulate",
    "apply",
    "each_part",
    "of_parts",
    "scale",
    "squares",
    "stretches",
]

Array = npt.NDArray[Any]
T = TypeVar("T")

INLINE: Final = 4 * 1024 * 1024
"""Updates of more bytes than this, about a millisecond of work, leave the event loop for threads."""

THREADS: Final = max(1, min(4, os.cpu_count() or 1))
"""More threads than this do not add faster: main memory is the limit."""


class Update(NamedTuple):
    """All that an update takes beside the arrays.

    Attributes:
        rule: the optimizer's arithmetic.
        h: its numbers.
        penalty: what is done to the gradient first; None: nothing.
        factor: what has come of its ``clip_norm``; the clipped gradient is multiplied by it.
    """

    rule: Rule
    h: Hyper
    penalty: Penalty | None = None
    factor: float = 1.0


def apply(update: Update, values: Array, gradient: Array, *more: Array) -> bool:
    """Turn ``gradient`` into the new values; return whether it was finite, and all is that comes of it.

    Where not, ``gradient`` is spoilt; ``values`` is as before in any case.

    Args:
        update: what is to be done.
        values: 1-d, as the following are; all have the same length and dtype.
        gradient: spoilt.
        more: what the worker had read, if the rule takes that; else the slots as they are, and after them
            memory for the new ones.
    """
    if gradient.nbytes <= PIECE:
        return _apply_to_piece(update, values, gradient, more)
    for piece in pieces(gradient):
        if not _apply_to_piece(update, values[piece], gradient[piece], [one[piece] for one in more]):
            return False
    return True


def _apply_to_piece(update: Update, values: Array, gradient: Array, more: Sequence[Array]) -> bool:
    rule, h, penalty, factor = update
    if penalty is not None and not _penalise(penalty, factor, values, gradient):
        return False
    slots = _copies(more) if rule.slots else more or (values,)
    fresh, _, _ = rule.step(values, gradient, slots[0], slots[-1], h)
    if fresh is not gradient:
        gradient[...] = fresh
    if not piece_is_finite(gradient):
        return False
    return not rule.slots or all(piece_is_finite(slot) for slot in slots)


def _copies(more: Sequence[Array]) -> Sequence[Array]:
    """Return the memory for new slots, with the old ones copied to it."""
    count = len(more) // 2
    for old, new in zip(more[:count], more[count:], strict=True):
        new[...] = old
    return more[count:]


def _penalise(penalty: Penalty, factor: float, values: Array, gradient: Array) -> bool:
    """Clip a gradient and add the penalties' to it, in place; return False if that would hide infinity."""
    clip, _, l1, l2 = penalty
    if clip != math.inf:
        if not piece_is_finite(gradient):
            return False
        np.clip(gradient, -clip, clip, out=gradient)
    if factor != 1.0:
        gradient *= factor
    if l2:
        gradient += values * l2
    if l1:
        gradient += np.sign(values) * l1
    return True


def squares(gradient: Array, clip: float) -> float:
    """Return the sum of the squares of a gradient with its numbers kept within plus and minus ``clip``."""
    total = 0.0
    for piece in pieces(gradient):
        part = gradient[piece]
        if clip != math.inf:
            part = np.clip(part, -clip, clip)
        total += _squares_of_piece(part)
    return total


def _squares_of_piece(part: Array) -> float:
    total = float(part.dot(part))
    if math.isfinite(total) and part.itemsize > 2:
        return total
    wide = part.astype(np.float64)  # the squares may be too large for the dtype
    return float(wide.dot(wide))


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


def stretches(length: int) -> list[tuple[int, int]]:
    """Return where the equal stretches of a range begin and end, one for each thread."""
    bounds = [length * part // THREADS for part in range(THREADS + 1)]
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]


async def each_part(threads: Executor, work: Callable[..., bool], *arrays: Array) -> bool:
    """Run ``work`` on equal stretches of the ``arrays``, one a thread; return whether all were true."""
    return all(await of_parts(threads, work, *arrays))


async def of_parts(threads: Executor, work: Callable[..., T], *arrays: Array) -> list[T]:
    """Run ``work`` on equal stretches of the ``arrays``, one a thread; return what it returns of each."""
    size = arrays[0].size
    length = -(-size // THREADS)
    length += -length % 16  # threads do not share a cache line
    loop = asyncio.get_running_loop()
    parts = [
        loop.run_in_executor(threads, work, *(array[begin : begin + length] for array in arrays))
        for begin in range(0, size, length)
    ]
    return await asyncio.gather(*parts)
