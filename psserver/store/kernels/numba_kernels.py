"""The kernels compiled by Numba. Nothing else imports this module before a table is made.

They run without the interpreter's lock. Memory is asked for ahead of its use (``prefetch``): rows in random
order are as many cache misses, and this way several of them are under way at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from protocol.tables import Keys
from psserver.optimizers import RULES, Hyper, Penalty, Rule
from psserver.store.index import LINE, SEGMENT_SHIFT, SEGMENTS, Index
from psserver.store.initial import GOLDEN, KINDS, Initial, normal, uniform
from psserver.store.kernels import Groups
from psserver.store.kernels.cache import use_cache
from psserver.store.records import Records, RowNumbers

__all__ = ["NumbaKernels"]

Array = npt.NDArray[Any]
Longs = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

_CACHED: Final = use_cache(numba.config)


def _kernel(function: F) -> F:
    """Compile what is called from Python."""
    compiled: F = numba.njit(cache=_CACHED, nogil=True, error_model="numpy", _nrt=False)(function)
    return compiled


def _inner(function: F) -> F:
    """Compile what is called by kernels."""
    compiled: F = numba.njit(error_model="numpy", _nrt=False)(function)
    return compiled


# Both without Numba's counting of references to arrays (``_nrt``): where it cannot be proved needless it is a
# few atomic additions for each key, which is as much as all the rest. So kernels make no arrays.
#
# Unsigned numbers all through: a signed one beside them would make float64 of both, and a signed index is
# checked for being negative.
_0: Final = np.uint64(0)
_1: Final = np.uint64(1)
_2: Final = np.uint64(2)
_3: Final = np.uint64(3)
_4: Final = np.uint64(4)
_5: Final = np.uint64(5)
_6: Final = np.uint64(6)
_7: Final = np.uint64(7)
_11: Final = np.uint64(11)
_27: Final = np.uint64(27)
_30: Final = np.uint64(30)
_31: Final = np.uint64(31)
_32: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)
_FACTOR_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2: Final = np.uint64(0x94D049BB133111EB)
_SHIFT: Final = np.uint64(SEGMENT_SHIFT)
_SEGMENT: Final = np.uint64(SEGMENTS - 1)
_LINE_STEP: Final = np.uint64(LINE)
_LINE_START: Final = np.uint64(2**64 - LINE)
_ZEROS: Final = KINDS["zeros"]
_UNIFORM: Final = KINDS["uniform"]
_AHEAD_KEYS: Final = 32
"""How many keys ahead of its use an entry is asked for; a power of two, for a cheap ring."""
_AHEAD_ROWS: Final = 16
_BLOCK: Final = 512
"""Keys whose rows are all found before the first of them is copied."""

_LATER: Final = -2
"""The row of a key that is not in its first line of the index, but may be in another."""

_CACHE_LINE: Final = 64

_normal = _inner(normal)
_uniform = _inner(uniform)


def _generate_prefetch(context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        number = ir.IntType(32)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, number(0), number(3), number(1)])  # to be read, all caches, data
        return context.get_dummy_value()

    return types.void(array, index), generate


def _generate_copy(context: Any, to: Any, place: Any, source: Any, begin: Any, count: Any) -> Any:
    """Copy ``count`` numbers of ``source`` from ``begin`` on to ``to`` from ``place`` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        origin = context.make_array(signature.args[2])(context, builder, arguments[2]).data
        itemsize = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        cgutils.raw_memcpy(
            builder,
            builder.gep(target, [arguments[1]]),
            builder.gep(origin, [arguments[3]]),
            arguments[4],
            itemsize,
        )
        return context.get_dummy_value()

    return types.void(to, place, source, begin, count), generate


_prefetch: Any = intrinsic(_generate_prefetch)
_copy: Any = intrinsic(_generate_copy)


def _step(number: int, p: Any, g: Any, a: Any, b: Any, h: Any) -> Any:
    """Stand for the step of rule ``number``, which has to be a constant."""


def _at(number: int, t: Any, h: Any) -> Any:
    """Stand for the ``at`` of rule ``number``, which has to be a constant."""


_STEPS: Final = tuple(_inner(rule.step) for rule in RULES)
_ATS: Final = tuple(_inner(rule.at) for rule in RULES)


def _choose_step(number: Any, p: Any, g: Any, a: Any, b: Any, h: Any) -> Any:
    if not isinstance(number, types.IntegerLiteral):
        return None
    step = _STEPS[number.literal_value]
    return lambda number, p, g, a, b, h: step(p, g, a, b, h)


def _choose_at(number: Any, t: Any, h: Any) -> Any:
    if not isinstance(number, types.IntegerLiteral):
        return None
    at = _ATS[number.literal_value]
    return lambda number, t, h: at(t, h)


overload(_step, prefer_literal=True, strict=False)(_choose_step)
overload(_at, prefer_literal=True, strict=False)(_choose_at)


@_inner
def _hash(key: Any) -> Any:
    x = key ^ (key >> _30)
    x *= _FACTOR_1
    x ^= x >> _27
    x *= _FACTOR_2
    return x ^ (x >> _31)


@_inner
def _look(words: Any, at: Any, key: Any) -> Any:
    """Look at four entries; return the second word of that of ``key``, 0 if none is, and the last one's.

    Without branches, for which of the four it is cannot be foreseen. Entries are filled from the first of
    the line on: if the last is empty, the search ends.
    """
    last = words[at + _7]
    found = (words[at + _1] if words[at] == key else _0) | (words[at + _3] if words[at + _2] == key else _0)
    found |= (words[at + _5] if words[at + _4] == key else _0) | (last if words[at + _6] == key else _0)
    return found, last


@_inner
def _look_on(words: Any, begins: Any, masks: Any, key: Any) -> Any:
    """Return the second word of the entry of ``key`` in the lines after its first, 0 if there is none."""
    hashed = _hash(key)
    segment = (hashed >> _SHIFT) & _SEGMENT
    mask = masks[segment]
    offset = hashed & mask & _LINE_START
    found, last = _0, _1
    while found == 0 and last != 0:
        offset = (offset + _LINE_STEP) & mask
        found, last = _look(words, (begins[segment] + offset) * _2, key)
    return found


@_inner
def _ask_for_entry(words: Any, begins: Any, masks: Any, key: Any) -> Any:
    """Return where in ``words`` the first line of ``key`` is, of which nothing is read yet."""
    hashed = _hash(key)
    segment = (hashed >> _SHIFT) & _SEGMENT
    at = (begins[segment] + (hashed & masks[segment] & _LINE_START)) * _2
    _prefetch(words, at)
    return at


@_inner
def _ask_for_second_line(words: Any, begins: Any, masks: Any, key: Any) -> None:
    hashed = _hash(key)
    segment = (hashed >> _SHIFT) & _SEGMENT
    mask = masks[segment]
    _prefetch(words, (begins[segment] + (((hashed & mask & _LINE_START) + _LINE_STEP) & mask)) * _2)


@_inner
def _find_in_first_lines(words: Any, begins: Any, masks: Any, keys: Any, rows: Any, lines: Any) -> None:
    """Find rows, but where the search goes on after a key's first line, put ``_LATER`` and ask for the next.

    That is a key in thirty, in a table of a million rows, and nothing waits for it here.
    """
    for i in range(min(_AHEAD_KEYS, keys.size)):
        lines[i] = _ask_for_entry(words, begins, masks, keys[i])
    for i in range(keys.size):
        at = lines[i % _AHEAD_KEYS]
        if i + _AHEAD_KEYS < keys.size:
            lines[i % _AHEAD_KEYS] = _ask_for_entry(words, begins, masks, keys[i + _AHEAD_KEYS])
        found, last = _look(words, at, keys[i])
        rows[i] = np.int64(found & _LOW) - 1
        if found == 0 and last != 0:
            rows[i] = _LATER
            _ask_for_second_line(words, begins, masks, keys[i])


@_inner
def _find_in_block(words: Any, begins: Any, masks: Any, keys: Any, rows: Any, lines: Any) -> None:
    _find_in_first_lines(words, begins, masks, keys, rows, lines)
    for i in range(keys.size):
        if rows[i] == _LATER:
            rows[i] = np.int64(_look_on(words, begins, masks, keys[i]) & _LOW) - 1


@_kernel
def _find(words: Any, begins: Any, masks: Any, keys: Any, rows: Any, lines: Any) -> None:
    for begin in range(0, keys.size, _BLOCK):
        end = min(begin + _BLOCK, keys.size)
        _find_in_block(words, begins, masks, keys[begin:end], rows[begin:end], lines)


@_inner
def _entry_of(words: Any, begin: Any, mask: Any, key: Any) -> Any:
    """Return where in ``words`` the entry of ``key`` is, or the empty one where it belongs."""
    offset = _hash(key) & mask & _LINE_START
    at = (begin + offset) * _2
    while words[at + _1] != 0 and words[at] != key:
        offset = (offset + _1) & mask
        at = (begin + offset) * _2
    return at


@_inner
def _join(words: Any, at: Any, position: int, which: Any, rows: Any, firsts: Any, distinct: int) -> int:
    """Put a key of the batch into the group of its row; return the number of groups."""
    word = words[at + _1]
    row = np.uint32((word & _LOW) - _1)
    hint = np.int64(word >> _32)
    # One condition, without a branch on its first half: whether an old hint is small is a coin's toss.
    if (hint < distinct) & (rows[min(hint, distinct)] == row):
        which[position] = hint
        return distinct
    words[at + _1] = (word & _LOW) | (np.uint64(distinct) << _32)
    rows[distinct] = row
    firsts[distinct] = position
    which[position] = distinct
    return distinct + 1


@_kernel
def _group(
    words: Any,
    begins: Any,
    masks: Any,
    keys: Any,
    which: Any,
    rows: Any,
    firsts: Any,
    missing: Any,
    lines: Any,
) -> tuple[int, int]:
    for i in range(min(_AHEAD_KEYS, keys.size)):
        lines[i] = _ask_for_entry(words, begins, masks, keys[i])
    distinct = 0
    absent = 0
    for i in range(keys.size):
        key = keys[i]
        at = lines[i % _AHEAD_KEYS]
        if i + _AHEAD_KEYS < keys.size:
            lines[i % _AHEAD_KEYS] = _ask_for_entry(words, begins, masks, keys[i + _AHEAD_KEYS])
        at += (
            (_2 if (words[at + _3] != 0) & (words[at + _2] == key) else _0)
            | (_4 if (words[at + _5] != 0) & (words[at + _4] == key) else _0)
            | (_6 if (words[at + _7] != 0) & (words[at + _6] == key) else _0)
        )
        if words[at] != key or words[at + _1] == 0:  # it is not in its first line
            segment = (_hash(key) >> _SHIFT) & _SEGMENT
            at = _entry_of(words, begins[segment], masks[segment], key)
            if words[at + _1] == 0:
                which[i] = -1
                missing[absent] = i
                absent += 1
                continue
        distinct = _join(words, at, i, which, rows, firsts, distinct)
    return distinct, absent


@_kernel
def _enter(
    words: Any,
    begins: Any,
    masks: Any,
    counts: Any,
    limits: Any,
    keys: Any,
    missing: Any,
    start: int,
    which: Any,
    rows: Any,
    firsts: Any,
    distinct: int,
    fresh: Any,
    made: int,
) -> tuple[int, int, int]:
    """Enter keys from ``start`` on; stop at one whose segment is full.

    Returns:
        Where that was, the number of groups, and of rows given.
    """
    for i in range(start, missing.size):
        position = missing[i]
        key = keys[position]
        segment = (_hash(key) >> _SHIFT) & _SEGMENT
        at = _entry_of(words, begins[segment], masks[segment], key)
        if words[at + _1] == 0:
            if counts[segment] >= limits[segment]:
                return i, distinct, made
            words[at] = key
            words[at + _1] = np.uint64(fresh[made]) + _1 | (_LOW << _32)  # no hint
            counts[segment] += 1
            made += 1
        distinct = _join(words, at, position, which, rows, firsts, distinct)
    return missing.size, distinct, made


@_kernel
def _move(words: Any, begin: Any, length: Any, new_begin: Any, new_length: Any) -> None:
    words[new_begin * _2 : (new_begin + new_length) * _2] = 0
    mask = new_length - _1
    for old in range(begin * _2, (begin + length) * _2, _2):
        if words[old + _1] != 0:
            at = _entry_of(words, new_begin, mask, words[old])
            words[at] = words[old]
            words[at + _1] = words[old + _1]


def _move_entries(index: Index, begin: int, length: int, new_begin: int, new_length: int) -> None:
    _move(index.words, np.uint64(begin), np.uint64(length), np.uint64(new_begin), np.uint64(new_length))


@_kernel
def _remove(words: Any, begins: Any, masks: Any, counts: Any, keys: Any) -> None:
    for key in keys:
        segment = (_hash(key) >> _SHIFT) & _SEGMENT
        begin, mask = begins[segment], masks[segment]
        hole = _entry_of(words, begin, mask, key) // _2 - begin
        offset = hole
        while True:
            offset = (offset + _1) & mask
            at = (begin + offset) * _2
            if words[at + _1] == 0:
                break
            home = _hash(words[at]) & mask & _LINE_START
            if (offset - home) & mask >= (offset - hole) & mask:
                words[(begin + hole) * _2] = words[at]
                words[(begin + hole) * _2 + _1] = words[at + _1]
                hole = offset
        words[(begin + hole) * _2] = _0
        words[(begin + hole) * _2 + _1] = _0
        counts[segment] -= 1


@_inner
def _begin_row(key: Any, kind: int, scale: float, seed: Any, out: Any, place: Any, dim: Any) -> None:
    """Write what the row of ``key`` begins with to ``out`` from ``place`` on."""
    state = _hash(key ^ seed)
    for j in range(dim):
        if kind == _ZEROS:
            out[place + j] = 0
            continue
        random = _hash(state + (j + _1) * GOLDEN)
        if kind == _UNIFORM:
            out[place + j] = _uniform(np.float64(random >> _11), scale)
        else:
            mantissa, exponent = math.frexp((np.float64(random >> _32) + 1.0) * 2.0**-32)
            out[place + j] = _normal(mantissa, exponent, np.float64(random & _LOW), scale)


@_kernel
def _begin_rows(keys: Any, kind: int, scale: float, seed: Any, out: Any, dim: int) -> None:
    for i in range(keys.size):
        _begin_row(keys[i], kind, scale, seed, out, np.uint64(i * dim), np.uint64(dim))


@_inner
def _line_of(flat: Any) -> Any:
    """Return how many numbers are in a cache line; it takes a division, and so is not asked for each row."""
    return np.uint64(_CACHE_LINE // flat.itemsize)


@_inner
def _ask_for_row(flat: Any, row: Any, width: Any, count: Any, line: Any) -> None:
    at = np.uint64(row) * width
    end = at + count
    while at < end:  # with a ``range`` of steps, copying a row took half as long again among ten million
        _prefetch(flat, at)
        at += line


@_inner
def _copy_rows(flat: Any, width: Any, rows: Any, out: Any, first: Any, dim: Any) -> None:
    """Copy what there is of ``rows`` to ``out``, whose row ``first`` is the first of them."""
    line = _line_of(flat)
    for i in range(min(_AHEAD_ROWS, rows.size)):
        if rows[i] >= 0:
            _ask_for_row(flat, rows[i], width, dim, line)
    for i in range(rows.size):
        if i + _AHEAD_ROWS < rows.size and rows[i + _AHEAD_ROWS] >= 0:
            _ask_for_row(flat, rows[i + _AHEAD_ROWS], width, dim, line)
        if rows[i] >= 0:
            _copy(out, (np.uint64(first) + np.uint64(i)) * dim, flat, np.uint64(rows[i]) * width, dim)


@_kernel
def _gather(
    words: Any,
    begins: Any,
    masks: Any,
    keys: Any,
    rows: Any,
    flat: Any,
    width: Any,
    kind: int,
    scale: float,
    seed: Any,
    out: Any,
    dim: Any,
    lines: Any,
) -> None:
    """Find the rows of a block of keys, then copy them.

    To do both for key after key takes a sixth longer in a table of twenty million rows.
    """
    for begin in range(0, keys.size, _BLOCK):
        end = min(begin + _BLOCK, keys.size)
        _find_in_block(words, begins, masks, keys[begin:end], rows[begin:end], lines)
        _copy_rows(flat, width, rows[begin:end], out, begin, dim)
        for i in range(begin, end):
            if rows[i] < 0:
                _begin_row(keys[i], kind, scale, seed, out, np.uint64(i) * dim, dim)


@_kernel
def _put(flat: Any, width: Any, rows: Any, fresh: Any) -> None:
    line = _line_of(flat)
    for i in range(rows.size):
        if i + _AHEAD_ROWS < rows.size:
            _ask_for_row(flat, rows[i + _AHEAD_ROWS], width, width, line)
        _copy(flat, np.uint64(rows[i]) * width, fresh, np.uint64(i) * width, width)


@_kernel
def _save(flat: Any, width: Any, rows: Any, first: int, end: int, saved: Any, old: Any, old_rows: int) -> int:
    for row in rows:
        if first <= row < end and saved[row] == 0:
            _copy(old, np.uint64(old_rows) * width, flat, np.uint64(row) * width, width)
            old_rows += 1
            saved[row] = old_rows
    return old_rows


@_kernel
def _fold(gradient: Any, dim: Any, which: Any, firsts: Any) -> None:
    for i in range(which.size):
        if which[i] >= 0 and firsts[which[i]] != i:
            place = np.uint64(firsts[which[i]]) * dim
            repeat = np.uint64(i) * dim
            for j in range(dim):
                gradient[place + j] += gradient[repeat + j]


@_inner
def _penalise(flat: Any, base: Any, gradient: Any, place: Any, dim: Any, penalty: Any) -> bool:
    """Do to the gradient of a row what comes before the rule; return whether it was finite."""
    clip_value, clip_norm, l1, l2 = penalty
    finite = True
    squares = 0.0
    for j in range(dim):
        g = gradient[place + j]
        finite &= np.isfinite(g)
        g = min(max(g, -clip_value), clip_value)
        squares += np.float64(g) * np.float64(g)
        gradient[place + j] = g
    norm = math.sqrt(squares)
    if norm > clip_norm:
        factor = gradient.dtype.type(np.float64(clip_norm) / norm)
        for j in range(dim):
            gradient[place + j] *= factor
    for j in range(dim):
        p = flat[base + j]
        gradient[place + j] = (gradient[place + j] + p * l2) + np.sign(p) * l1
    return finite


@cache
def _update_of(number: int, slots: int, counts: bool, needs_backup: bool) -> Any:
    """Return the kernel of a rule. What is given here is constant in it; what does not apply is not there."""

    @_kernel
    def update(
        flat: Any,
        width: Any,
        rows: Any,
        firsts: Any,
        gradient: Any,
        dim: Any,
        backup: Any,
        h: Any,
        penalised: bool,
        penalty: Any,
        out: Any,
    ) -> bool:
        finite = True
        line = _line_of(flat)
        one = gradient.dtype.type(1)
        for i in range(rows.size):
            if i + _AHEAD_ROWS < rows.size:
                _ask_for_row(flat, rows[i + _AHEAD_ROWS], width, width, line)
            base = np.uint64(rows[i]) * width
            place = np.uint64(firsts[i]) * dim
            to = np.uint64(i) * width
            if penalised:
                finite &= _penalise(flat, base, gradient, place, dim, penalty)
            now = h
            if counts:
                t = flat[base + width - _1] + one
                out[to + width - _1] = t
                now = _at(number, t, h)
            for j in range(dim):
                p = flat[base + j]
                g = gradient[place + j]
                finite &= np.isfinite(g)
                a = b = p
                if needs_backup and backup.size and not np.isnan(backup[place + j]):
                    a = backup[place + j]
                if slots > 0:
                    a = flat[base + dim + j]
                if slots > 1:
                    b = flat[base + dim + dim + j]
                p, a, b = _step(number, p, g, a, b, now)
                finite &= np.isfinite(p)
                out[to + j] = p
                if slots > 0:
                    finite &= np.isfinite(a)
                    out[to + dim + j] = a
                if slots > 1:
                    finite &= np.isfinite(b)
                    out[to + dim + dim + j] = b
        return finite

    return update


def _ring() -> Keys:
    """Return a place for the first lines of keys that are soon to be looked at."""
    return np.empty(_AHEAD_KEYS, np.uint64)


class NumbaKernels:
    """See ``Kernels``."""

    name = "numba"
    removals = 4096

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._update = _update_of(rule.number, len(rule.slots), rule.counts, rule.needs_backup)

    def effort(self, width: int) -> float:
        return 60.0 + 2.0 * width

    def find(self, index: Index, keys: Keys, rows: Longs) -> None:
        _find(index.words, index.begins, index.masks, keys, rows, _ring())

    def group(self, index: Index, keys: Keys, groups: Groups) -> None:
        groups.distinct, groups.absent = _group(
            index.words,
            index.begins,
            index.masks,
            keys,
            groups.which,
            groups.rows,
            groups.firsts,
            groups.missing,
            _ring(),
        )

    def enter(self, index: Index, keys: Keys, missing: Longs, groups: Groups, fresh: RowNumbers) -> None:
        start = made = 0
        while True:
            start, groups.distinct, made = _enter(
                index.words,
                index.begins,
                index.masks,
                index.counts,
                index.limits,
                keys,
                missing,
                start,
                groups.which,
                groups.rows,
                groups.firsts,
                groups.distinct,
                fresh,
                made,
            )
            if start == missing.size:
                return
            index.make_room(index.segment_of(keys[missing[start]]), 1, _move_entries)

    def remove(self, index: Index, keys: Keys) -> None:
        _remove(index.words, index.begins, index.masks, index.counts, keys)

    def initial(self, keys: Keys, dim: int, initial: Initial, out: Array) -> None:
        _begin_rows(keys, *initial, out.reshape(-1), dim)

    def gather(
        self, index: Index, records: Records, keys: Keys, rows: Longs, initial: Initial, out: Array
    ) -> None:
        width, dim = np.uint64(records.width), np.uint64(out.shape[1])
        _gather(
            index.words,
            index.begins,
            index.masks,
            keys,
            rows,
            records.flat,
            width,
            *initial,
            out.reshape(-1),
            dim,
            _ring(),
        )

    def fold(self, gradient: Array, groups: Groups) -> None:
        _fold(gradient.reshape(-1), np.uint64(gradient.shape[1]), groups.which, groups.firsts)

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
        number = gradient.dtype.type
        finite: bool = self._update(
            records.flat,
            np.uint64(records.width),
            groups.rows[: groups.distinct],
            groups.firsts[: groups.distinct],
            gradient.reshape(-1),
            np.uint64(gradient.shape[1]),
            (gradient[:0] if backup is None else backup).reshape(-1),
            tuple(map(number, h)),
            penalty != (math.inf, math.inf, 0.0, 0.0),
            tuple(map(number, penalty)),
            out.reshape(-1),
        )
        return finite

    def put(self, records: Records, rows: RowNumbers, fresh: Array) -> None:
        _put(records.flat, np.uint64(records.width), rows, fresh.reshape(-1))

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
        number: int = _save(records.flat, np.uint64(records.width), rows, first, end, saved, old, old_rows)
        return number
