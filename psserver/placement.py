"""Which shard holds which elements of a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from protocol.messages import Block, TensorInfo
from protocol.tensors import DTYPES

__all__ = ["load_of", "place"]

_SMALLEST: Final = 64 * 1024
"""Bytes below which a tensor is not cut further: another request would cost more than it carries."""

_ALIGN: Final = 16
"""Blocks begin at multiples of this many elements, so at cache lines for 4-byte numbers."""


def place(elements: int, itemsize: int, load: Sequence[int]) -> tuple[Block, ...]:
    """Cut a tensor into at most one block a shard, equal in size, on the shards with the least bytes.

    Args:
        elements: the tensor's number of elements.
        itemsize: bytes of one element.
        load: bytes that each shard holds already.
    """
    count = max(1, min(len(load), elements * itemsize // _SMALLEST))
    lightest = sorted(sorted(range(len(load)), key=lambda shard: (load[shard], shard))[:count])
    length = -(-elements // count)
    length += -length % _ALIGN
    bounds = [min(elements, i * length) for i in range(count + 1)]
    return tuple(
        Block(shard, start, stop)
        for shard, start, stop in zip(lightest, bounds[:-1], bounds[1:], strict=True)
        if stop > start
    )


def load_of(infos: Iterable[TensorInfo]) -> Counter[int]:
    """Return the bytes of these tensors on each shard."""
    load: Counter[int] = Counter()
    for info in infos:
        for block in info.blocks:
            load[block.shard] += (block.stop - block.start) * DTYPES[info.spec.dtype].itemsize
    return load
