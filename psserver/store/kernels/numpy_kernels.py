"""The kernels in NumPy: for where there is no compiler, and until it is done."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys, hash_keys
from psserver.optimizers import Hyper, Penalty, Rule
from psserver.store.index import LINE, Index, segments_of
from psserver.store.initial import Initial, values
from psserver.store.kernels import Groups
from psserver.store.records import Records, RowNumbers

__all__ = ["NumpyKernels"]

Array = npt.NDArray[Any]
Longs = npt.NDArray[np.int64]

_1: Final = np.uint64(1)
_LOW: Final = np.uint64(0xFFFFFFFF)
_PIECE: Final = 64 * 1024
"""Numbers that are worked on at a time, so that they stay in the cache."""


class NumpyKernels:
    """See ``Kernels``."""

    name = "numpy"
    removals = 100

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def effort(self, width: int) -> float:
        return 500.0 + 20.0 * width

    def find(self, index: Index, keys: Keys, rows: Longs) -> None:
        begins, masks, offsets = index.places(keys)
        rows[:] = -1
        pending = np.arange(keys.size)
        while pending.size:
            entries = (begins + offsets) << _1
            found = index.words[entries + _1] & _LOW
            here = (index.words[entries] == keys[pending]) & (found != 0)
            rows[pending[here]] = found[here].astype(np.int64) - 1
            on = (found != 0) & ~here
            pending, begins, masks, offsets = pending[on], begins[on], masks[on], offsets[on]
            offsets = (offsets + _1) & masks

    def group(self, index: Index, keys: Keys, groups: Groups) -> None:
        found: Longs = np.empty(keys.size, np.int64)
        self.find(index, keys, found)
        present = np.flatnonzero(found >= 0)
        groups.distinct = 0
        groups.which.fill(-1)
        self._add_groups(groups, present, found[present])
        missing = np.flatnonzero(found < 0)
        groups.absent = missing.size
        groups.missing[: missing.size] = missing

    def _add_groups(self, groups: Groups, positions: Longs, rows: Longs) -> None:
        distinct, firsts, which = np.unique(rows, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        places = np.empty(order.size, np.int64)
        places[order] = np.arange(order.size)
        begin, end = groups.distinct, groups.distinct + order.size
        groups.rows[begin:end] = distinct[order]
        groups.firsts[begin:end] = positions[firsts[order]]
        groups.which[positions] = begin + places[which]
        groups.distinct = end

    def enter(self, index: Index, keys: Keys, missing: Longs, groups: Groups, fresh: RowNumbers) -> None:
        wanted = keys[missing]
        found: Longs = np.empty(wanted.size, np.int64)
        self.find(index, wanted, found)  # an earlier part of the batch may have had them
        known = found >= 0
        if known.any():
            self._join(groups, missing[known], found[known])
            missing, wanted = missing[~known], wanted[~known]
        distinct, firsts, which = np.unique(wanted, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        rows = np.empty(order.size, np.int64)
        rows[order] = fresh[: order.size]
        counts = np.bincount(segments_of(hash_keys(distinct)).astype(np.int64), minlength=index.counts.size)
        for segment in np.flatnonzero(index.counts + counts > index.limits):
            index.make_room(int(segment), int(counts[segment]), _move)
        _insert(index.words, distinct, rows.astype(np.uint64) + _1, *index.places(distinct))
        index.counts += counts
        self._add_groups(groups, missing, rows[which])

    def _join(self, groups: Groups, positions: Longs, rows: Longs) -> None:
        order = np.argsort(groups.rows[: groups.distinct])
        place = np.searchsorted(groups.rows[: groups.distinct], rows, sorter=order)
        groups.which[positions] = order[place]

    def remove(self, index: Index, keys: Keys) -> None:
        begins, masks, offsets = index.places(keys)
        for key, begin, mask, offset in zip(keys, begins, masks, offsets, strict=True):
            _remove(index.words, int(key), int(begin), int(mask), int(offset))
        index.counts -= np.bincount(
            segments_of(hash_keys(keys)).astype(np.int64), minlength=index.counts.size
        )

    def initial(self, keys: Keys, dim: int, initial: Initial, out: Array) -> None:
        if not initial.kind:
            out.fill(0)
            return
        step = max(1, _PIECE // dim)
        for begin in range(0, keys.size, step):
            piece = slice(begin, begin + step)
            out[piece] = values(keys[piece], dim, initial)

    def gather(
        self, index: Index, records: Records, keys: Keys, rows: Longs, initial: Initial, out: Array
    ) -> None:
        self.find(index, keys, rows)
        missing = np.flatnonzero(rows < 0)
        dim = out.shape[1]
        if missing.size == rows.size:
            self.initial(keys, dim, initial, out)
            return
        # The whole records are taken: NumPy takes stretches of memory much faster than parts of them.
        step = max(1, _PIECE // records.width)
        for begin in range(0, rows.size, step):
            piece = slice(begin, begin + step)
            out[piece] = records[rows[piece]][:, :dim]
        if missing.size:
            begun = np.empty((missing.size, dim), out.dtype)
            self.initial(keys[missing], dim, initial, begun)
            out[missing] = begun

    def fold(self, gradient: Array, groups: Groups) -> None:
        which = groups.which
        repeats = np.flatnonzero(which >= 0)
        repeats = repeats[groups.firsts[which[repeats]] != repeats]
        with np.errstate(over="ignore", invalid="ignore"):
            np.add.at(gradient, groups.firsts[which[repeats]], gradient[repeats])

    def update(
        self,
        records: Records,
        groups: Groups,
        gradient: Array,
        backup: Array | None,
        h: Hyper,
        penalty: Penalty,
        out: Array,
    ) -> bool:
        step = max(1, _PIECE // records.width)
        for begin in range(0, groups.distinct, step):
            piece = slice(begin, min(begin + step, groups.distinct))
            firsts = groups.firsts[piece]
            old = records[groups.rows[piece]]
            read = None if backup is None else backup[firsts]
            with np.errstate(all="ignore"):
                if not self._update(old, gradient[firsts], read, h, penalty, out[piece]):
                    return False
        return True

    def _update(
        self, old: Array, g: Array, read: Array | None, h: Hyper, penalty: Penalty, out: Array
    ) -> bool:
        rule = self._rule
        dim = g.shape[1]
        p = old[:, :dim]
        finite = bool(np.isfinite(g).all())
        _penalise(p, g, penalty)
        a, b = p, p
        if rule.needs_backup:
            a = p.copy() if read is None else np.where(np.isnan(read), p, read)
        if rule.slots:
            a = old[:, dim : 2 * dim].copy()
        if len(rule.slots) > 1:
            b = old[:, 2 * dim : 3 * dim].copy()
        if rule.counts:
            t = old[:, -1:] + old.dtype.type(1)
            h = rule.at(t, h)
            out[:, -1:] = t
        made = rule.step(p, g, a, b, h)
        for place in range(1 + len(rule.slots)):
            out[:, place * dim : (place + 1) * dim] = made[place]
        return finite and bool(np.isfinite(out).all())

    def put(self, records: Records, rows: RowNumbers, fresh: Array) -> None:
        records[:][rows] = fresh

    def save(
        self,
        records: Records,
        rows: RowNumbers,
        first: int,
        end: int,
        saved: RowNumbers,
        old: Array,
        old_rows: int,
    ) -> int:
        rows = np.unique(rows[(rows >= first) & (rows < end)])
        rows = rows[saved[rows] == 0]
        total = old_rows + rows.size
        saved[rows] = np.arange(old_rows + 1, total + 1, dtype=np.uint32)
        old[: total * records.width].reshape(-1, records.width)[old_rows:] = records[rows]
        return total


def _penalise(p: Array, g: Array, penalty: Penalty) -> None:
    """Do to the gradient, a row at a time, what comes before the rule."""
    if penalty.clip_value != math.inf:
        np.clip(g, -penalty.clip_value, penalty.clip_value, out=g)
    if penalty.clip_norm != math.inf:
        norms = np.sqrt(np.square(g, dtype=np.float64).sum(axis=1, keepdims=True))
        g *= np.where(norms > penalty.clip_norm, penalty.clip_norm / norms, 1.0).astype(g.dtype)
    if penalty.l2:
        g += p * penalty.l2
    if penalty.l1:
        g += np.sign(p) * penalty.l1


def _move(index: Index, begin: int, length: int, new_begin: int, new_length: int) -> None:
    """Enter what is in one stretch of entries into another, which is cleared first."""
    old = index.words[2 * begin : 2 * (begin + length)].reshape(-1, 2)
    index.words[2 * new_begin : 2 * (new_begin + new_length)] = 0
    old = old[old[:, 1] != 0]
    keys = old[:, 0].copy()
    masks = np.full(keys.size, new_length - 1, np.uint64)
    offsets = hash_keys(keys) & masks & ~np.uint64(LINE - 1)
    _insert(index.words, keys, old[:, 1] & _LOW, np.full(keys.size, new_begin, np.uint64), masks, offsets)


def _insert(words: Keys, keys: Keys, rows_plus_1: Keys, begins: Keys, masks: Keys, offsets: Keys) -> None:
    """Enter distinct keys that are not there, into segments that have room."""
    while keys.size:
        entries = (begins + offsets) << _1
        free = words[entries + _1] == 0
        words[entries[free] + _1] = rows_plus_1[free]  # of several that want an entry, one is the last
        on = words[entries + _1] != rows_plus_1
        words[entries[~on]] = keys[~on]
        keys, rows_plus_1 = keys[on], rows_plus_1[on]
        begins, masks, offsets = begins[on], masks[on], offsets[on]
        offsets = (offsets + _1) & masks


def _remove(words: Keys, key: int, begin: int, mask: int, offset: int) -> None:
    """Empty the entry of ``key``; those after it that would no longer be found move up (Knuth 6.4 R)."""
    while int(words[2 * (begin + offset)]) != key or not words[2 * (begin + offset) + 1]:
        offset = (offset + 1) & mask
    hole = offset
    while True:
        offset = (offset + 1) & mask
        entry = 2 * (begin + offset)
        if not words[entry + 1]:
            break
        home = int(hash_keys(words[entry : entry + 1])[0]) & mask & ~(LINE - 1)
        if (offset - home) & mask >= (offset - hole) & mask:
            words[2 * (begin + hole) : 2 * (begin + hole) + 2] = words[entry : entry + 2]
            hole = offset
    words[2 * (begin + hole) : 2 * (begin + hole) + 2] = 0
