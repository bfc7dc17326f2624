"""Tables that are read in other threads while they are updated."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from protocol.optimizers import Add
from psserver.optimizers import Moment
from psserver.store.sparse import SparseBlock
from tests.psserver.store.tables import BOTH, gathered, gradient_of, table

ROWS = 20_000


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Repeat ``work`` in a thread; what it raises, the test raises."""
    done = threading.Event()
    errors: list[BaseException] = []

    def repeat() -> None:
        try:
            work()
            while not done.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


def push_one(block: SparseBlock, keys: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    block.swap(block.next_version(gradient_of(block, keys, 1.0), Moment()))


@pytest.mark.parametrize("kernels", BOTH)
def test_a_pull_sees_each_update_as_a_whole(kernels: str) -> None:
    """Every update adds 1 to all of the rows, and makes others, for which the index grows."""
    block = table(kernels, Add(), 4)
    keys = np.arange(ROWS, dtype=np.uint64)
    push_one(block, keys)
    seen = []

    def pull() -> None:
        values = gathered(block, keys)
        assert (values == values[0, 0]).all()
        seen.append(values[0, 0])

    with meanwhile(pull):
        for number in range(1, 40):
            push_one(block, np.concatenate((keys, keys[:1000] + np.uint64(number * 10**6))))
    assert seen == sorted(seen)


@pytest.mark.parametrize("kernels", BOTH)
def test_a_snapshot_is_the_table_at_the_cut_while_updates_go_on(kernels: str) -> None:
    block = table(kernels, Add(), 4)
    keys = np.arange(ROWS, dtype=np.uint64)
    random = np.random.default_rng(1)
    for _ in range(5):
        push_one(block, random.permutation(keys)[: ROWS // 2])
    expected = gathered(block, keys)
    snapshot = block.snapshot()
    found = np.full((ROWS, 4), np.nan)
    reading = threading.Event()

    def read() -> None:
        for some, records in snapshot.pieces():
            found[some.astype(np.int64)] = records
        reading.set()

    thread = threading.Thread(target=read)
    push_one(block, keys[::3].copy())
    block.remove(keys[::5])
    thread.start()
    for number in range(30):
        push_one(block, random.permutation(keys)[: ROWS // 2])
        push_one(block, keys[:500] + np.uint64((number + 1) * 10**6))
        block.remove(random.permutation(keys)[:100])
    thread.join()
    snapshot.close()
    assert reading.is_set()
    assert snapshot.rows == (~np.isnan(found[:, 0])).sum()
    np.testing.assert_array_equal(np.nan_to_num(found), expected)


@pytest.mark.parametrize("kernels", BOTH)
def test_rows_made_after_the_cut_are_not_in_the_snapshot(kernels: str) -> None:
    block = table(kernels, Add(), 1)
    block.put(np.arange(100, dtype=np.uint64), np.ones((100, 1), np.float32))
    block.remove(np.arange(50, dtype=np.uint64))
    first, block.kernels = block.snapshot(), block.kernels
    push_one(block, np.arange(20, dtype=np.uint64))  # takes rows that were free at the cut
    second = block.snapshot()
    block.remove(np.arange(20, dtype=np.uint64))
    push_one(block, np.arange(1000, 1100, dtype=np.uint64))
    for snapshot, expected in ((first, range(50, 100)), (second, (*range(20), *range(50, 100)))):
        keys, records = map(np.concatenate, zip(*snapshot.pieces(), strict=True))
        assert sorted(keys) == list(expected)
        assert (records == 1.0).all()
        snapshot.close()
    push_one(block, np.arange(2000, 2020, dtype=np.uint64))
    assert block.rows == 50 + 100 + 20


def test_a_large_snapshot_comes_in_pieces() -> None:
    block = table("numba", Add(), 100, "float64")
    keys = np.arange(30_000, dtype=np.uint64)
    block.put(keys, np.broadcast_to(keys.astype(np.float64)[:, None], (keys.size, 100)))
    snapshot = block.snapshot()
    pieces = []
    for some, records in snapshot.pieces():
        assert records.nbytes <= 8 * 1024 * 1024
        np.testing.assert_array_equal(records, np.broadcast_to(some.astype(float)[:, None], records.shape))
        pieces.append(some)
        push_one(block, keys)
        if len(pieces) == 1:
            break
    snapshot.close()  # it was not read to its end
    np.testing.assert_array_equal(gathered(block, keys[:2])[:, 0], [1.0, 2.0])
