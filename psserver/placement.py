"""Which shard holds which elements of a tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from protocol.messages import Block, Spec, TensorInfo
from protocol.optimizers import optimizer_from_spec
from protocol.tables import HASH_SLOTS
from protocol.tensors import DTYPES
from psserver.optimizers import penalty_of

__all__ = ["load_of", "place", "place_tensor"]

_SMALLEST: Final = 64 * 1024
"""Bytes below which a tensor is not cut further: another request would cost more than it carries."""

_ALIGN: Final = 16
"""Blocks begin at multiples of this many elements, so at cache lines for 4-byte numbers."""


def place_tensor(spec: Spec, load: Sequence[int]) -> tuple[Block, ...]:
    """Say where the blocks of a tensor, or of a table's slots of hashes, go.

    Nobody knows how many rows a table will have, so every shard has its share of the slots. A tensor whose
    gradient is clipped by its norm is not cut, for the norm is that of all of it.

    Args:
        spec: what it is.
        load: bytes that each shard holds already.
    """
    if spec.table is not None:
        bounds = [HASH_SLOTS * shard // len(load) for shard in range(len(load) + 1)]
        return tuple(Block(shard, start, stop) for shard, (start, stop) in enumerate(pairwise(bounds)))
    elements, itemsize = math.prod(spec.shape), DTYPES[spec.dtype].itemsize
    if penalty_of(optimizer_from_spec(spec.optimizer)).clip_norm < math.inf:
        lightest = min(range(len(load)), key=lambda shard: load[shard])
        return (Block(lightest, 0, elements),)
    return place(elements, itemsize, load)


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
    """Return the bytes of these tensors on each shard, without the rows of tables: nobody knows them here."""
    load: Counter[int] = Counter()
    for info in infos:
        for block in info.blocks if info.spec.table is None else ():
            load[block.shard] += (block.stop - block.start) * DTYPES[info.spec.dtype].itemsize
    return load
