"""A table against a dict, by random sequences of operations, with both kernels side by side."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.optimizers import Add
from protocol.tables import Keys
from psserver.optimizers import Moment
from psserver.store.snapshot import TableSnapshot
from psserver.store.sparse import SparseBlock
from tests.psserver.store.tables import BOTH, gathered, gradient_of, table

EXPIRE_AFTER = 10.0

some_keys = st.lists(
    st.one_of(st.integers(0, 40), st.sampled_from([0, 2**64 - 1, 2**63, 2**32])), max_size=30
).map(lambda keys: np.array(keys, np.uint64))

many_keys = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(0, 100_000, 3000, np.uint64)
)

any_keys = st.one_of(some_keys, many_keys)
Array = npt.NDArray[Any]


class TableModel(RuleBasedStateMachine):
    """Rows of two float64; every gradient is a whole number, so that sums are exact."""

    @initialize()
    def begin(self) -> None:
        self.tables: dict[str, SparseBlock] = {
            name: table(
                name, Add(), 2, "float64", initial="uniform", scale=1.0, seed=9, expire_after=EXPIRE_AFTER
            )
            for name in BOTH
        }
        self.rows: dict[int, Array] = {}
        self.touched: dict[int, float] = {}
        self.now = 100.0
        self.snapshots: list[tuple[TableSnapshot, ...]] = []
        self.cut: dict[int, Array] = {}

    def first(self, keys: Keys) -> Array:
        return gathered(table("numpy", Add(), 2, "float64", initial="uniform", scale=1.0, seed=9), keys)

    @rule(keys=any_keys, number=st.integers(-5, 5), swapped=st.booleans())
    def push(self, keys: Keys, number: int, swapped: bool) -> None:
        fresh = self.first(keys)
        for key, row in zip(keys.tolist(), fresh, strict=True):
            if key not in self.rows:
                self.rows[key] = row
                self.touched[key] = self.now
        for block in self.tables.values():
            version = block.next_version(gradient_of(block, keys, number), Moment(now=self.now))
            if swapped:
                block.swap(version)
        if swapped:
            for key in keys.tolist():
                self.rows[key] = self.rows[key] + number
                self.touched[key] = self.now

    @rule(keys=any_keys)
    def pull(self, keys: Keys) -> None:
        expected = self.first(keys)
        for place, key in enumerate(keys.tolist()):
            if key in self.rows:
                expected[place] = self.rows[key]
                self.touched[key] = self.now
        for block in self.tables.values():
            np.testing.assert_allclose(gathered(block, keys, self.now), expected, 1e-12)

    @rule(keys=any_keys, number=st.integers(0, 100))
    def put(self, keys: Keys, number: int) -> None:
        records = np.arange(2.0 * keys.size).reshape(-1, 2) + number
        for block in self.tables.values():
            block.put(keys, records)
        for key, row in zip(keys.tolist(), records, strict=True):
            self.touched.setdefault(key, self.now)
            self.rows[key] = row

    @rule(keys=any_keys)
    def remove(self, keys: Keys) -> None:
        for block in self.tables.values():
            block.remove(keys)
        for key in keys.tolist():
            self.rows.pop(key, None)
            self.touched.pop(key, None)

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]))
    def wait_and_expire(self, seconds: float) -> None:
        self.expire()  # takes note of the rows that are new
        self.now += seconds
        self.expire()

    def expire(self) -> None:
        gone = {key for key, then in self.touched.items() if self.now - then > EXPIRE_AFTER}
        for block in self.tables.values():
            dropped = []
            for _ in range(len(self.rows) // 100 + 2):
                dropped += block.expire(self.now).tolist()
            assert sorted(dropped) == sorted(gone)
        for key in gone:
            del self.rows[key], self.touched[key]

    @precondition(lambda self: not self.snapshots)
    @rule()
    def snapshot(self) -> None:
        self.snapshots.append(tuple(block.snapshot() for block in self.tables.values()))
        self.cut = dict(self.rows)

    @precondition(lambda self: self.snapshots)
    @rule(read=st.booleans())
    def end_snapshot(self, read: bool) -> None:
        for snapshot in self.snapshots.pop():
            assert snapshot.rows == len(self.cut)
            if read:
                self.compare(snapshot)
            snapshot.close()
            snapshot.close()

    def compare(self, snapshot: TableSnapshot) -> None:
        read: dict[int, Array] = {}
        for keys, records in snapshot.pieces():
            assert not read.keys() & set(keys.tolist())
            read.update(zip(keys.tolist(), records, strict=True))
        assert read.keys() == self.cut.keys()
        for key, row in read.items():
            np.testing.assert_allclose(row, self.cut[key], 1e-12)

    @invariant()
    def rows_are_counted(self) -> None:
        for block in getattr(self, "tables", {}).values():
            assert block.rows == len(self.rows)


TestTableModel = TableModel.TestCase
TestTableModel.settings = settings(max_examples=5, stateful_step_count=20, deadline=None)


class LongTableModel(TableModel):
    """The same for long."""


TestLongTableModel = pytest.mark.long(LongTableModel.TestCase)
TestLongTableModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
