import gc
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.buffers import POOLED, BufferPool, _rounded
from protocol.tensors import DTYPES

Array = npt.NDArray[Any]
U8 = np.dtype(np.uint8)

VIEWS: dict[str, Callable[[Array], Any]] = {
    "the array": lambda array: array,
    "slice": lambda array: array[5:10],
    "slice of a slice": lambda array: array[5:100][3:5],
    "reshaped": lambda array: array.reshape(4, -1),
    "transposed": lambda array: array.reshape(4, -1).T,
    "another dtype": lambda array: array[:64].view(np.float64),
    "another class": lambda array: array.view(np.matrix),
    "read-only view": lambda array: np.broadcast_to(array[3:4], (2, 1)),
    "memoryview": lambda array: array.data,
    "bytes of a slice": lambda array: array[7:9].data.cast("B"),
    "array of a memoryview": lambda array: np.frombuffer(array[7:9].data, np.uint8),
    "array interface": lambda array: np.asarray(array.data[2:8]),
}


def address(array: Array) -> int:
    return int(array.ctypes.data)


def test_memory_is_used_again_when_the_array_is_dropped() -> None:
    pool = BufferPool(retain=4 * POOLED)
    array = pool.empty(POOLED, U8)
    where = address(array)
    assert pool.idle_bytes == 0
    del array
    assert pool.idle_bytes == POOLED
    again = pool.empty(POOLED // 4, np.dtype(np.float32))
    assert address(again) == where
    assert pool.idle_bytes == 0


def test_memory_is_used_again_for_an_array_of_nearly_the_same_size() -> None:
    pool = BufferPool(retain=64 * POOLED)
    array = pool.empty(5 * POOLED - 300, U8)
    where = address(array)
    del array
    again = pool.empty(5 * POOLED - 77, U8)
    assert (address(again), again.size) == (where, 5 * POOLED - 77)


@given(st.integers(POOLED, 1 << 40))
def test_at_most_an_eighth_more_is_taken_than_asked_for(size: int) -> None:
    assert size <= _rounded(size) <= size + size // 8
    assert _rounded(_rounded(size)) == _rounded(size)


@pytest.mark.parametrize("view", VIEWS)
def test_every_kind_of_view_keeps_the_memory(view: str) -> None:
    pool = BufferPool(retain=4 * POOLED)
    array = pool.empty(POOLED, U8)
    where = address(array)
    kept = VIEWS[view](array)
    del array
    assert pool.idle_bytes == 0
    assert address(pool.empty(POOLED, U8)) != where
    assert pool.idle_bytes == POOLED
    del kept
    assert pool.idle_bytes == 2 * POOLED


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.just("take"), st.sampled_from([POOLED, POOLED + 64]), st.sampled_from(sorted(VIEWS)))
        | st.tuples(st.just("drop"), st.integers(0, 9), st.none()),
        max_size=25,
    ),
    st.sampled_from([0, POOLED, 3 * POOLED]),
)
def test_data_never_changes_under_a_living_view(steps: list[tuple[str, int, str]], retain: int) -> None:
    pool = BufferPool(retain)
    living: list[tuple[int, Any]] = []
    for mark, (step, number, view) in enumerate(steps):
        if step == "take":
            array = pool.empty(number, U8)
            array[:] = mark
            living.append((mark, VIEWS[view](array)))
            del array
        elif living:
            del living[number % len(living)]
        assert pool.idle_bytes <= retain
        for expected, kept in living:
            assert (np.asarray(kept).view(np.uint8) == expected).all()


def test_at_most_so_many_idle_bytes_are_kept() -> None:
    pool = BufferPool(retain=3 * POOLED)
    arrays = [pool.empty(POOLED, U8) for _ in range(10)]
    arrays.append(pool.empty(4 * POOLED, U8))
    while arrays:
        arrays.pop()
        assert pool.idle_bytes == min(10 - len(arrays), 3) * POOLED


def test_the_size_used_least_recently_is_let_go_first() -> None:
    pool = BufferPool(retain=4 * POOLED)
    often, once = pool.empty(POOLED, U8), pool.empty(2 * POOLED, U8)
    where = address(often)
    del often
    del once
    often = pool.empty(POOLED, U8)
    del often
    new = pool.empty(POOLED + POOLED // 2, U8)
    del new
    assert pool.idle_bytes == POOLED + POOLED + POOLED // 2
    assert address(pool.empty(POOLED, U8)) == where


def test_a_pool_that_retains_nothing_still_hands_out_arrays() -> None:
    pool = BufferPool(retain=0)
    for _ in range(3):
        pool.empty(POOLED, U8)[:] = 1
        assert pool.idle_bytes == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("elements", [POOLED, POOLED + 1])
def test_pooled_arrays_are_aligned_and_writeable(dtype: np.dtype[Any], elements: int) -> None:
    array = BufferPool(retain=0).empty(elements, dtype)
    assert address(array) % 64 == 0
    assert (array.dtype, array.shape) == (dtype, (elements,))
    assert array.flags.writeable
    array[-1] = array[0] = 1
    assert array[-1] == array[0] == 1


@pytest.mark.parametrize("elements", [0, 1, POOLED - 1])
def test_small_arrays_are_left_to_the_allocator(elements: int) -> None:
    pool = BufferPool(retain=1 << 30)
    array = pool.empty(elements, U8)
    assert array.shape == (elements,)
    del array
    assert pool.idle_bytes == 0


def test_memory_returns_when_the_garbage_collector_finds_the_array() -> None:
    pool = BufferPool(retain=POOLED)
    cycle: list[Any] = [pool.empty(POOLED, U8)]
    cycle.append(cycle)
    del cycle
    assert pool.idle_bytes == 0
    gc.collect()
    assert pool.idle_bytes == POOLED


def test_arrays_outlive_their_pool() -> None:
    pool = BufferPool(retain=POOLED)
    array = pool.empty(POOLED, U8)
    array[:] = 5
    del pool
    gc.collect()
    assert (array == 5).all()


@pytest.fixture
def many_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("many_switches")
def test_arrays_may_be_taken_and_dropped_in_any_thread() -> None:
    pool, threads, rounds = BufferPool(retain=4 * POOLED), 4, 150
    passed: queue.SimpleQueue[tuple[int, Array] | None] = queue.SimpleQueue()
    wrong: list[int] = []

    def take(number: int) -> None:
        for turn in range(rounds):
            mark = number * rounds + turn
            array = pool.empty(POOLED // 4, np.dtype(np.uint32))
            array[:] = mark
            passed.put((mark, array[turn:]))

    def drop() -> None:
        while (item := passed.get()) is not None:
            mark, view = item
            if not (view == mark).all():
                wrong.append(mark)
            del item, view

    takers = [threading.Thread(target=take, args=(number,)) for number in range(threads)]
    droppers = [threading.Thread(target=drop) for _ in range(threads)]
    for thread in (*takers, *droppers):
        thread.start()
    for thread in takers:
        thread.join()
    for _ in droppers:
        passed.put(None)
    for thread in droppers:
        thread.join()
    assert wrong == []
    assert pool.idle_bytes == 4 * POOLED
