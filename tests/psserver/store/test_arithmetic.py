from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.optimizers import SGD, Adagrad, Add, Momentum, Optimizer
from protocol.tensors import PIECE, all_finite
from psserver.optimizers import NO_PENALTY, Moment, Penalty, hyper_of, rule_of
from psserver.store.arithmetic import THREADS, Update, accumulate, apply, each_part, of_parts, scale, squares

Array = npt.NDArray[Any]

FLOATS = [np.float16, np.float32, np.float64]

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def sizes_around_a_piece(dtype: Any) -> list[int]:
    piece = PIECE // np.dtype(dtype).itemsize
    return [1, piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 1]


def update_of(optimizer: Optimizer, penalty: Penalty | None = None, factor: float = 1.0) -> Update:
    return Update(rule_of(optimizer), hyper_of(optimizer, Moment()), penalty, factor)


def random(size: int, dtype: Any, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_apply_equals_the_update_of_the_whole(dtype: Any) -> None:
    update = update_of(SGD(0.25))  # exact, so that the order of roundings cannot matter
    for size in sizes_around_a_piece(dtype):
        values, gradient = random(size, dtype, 1), random(size, dtype, 2)
        before, expected = values.copy(), values - dtype(0.25) * gradient
        assert apply(update, values, gradient)
        np.testing.assert_array_equal(gradient, expected)
        np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_apply_finds_what_is_not_finite_wherever_it_is(dtype: Any, bad: float) -> None:
    piece = PIECE // np.dtype(dtype).itemsize
    size = 2 * piece + 1
    values = random(size, dtype, 1)
    before = values.copy()
    for place in (0, piece - 1, piece, piece + 1, 2 * piece - 1, size - 1):
        gradient = random(size, dtype, 2)
        gradient[place] = bad
        assert not all_finite(gradient)
        assert not apply(update_of(Add()), values, gradient)
        np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_apply_refuses_a_sum_that_overflows(dtype: Any) -> None:
    values = np.full(100, np.finfo(dtype).max, dtype)
    gradient = np.zeros(100, dtype)
    gradient[99] = np.finfo(dtype).max
    assert not apply(update_of(Add()), values, gradient)
    assert (values == np.finfo(dtype).max).all()


def test_integers_are_always_finite() -> None:
    values, gradient = np.full(10, 2**63 - 1), np.ones(10, np.int64)
    assert apply(update_of(Add()), values, gradient)
    assert (gradient == -(2**63)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_new_slots_are_made_beside_the_old_ones(dtype: Any) -> None:
    for size in sizes_around_a_piece(dtype):
        values, gradient, old = (random(size, dtype, seed) for seed in (1, 2, 3))
        expected = dtype(0.5) * old + gradient
        new, before = np.full(size, np.nan, dtype), old.copy()
        assert apply(update_of(Momentum(0.25, 0.5)), values, gradient, old, new)
        np.testing.assert_array_equal(new, expected)
        np.testing.assert_array_equal(gradient, values - dtype(0.25) * expected)
        np.testing.assert_array_equal(old, before)


def test_a_slot_that_overflows_is_refused_though_the_values_do_not() -> None:
    optimizer = Adagrad()
    values, old = np.zeros(3, np.float32), np.zeros(3, np.float32)
    gradient = np.array([0, 1e30, 0], np.float32)  # its square is infinite, and the step then zero
    assert not apply(update_of(optimizer), values, gradient, old, np.empty_like(old))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_is_clipped_then_scaled_and_penalised(dtype: Any) -> None:
    values, gradient = np.array([2, -2, 0, 4], dtype), np.array([8, -8, 1, 0.5], dtype)
    penalty = NO_PENALTY._replace(clip_value=4.0, l1=0.25, l2=0.125)
    assert apply(update_of(SGD(1.0), penalty, factor=0.5), values, gradient)
    penalised = np.array([2 + 0.25 + 0.25, -2 - 0.25 - 0.25, 0.5, 0.25 + 0.5 + 0.25], dtype)
    np.testing.assert_array_equal(gradient, values - penalised)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clipping_hides_no_infinity(bad: float) -> None:
    gradient = np.array([0, bad])
    assert not apply(update_of(SGD(), NO_PENALTY._replace(clip_value=1.0)), np.zeros(2), gradient)


@pytest.mark.parametrize("dtype", FLOATS)
def test_squares_are_those_of_what_is_left_by_clipping(dtype: Any) -> None:
    for size in sizes_around_a_piece(dtype):
        gradient = random(size, dtype, 1)
        wide = gradient.astype(np.float64)
        assert squares(gradient, np.inf) == pytest.approx((wide**2).sum(), rel=1e-4)
        assert squares(gradient, 0.5) == pytest.approx((np.clip(wide, -0.5, 0.5) ** 2).sum(), rel=1e-4)


def test_squares_that_are_too_large_for_the_dtype_are_summed_all_the_same() -> None:
    assert squares(np.full(4, 1e30, np.float32), np.inf) == pytest.approx(4e60)
    assert squares(np.full(4, 300, np.float16), np.inf) == 4 * 300**2
    assert np.isnan(squares(np.array([1, np.nan], np.float32), 1.0))


@pytest.mark.parametrize("ratio", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("into", ["total", "gradient", "another"])
def test_accumulate_adds_a_multiple_and_changes_nothing_else(ratio: float, into: str) -> None:
    for size in sizes_around_a_piece(np.float64):
        arrays = {"total": random(size, np.float64, 1), "gradient": random(size, np.float64, 2)}
        arrays["another"] = np.full(size, np.nan)
        before = {name: array.copy() for name, array in arrays.items()}
        assert accumulate(arrays["total"], arrays["gradient"], arrays[into], ratio)
        before[into] = before["total"] + ratio * before["gradient"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[name])


def test_scale_may_be_in_place() -> None:
    array, another = np.arange(5, dtype=np.float32), np.full(5, np.nan, np.float32)
    assert scale(array, another, 0.5)
    np.testing.assert_array_equal(another, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(array, np.arange(5))
    assert scale(array, array, 0.5)
    np.testing.assert_array_equal(array, another)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 16 * THREADS, 16 * THREADS + 1, 100_003])
async def test_each_part_covers_every_element_once(threads: ThreadPoolExecutor, size: int) -> None:
    counts, others = np.zeros(size, np.int64), np.arange(size)

    def count(part: Array, other: Array) -> bool:
        assert part.size == other.size
        part += 1 + other
        return True

    assert await each_part(threads, count, counts, others)
    np.testing.assert_array_equal(counts, 1 + np.arange(size))


async def test_what_comes_of_the_parts_comes_in_their_order(threads: ThreadPoolExecutor) -> None:
    array = np.arange(100_003)
    found = await of_parts(threads, np.copy, array)
    np.testing.assert_array_equal(np.concatenate(found), array)


@pytest.mark.parametrize("place", [0, 50_000, 100_002])
async def test_each_part_is_true_only_if_all_parts_are(threads: ThreadPoolExecutor, place: int) -> None:
    array = np.zeros(100_003)
    array[place] = np.nan
    assert not await each_part(threads, all_finite, array)


async def test_each_part_raises_what_a_part_raises(threads: ThreadPoolExecutor) -> None:
    def fail(_: Array) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await each_part(threads, fail, np.zeros(10))
