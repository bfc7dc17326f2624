import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.optimizers import SGD
from psserver.optimizers import rule_of
from psserver.store.index import Index
from psserver.store.kernels import Groups
from psserver.store.records import Records
from psserver.store.regions import Regions
from psserver.store.reserved import reserve
from tests.psserver.store.tables import BOTH, kernels_of


@pytest.mark.parametrize("name", BOTH)
def test_segments_grow_one_after_the_other(name: str) -> None:
    """Of every batch that adds a hundredth to the table, a few segments in a hundred grow."""
    kernels, index = kernels_of(name, rule_of(SGD(0.1))), Index()
    random = np.random.default_rng(1)
    size = 100_000
    shares = []
    while index.keys < 400_000:
        keys = random.integers(0, 2**64, size, np.uint64)
        groups = Groups(size)
        kernels.group(index, keys, groups)
        before = index.masks.copy()
        first = index.keys
        fresh = np.arange(first, first + size, dtype=np.uint32)
        kernels.enter(index, keys, groups.missing[: groups.absent], groups, fresh)
        shares.append((index.masks != before).mean())
        assert (index.counts <= index.limits).all()
        assert (index.limits <= index.masks).all()
        size = index.keys // 100
    assert max(shares[1:]) < 0.05
    assert 0.005 < np.mean(shares[1:]) < 0.03
    sizes = np.unique(index.masks + np.uint64(1))
    assert sizes.max() <= 2 * sizes.min()
    assert 16 * (index.masks + np.uint64(1)).sum() <= index.nbytes < 41 * index.keys


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=200))
def test_regions_never_overlap_and_are_joined_again(orders: list[tuple[bool, int]]) -> None:
    regions = Regions(1 << 20)
    used: list[tuple[int, int]] = []
    for take, number in orders:
        if take or not used:
            length = 1 << number
            begin = regions.take(length)
            assert begin % length == 0
            assert all(begin + length <= b or b + size <= begin for b, size in used)
            used.append((begin, length))
        else:
            regions.give_back(*used.pop(number % len(used)))
    for region in used:
        regions.give_back(*region)
    top = regions.top
    if top:
        largest = 1 << (top.bit_length() - 1)
        assert regions.take(largest) + largest <= top


def test_regions_that_are_full_say_so() -> None:
    regions = Regions(100)
    regions.take(64)
    with pytest.raises(MemoryError, match="100"):
        regions.take(64)
    assert regions.take(32) == 64


def test_a_smaller_reservation_where_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = mmap.mmap, []

    def refuse(number: int, nbytes: int, **more: Any) -> Any:
        asked.append(nbytes)
        if nbytes > 100 * 1024 * 1024:
            raise OSError(12, "Cannot allocate memory")
        return real(number, nbytes, **more)

    monkeypatch.setattr(mmap, "mmap", refuse)
    array = reserve(np.float32)
    assert len(asked) > 1
    assert array.nbytes == asked[-1]
    assert not array[-1000:].any()


def test_no_reservation_at_all_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, nbytes: int, **more: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match="ulimit"):
        reserve(np.float32)


def test_rows_are_used_again_but_not_while_they_are_held() -> None:
    records = Records(2, np.dtype(np.float32))
    assert records.take(5).tolist() == [0, 1, 2, 3, 4]
    records.give_back(np.array([3, 1], np.uint32))
    records.hold()
    records.give_back(np.array([0], np.uint32))
    assert records.rows == 2
    assert records.take(3).tolist() == [3, 1, 5]
    assert records.take(1).tolist() == [6]
    records.release()
    taken = records.take(3)
    assert taken.tolist() == [0, 7, 8]
    records.return_unused(taken[1:])
    assert records.used == 7
    assert records.rows == 7
    assert records.take(1).tolist() == [7]


def test_a_full_table_is_an_error_and_takes_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(2, np.dtype(np.float32))
    records.flat = records.flat[:10]
    records.take(4)
    with pytest.raises(MemoryError, match="room for 5 rows"):
        records.take(2)
    assert records.take(1).tolist() == [4]
