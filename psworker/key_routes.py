"""Which keys of a list are on which shard, remembered for the next request with the same list.

A list is usually pulled and then pushed, so the second time it costs its digest only.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.buffers import BufferPool
from protocol.compression.keys import digest_of, encode_keys, keys_part
from protocol.messages import Block
from protocol.tables import HASH_SLOTS, HASHED, Keys, Rows, hash_slots
from protocol.tensors import Part

__all__ = ["KeyRoutes", "KeyShare", "Route"]

Array = npt.NDArray[Any]

_FEW: Final = 8
"""Shards up to which picking the keys of one after the other is faster than sorting by shard."""


@dataclass(frozen=True, slots=True)
class KeyShare:
    """The keys of a list that are on one shard: number ``begin`` to ``stop`` of the list in a route's order.

    ``coded`` is what is sent of them; see ``protocol.compression.keys``.
    """

    shard: int
    begin: int
    stop: int
    digest: str
    coding: str
    coded: Array

    def rows(self, name: str, values: str) -> Rows:
        """Return the description of these rows of table ``name``, whose numbers travel as ``values``."""
        return Rows(name, self.stop - self.begin, self.digest, self.coding, values)

    def part(self, name: str) -> Part:
        """Return what a payload holds of the keys."""
        part = keys_part(self.rows(name, "float32"))
        assert part is not None  # noqa: S101 (they are not known)
        return part


@dataclass(frozen=True, slots=True)
class Route:
    """The way of a list of keys: one share for each block of the table, also of no keys.

    Attributes:
        shares: in the order of the table's blocks.
        order: places in the list, the keys of one share after those of the other; None: as they are.
        places: for each key of the list its place in that order; None: as they are.
    """

    shares: tuple[KeyShare, ...]
    order: npt.NDArray[np.intp] | None = None
    places: npt.NDArray[np.intp] | None = None

    def by_share(self, rows: Array, pool: BufferPool) -> Array:
        """Return ``rows`` (n, m), which are in the list's order, in the order of the shares."""
        if self.order is None:
            return rows
        sorted_rows = pool.empty(rows.size, rows.dtype).reshape(rows.shape)
        return np.take(rows, self.order, axis=0, out=sorted_rows, mode="clip")  # "raise" copies it all

    def in_place(self, rows: Array, out: Array) -> None:
        """Write ``rows`` (n, m), which are in the order of the shares, to ``out`` in the list's order."""
        if self.places is None:
            np.copyto(out, rows)
        else:
            np.take(rows, self.places, axis=0, out=out, mode="clip")

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        arrays = [share.coded for share in self.shares]
        if self.order is not None and self.places is not None:
            arrays += [self.order, self.places]
        return sum(array.nbytes for array in arrays)


class KeyRoutes:
    """Find the routes of lists of keys, and remember those used last.

    Args:
        retain: bytes of memory for them.
    """

    def __init__(self, retain: int) -> None:
        self._retain = retain
        self._routes: OrderedDict[tuple[str, tuple[Block, ...]], Route] = OrderedDict()
        self._bytes = 0

    def route(self, keys: Keys, blocks: tuple[Block, ...]) -> Route:
        """Return the route of ``keys`` (n,) to the ``blocks`` of a table.

        What is remembered holds no reference to ``keys``, which is the caller's to change later.
        """
        digest = digest_of(keys)
        known = self._routes.get((digest, blocks))
        if known is not None:
            self._routes.move_to_end((digest, blocks))
            return known
        if len(blocks) > 1:
            route = _split(keys, blocks)
        else:
            coding, coded = encode_keys(keys)
            route = Route((KeyShare(blocks[0].shard, 0, keys.size, digest, coding, coded),))
            if coded is keys:
                return route
        self._remember((digest, blocks), route)
        return route

    def _remember(self, key: tuple[str, tuple[Block, ...]], route: Route) -> None:
        self._routes[key] = route
        self._bytes += route.nbytes
        while self._bytes > self._retain:
            _, gone = self._routes.popitem(last=False)
            self._bytes -= gone.nbytes


def _split(keys: Keys, blocks: tuple[Block, ...]) -> Route:
    owners = _owners(keys, blocks)
    if len(blocks) <= _FEW:
        groups = [np.flatnonzero(owners == number) for number in range(len(blocks))]
        order = np.concatenate(groups)
        counts = [group.size for group in groups]
    else:
        order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=len(blocks)).tolist()
    places = np.empty(keys.size, np.intp)
    places[order] = np.arange(keys.size)
    grouped = np.take(keys, order)
    shares, begin = [], 0
    for block, count in zip(blocks, counts, strict=True):
        own = grouped[begin : begin + count]
        coding, coded = encode_keys(own)
        shares.append(KeyShare(block.shard, begin, begin + count, digest_of(own), coding, coded))
        begin += count
    return Route(tuple(shares), order, places)


def _owners(keys: Keys, blocks: tuple[Block, ...]) -> Array:
    """Return for each key the number of the block that it is in."""
    owner_of_slot = _owner_of_slot(blocks)
    owners = np.empty(keys.size, owner_of_slot.dtype)
    for begin in range(0, keys.size, HASHED):
        slots = hash_slots(keys[begin : begin + HASHED]).view(np.int64)
        np.take(owner_of_slot, slots, out=owners[begin : begin + HASHED], mode="clip")
    return owners


@lru_cache(64)
def _owner_of_slot(blocks: tuple[Block, ...]) -> Array:
    found = np.zeros(HASH_SLOTS, np.min_scalar_type(len(blocks)))
    for number, block in enumerate(blocks):
        found[block.start : block.stop] = number
    return found
