"""One shard's block of a sparse table: rows by key, made when they are first pushed to.

An update is made beside the rows, checked, and then copied into them: one that is refused changes nothing,
and what is copied is what a log needs. New keys get their rows while the update is made; they hold what a
pull of a key without a row gives, so nobody can tell the difference.

The asyncio lock of the block orders updates. The guard, a lock of threads, keeps those who read rows by key
from those who write rows or move entries; it is never held for more than a few thousand rows, except by a
gather, which sees each update as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.buffers import BufferPool
from protocol.errors import BadRequest, NotFinite
from protocol.messages import Spec
from protocol.optimizers import optimizer_from_spec
from protocol.tables import HASH_SLOTS, HASHED, Keys, Table, hash_slots
from protocol.tensors import DTYPES, all_finite
from psserver.optimizers import Hyper, Moment, Penalty, hyper_of, penalty_of, rule_of
from psserver.store.admission import Admission
from psserver.store.arithmetic import stretches
from psserver.store.dense import plain_spec
from psserver.store.expiry import Expiry
from psserver.store.index import Index
from psserver.store.initial import initial_of
from psserver.store.kernels import Groups, Kernels
from psserver.store.kernels.numpy_kernels import NumpyKernels
from psserver.store.records import Records, RowNumbers
from psserver.store.snapshot import TableSnapshot

__all__ = ["LONG", "RowsGradient", "RowsVersion", "SparseBlock", "check_table"]

Array = npt.NDArray[Any]
Longs = npt.NDArray[np.int64]

_ENTERED: Final = 2048
"""New keys that get their rows while the guard is held once: about a millisecond."""

_PUT: Final = 16 * 1024

LONG: Final = 1e6
"""Nanoseconds of work from which on it is done in threads."""

_RETAINED: Final = 64 * 1024 * 1024


class RowsGradient(NamedTuple):
    """Gradients of rows.

    Attributes:
        keys: (n,) uint64, in any order; the gradients of one that is repeated are added up.
        values: (n, dim) of the table's dtype, C-contiguous; they may be spoilt.
    """

    keys: Keys
    values: Array


class RowsVersion(NamedTuple):
    """Rows as they are after an update.

    Attributes:
        keys: (u,) uint64, distinct.
        records: (u, width): values, the optimizer's slots, and the count of updates where it needs that.
        rows: their numbers in the table.
        now: when the update came.
    """

    keys: Keys
    records: Array
    rows: RowNumbers
    now: float


def check_table(spec: Spec) -> None:
    """Raise ``BadRequest`` if no sparse table can be made of ``spec``."""
    optimizer_from_spec(spec.optimizer)
    if spec.table is None:
        raise BadRequest("a sparse table says the width of its rows", field="table", value=None)
    if spec.dtype not in ("float32", "float64"):
        raise BadRequest("rows of tables are float32 or float64", field="dtype", value=spec.dtype)
    if spec.shape != (HASH_SLOTS,):
        raise BadRequest(f"the shape of a table is ({HASH_SLOTS},)", field="shape", value=spec.shape)


@dataclass(frozen=True, slots=True)
class _Update:
    """An update whose rows are known, and which is computed in stretches of them, in any order."""

    kernels: Kernels
    records: Records
    groups: Groups
    found: int  # groups whose rows were there before
    gradient: RowsGradient
    backup: Array | None
    h: Hyper
    penalty: Penalty
    fresh: Array
    now: float

    def run(self, begin: int, end: int) -> bool:
        """Compute the rows from ``begin`` to ``end``; return whether all of it is finite."""
        part, values, out = self.groups.part(begin, end), self.gradient.values, self.fresh[begin:end]
        return self.kernels.update(self.records, part, values, self.backup, self.h, self.penalty, out)

    def version(self) -> RowsVersion:
        """Return what it comes to."""
        groups = self.groups
        keys = self.gradient.keys[groups.firsts[: groups.distinct]]
        return RowsVersion(keys, self.fresh, groups.rows[: groups.distinct], self.now)


class SparseBlock:
    """The rows of a table whose keys have the hash slots ``start`` to ``stop``.

    Args:
        kernels: how it is computed; by default with NumPy.

    Attributes:
        name: the table's name.
        spec: dtype, dimensions and optimizer of the table.
        plain_spec: the same as plain data.
        version: updates applied so far.
        attempt: the attempt at creating the table that made this block.
        start, stop: the hash slots of its keys.
        lock: held by whoever changes rows in threads, or in more than one step.
        dim: values in a row.
        width: numbers in a record: values, slots, and the count where the optimizer needs it.
        expired: rows that were dropped for being old or too many.
        rule: the arithmetic of its optimizer.
        kernels: may be replaced at any time by others for the same optimizer.
    """

    def __init__(
        self,
        name: str,
        spec: Spec,
        attempt: int,
        start: int = 0,
        stop: int = HASH_SLOTS,
        kernels: Kernels | None = None,
    ) -> None:
        check_table(spec)
        assert spec.table is not None  # noqa: S101 - just checked
        self.name = name
        self.spec = spec
        self.plain_spec = plain_spec(spec)
        self.version = 0
        self.expired = 0
        self.attempt = attempt
        self.start = start
        self.stop = stop
        self.lock = asyncio.Lock()
        self._optimizer = optimizer_from_spec(spec.optimizer)
        self.rule = rule_of(self._optimizer)
        self._penalty = penalty_of(self._optimizer)
        self._initial = initial_of(spec.table)
        self._first_h = hyper_of(self._optimizer, Moment())
        self.dim = spec.table.dim
        self.width = self.dim * (1 + len(self.rule.slots)) + self.rule.counts
        self._dtype = DTYPES[spec.dtype]
        self.kernels: Kernels = kernels or NumpyKernels(self.rule)
        self._guard = threading.Lock()
        self._memory = BufferPool(_RETAINED)
        self._begin_empty(spec.table)

    def _begin_empty(self, table: Table) -> None:
        self._index = Index()
        self._records = Records(self.width, self._dtype)
        self._snapshots: list[TableSnapshot] = []
        self._admission: Admission | None = None
        if table.admit_after > 1:
            self._admission = Admission(table.admit_after)
        self._expiry: Expiry | None = None
        if table.expire_after or table.capacity:
            share = table.capacity * (self.stop - self.start) / HASH_SLOTS
            self._expiry = Expiry(self._records, table.expire_after, math.ceil(share))

    @property
    def rows(self) -> int:
        """Rows that there are."""
        return self._records.rows

    @property
    def nbytes(self) -> int:
        """Bytes of memory in rows, index, and what admission and expiry need."""
        total = self._records.nbytes + self._index.nbytes
        if self._admission is not None:
            total += self._admission.nbytes
        if self._expiry is not None:
            total += self._expiry.nbytes
        return total

    @property
    def drops_rows(self) -> bool:
        """Whether rows expire, or are dropped where there are too many."""
        return self._expiry is not None

    @property
    def admitted(self) -> int:
        """Keys that got rows after they had to be seen more than once for that."""
        return 0 if self._admission is None else self._admission.admitted

    @property
    def refused(self) -> int:
        """Gradients that were dropped, because their keys had not been seen often enough."""
        return 0 if self._admission is None else self._admission.refused

    def effort(self, keys: int) -> float:
        """Return about how many nanoseconds it takes to read or update so many rows."""
        return keys * self.kernels.effort(self.width)

    def is_long(self, keys: int) -> bool:
        """Return whether reading or updating so many rows takes more than about a millisecond."""
        return self.effort(keys) > LONG

    def check_keys(self, keys: Keys) -> None:
        """Raise ``BadRequest`` if a key is not of this block."""
        if self.start == 0 and self.stop == HASH_SLOTS:
            return
        for begin in range(0, keys.size, HASHED):
            piece = keys[begin : begin + HASHED]
            slots = hash_slots(piece)
            strays = (slots < self.start) | (slots >= self.stop)
            if strays.any():
                raise BadRequest(
                    f"the key's slot is not among those of this shard, {self.start} to {self.stop}",
                    field="keys",
                    value=int(piece[strays.argmax()]),
                )

    async def check(self, gradient: RowsGradient, threads: Executor) -> None:
        """Raise ``NotFinite`` if ``gradient`` has NaN or infinity."""
        values = gradient.values.reshape(-1)
        if self.is_long(gradient.keys.size):
            finite = await asyncio.get_running_loop().run_in_executor(threads, all_finite, values)
        else:
            finite = all_finite(values)
        if not finite:
            raise self._not_finite()

    def next_version(
        self, gradient: RowsGradient, moment: Moment, backup: Array | None = None
    ) -> RowsVersion:
        """Return the rows after ``gradient``. Nothing that anybody can see has changed.

        Args:
            gradient: of some rows; its values are spoilt.
            moment: the step that it is of, how stale it is, and when it comes.
            backup: (n, dim), the values that the worker had read; NaN where it had read none.

        Raises:
            NotFinite: the gradient is not finite, or its result would not be.
        """
        update = self._begin(gradient, moment, backup)
        if not update.run(0, update.groups.distinct):
            self._undo(update)
            raise self._not_finite()
        return update.version()

    def _begin(self, gradient: RowsGradient, moment: Moment, backup: Array | None) -> _Update:
        """Find the rows of a gradient, make those that are missing, and add up what is for the same row."""
        kernels = self.kernels
        gradient = RowsGradient(_plain(gradient.keys), _plain(gradient.values))
        backup = None if backup is None else _plain(backup)
        keys = gradient.keys
        groups = Groups(keys.size)
        kernels.group(self._index, keys, groups)
        if groups.absent and self._admission is not None:
            self._admit(self._admission, gradient, groups)
        found = groups.distinct
        if groups.absent:
            self._enter(kernels, keys, groups)
        if groups.distinct < keys.size:
            kernels.fold(gradient.values, groups)
        fresh = self._fresh(groups.distinct)
        h = hyper_of(self._optimizer, moment)
        penalty = self._penalty
        return _Update(kernels, self._records, groups, found, gradient, backup, h, penalty, fresh, moment.now)

    async def next_version_in_threads(
        self, gradient: RowsGradient, moment: Moment, threads: Executor, backup: Array | None = None
    ) -> RowsVersion:
        """Return the same as ``next_version``; the event loop goes on meanwhile. Needs the lock."""
        if not self.is_long(gradient.keys.size):
            return self.next_version(gradient, moment, backup)
        loop = asyncio.get_running_loop()
        update = await loop.run_in_executor(threads, self._begin, gradient, moment, backup)
        parts = stretches(update.groups.distinct)
        if not all(
            await asyncio.gather(*(loop.run_in_executor(threads, update.run, *part) for part in parts))
        ):
            await loop.run_in_executor(threads, self._undo, update)
            raise self._not_finite()
        return update.version()

    def swap(self, version: RowsVersion) -> None:
        """Make ``version``, the last that was made, the current one."""
        self._close_abandoned()
        self._overwrite(self.kernels, version.rows, version.records)
        if self._expiry is not None:
            self._expiry.pushed(version.rows, version.now)
        self.version += 1

    def _close_abandoned(self) -> None:
        for snapshot in [one for one in self._snapshots if one.is_abandoned]:
            snapshot.close()

    def _overwrite(self, kernels: Kernels, rows: RowNumbers, records: Array) -> None:
        with self._guard:
            for snapshot in self._snapshots:
                snapshot.save(kernels, rows)
            kernels.put(self._records, rows, records)

    def gather(self, keys: Keys, out: Array, now: float = 0.0) -> None:
        """Read rows, in any thread.

        Args:
            keys: (n,) uint64, in any order, repeated or not.
            out: (n, dim), is filled with the values of their rows, and what rows begin with if there is none.
            now: seconds.
        """
        with self._guard:
            self._gather(keys, out, now)

    async def gather_in_threads(self, keys: Keys, out: Array, now: float, threads: Executor) -> None:
        """Do the same as ``gather``; the event loop goes on meanwhile. Needs the lock: nothing may change."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(
                loop.run_in_executor(threads, self._gather, keys[begin:end], out[begin:end], now)
                for begin, end in stretches(keys.size)
            )
        )

    def _gather(self, keys: Keys, out: Array, now: float) -> None:
        rows = np.empty(keys.size, np.int64)
        keys = _plain(keys)
        self.kernels.gather(self._index, self._records, keys, rows, self._initial, out)
        if self._expiry is not None:
            self._expiry.pulled(rows[rows >= 0], now)

    def put(self, keys: Keys, records: Array) -> None:
        """Make or overwrite rows, as a checkpoint or a log has them. Needs the lock.

        Args:
            keys: (n,) uint64; if one is repeated, its last record counts.
            records: (n, width).
        """
        for begin in range(0, keys.size, _PUT):
            piece = slice(begin, begin + _PUT)
            self._put(_plain(keys[piece]), _plain(records[piece]))

    def _put(self, keys: Keys, records: Array) -> None:
        kernels = self.kernels
        groups = Groups(keys.size)
        kernels.group(self._index, keys, groups)
        if groups.absent:
            self._enter(kernels, keys, groups)
        self._overwrite(kernels, groups.rows[groups.which], records)

    def remove(self, keys: Keys) -> None:
        """Drop the rows of ``keys``, if they have any. Needs the lock."""
        keys = np.unique(keys)
        rows = np.empty(keys.size, np.int64)
        self.kernels.find(self._index, keys, rows)
        self._remove(keys[rows >= 0], rows[rows >= 0].astype(np.uint32))

    def _remove(self, keys: Keys, rows: RowNumbers) -> None:
        with self._guard:
            self.kernels.remove(self._index, keys)
            self._records.give_back(rows)
            if self._expiry is not None:
                self._expiry.dropped(rows)

    def expire(self, now: float) -> Keys:
        """Drop some rows that are too old or too many, and return their keys. Needs the lock.

        It takes a few milliseconds and looks at a part of the rows; the next call looks at the next part.
        """
        if self._expiry is None:
            return np.empty(0, np.uint64)
        rows = self._expiry.choose(now, 2 * self.kernels.removals)
        keys = self._records.keys[rows]
        self._remove(keys, rows)
        self.expired += keys.size
        return keys

    def clear(self) -> Keys:
        """Drop all rows, and return their keys. Needs the lock; in any thread.

        Snapshots keep what they are of. Which keys were seen how often is forgotten, too.
        """
        assert self.spec.table is not None  # noqa: S101 - checked when it was made
        with self._guard:
            records = self._records
            used = np.ones(records.used, np.bool_)
            for free in records.free:
                used[free] = False
            self._begin_empty(self.spec.table)
        return records.keys[: used.size][used]

    def snapshot(self) -> TableSnapshot:
        """Return the table as it is now, to be read while it goes on being updated.

        To be called when no update is between ``next_version`` and ``swap``; it takes no time.
        """
        self._close_abandoned()
        with self._guard:
            snapshot = TableSnapshot(self._records, self._guard, self._snapshots.remove)
            self._snapshots.append(snapshot)
        return snapshot

    def _admit(self, admission: Admission, gradient: RowsGradient, groups: Groups) -> None:
        """Leave those keys among the missing that are to get rows now."""
        if not all_finite(gradient.values.reshape(-1)):
            raise self._not_finite()  # before anything is counted
        missing = groups.missing[: groups.absent]
        distinct, which = np.unique(gradient.keys[missing], return_inverse=True)
        admitted = missing[admission.see(distinct)[which]]
        groups.absent = admitted.size
        groups.missing[: admitted.size] = admitted

    def _enter(self, kernels: Kernels, keys: Keys, groups: Groups) -> None:
        """Make rows for keys that have none."""
        missing = groups.missing[: groups.absent]
        for begin in range(0, missing.size, _ENTERED):
            self._enter_some(kernels, keys, missing[begin : begin + _ENTERED], groups)

    def _enter_some(self, kernels: Kernels, keys: Keys, missing: Longs, groups: Groups) -> None:
        known = groups.distinct
        with self._guard:
            fresh = self._records.take(missing.size)
            try:
                kernels.enter(self._index, keys, missing, groups, fresh)
            finally:  # where memory ends, there are rows for some of the keys
                made = groups.rows[known : groups.distinct]
                owners = keys[groups.firsts[known : groups.distinct]]
                self._records.keys[made] = owners
                kernels.put(self._records, made, self._first_records(kernels, owners))
                self._records.return_unused(fresh[made.size :])
                if self._expiry is not None:
                    self._expiry.made(made)

    def _undo(self, update: _Update) -> None:
        """Drop the rows that were made for an update that is refused: a table does not grow by such."""
        made = slice(update.found, update.groups.distinct)
        keys, rows = update.gradient.keys[update.groups.firsts[made]], update.groups.rows[made]
        for begin in range(0, keys.size, self.kernels.removals):
            piece = slice(begin, begin + self.kernels.removals)
            self._remove(keys[piece], rows[piece])

    def _first_records(self, kernels: Kernels, keys: Keys) -> Array:
        """Return the records of new rows."""
        records = np.zeros((keys.size, self.width), self._dtype)
        values = np.empty((keys.size, self.dim), self._dtype)
        kernels.initial(keys, self.dim, self._initial, values)
        records[:, : self.dim] = values
        slots = self.rule.start(values, self._first_h)
        for place, slot in enumerate(slots[: len(self.rule.slots)], 1):
            records[:, place * self.dim : (place + 1) * self.dim] = slot
        return records

    def _fresh(self, rows: int) -> Array:
        """Return memory for the records of an update."""
        return self._memory.empty(rows * self.width, self._dtype).reshape(rows, self.width)

    def _not_finite(self) -> NotFinite:
        return NotFinite(
            "NaN or infinity in the gradient or in the rows it leads to; nothing was changed",
            field="tensors",
            value=self.name,
        )


def _plain(array: Array) -> Array:
    """Return an array of the one kind that kernels are compiled for: contiguous, aligned, writeable."""
    return np.require(array, requirements=("C", "A", "W"))
