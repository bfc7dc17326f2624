from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, NotFinite
from protocol.messages import Spec
from protocol.optimizers import SGD, Add, Optimizer, OptimizerSpec, Setting, spec_of
from protocol.tensors import DTYPES
from psserver.store.arithmetic import INLINE, THREADS
from psserver.store.dense import DenseBlock, StepMean, check_spec

Array = npt.NDArray[Any]

FLOATS = ["float16", "float32", "float64"]
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

INTEGERS = [name for name in DTYPES if name not in FLOATS]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def block_of(values: Array, optimizer: Optimizer | None = None) -> DenseBlock:
    spec = Spec(values.dtype.name, values.shape, spec_of(optimizer or Add()))
    return DenseBlock("w", spec, values, attempt=1)


def sizes_around_inline(dtype: str) -> list[int]:
    most = INLINE // DTYPES[dtype].itemsize
    return [1, 1000, most - 1, most, most + 1]


def random(size: int, dtype: str, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-8, 8, size).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
async def test_add_equals_numpy_inline_and_in_threads(threads: ThreadPoolExecutor, dtype: str) -> None:
    for size in sizes_around_inline(dtype):
        values, delta = random(size, dtype, 1), random(size, dtype, 2)
        expected = values + delta
        block = block_of(values)
        np.testing.assert_array_equal(block.next_version(delta.copy()), expected)
        np.testing.assert_array_equal(await block.next_version_in_threads(delta.copy(), threads), expected)


@pytest.mark.parametrize("dtype", FLOATS)
async def test_sgd_equals_numpy_inline_and_in_threads(threads: ThreadPoolExecutor, dtype: str) -> None:
    for size in sizes_around_inline(dtype):
        values, gradient = random(size, dtype, 1), random(size, dtype, 2)
        expected = values - DTYPES[dtype].type(0.5) * gradient
        block = block_of(values, SGD(0.5))
        np.testing.assert_array_equal(block.next_version(gradient.copy()), expected)
        np.testing.assert_array_equal(await block.next_version_in_threads(gradient, threads), expected)


async def test_a_version_is_never_written_to(threads: ThreadPoolExecutor) -> None:
    """A pull that is still being sent keeps the version that it began with."""
    for size in (100, INLINE // 4 + 1):
        block = block_of(np.zeros(size, np.float32))
        versions: list[tuple[Array, float]] = [(block.values, 0.0)]
        for number in range(1, 6):
            gradient = np.ones(size, np.float32)
            fresh = await block.next_version_in_threads(gradient, threads)
            assert not any(np.shares_memory(fresh, version) for version, _ in versions)
            block.swap(fresh)
            versions.append((block.values, float(number)))
        assert block.version == 5
        for version, value in versions:
            assert (version == value).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [100, INLINE // 4 + 1])
async def test_a_gradient_that_is_not_finite_changes_nothing(
    threads: ThreadPoolExecutor, size: int, bad: float
) -> None:
    block = block_of(np.ones(size, np.float32), SGD(0.5))
    for place in (0, size // 2, size - 1):
        gradient = np.ones(size, np.float32)
        gradient[place] = bad
        with pytest.raises(NotFinite) as caught:
            await block.check(gradient, threads)
        assert (caught.value.field, caught.value.value) == ("tensors", "w")
        with pytest.raises(NotFinite):
            await block.next_version_in_threads(gradient, threads)
        assert block.version == 0
        assert (block.values == 1.0).all()
    await block.check(np.ones(size, np.float32), threads)


@pytest.mark.parametrize("size", [100, INLINE // 4 + 1])
async def test_a_result_that_overflows_is_refused(threads: ThreadPoolExecutor, size: int) -> None:
    block = block_of(np.full(size, 3e38, np.float32))
    delta = np.zeros(size, np.float32)
    delta[-1] = 3e38
    await block.check(delta, threads)  # it is finite by itself
    with pytest.raises(NotFinite):
        await block.next_version_in_threads(delta, threads)
    assert (block.values == np.float32(3e38)).all()


# --- the mean of a step


async def mean_of(
    gradients: Sequence[Array], weights: Sequence[float], threads: ThreadPoolExecutor, *, merged: int = 0
) -> Array:
    """The mean, of which the last ``merged`` come as a mean of their own."""
    given = [(gradient.copy(), weight) for gradient, weight in zip(gradients, weights, strict=True)]
    split = len(given) - merged
    mean = await added(given[:split], threads)
    if merged:
        await mean.merge(await added(given[split:], threads), threads)
    return await mean.result(threads)


async def added(given: Sequence[tuple[Array, float]], threads: ThreadPoolExecutor) -> StepMean:
    mean = StepMean(*given[0])
    for gradient, weight in given[1:]:
        await mean.add(gradient, weight, threads)
    return mean


WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@given(weights=WEIGHTS, size=st.integers(1, 50), seed=st.integers(0, 1000), data=st.data())
async def test_a_mean_is_weighted_however_it_is_put_together(
    weights: list[float], size: int, seed: int, data: st.DataObject
) -> None:
    merged = data.draw(st.integers(0, len(weights) - 1))
    with ThreadPoolExecutor(1) as threads:
        rng = np.random.default_rng(seed)
        gradients = [rng.normal(size=size) for _ in weights]
        values = await mean_of(gradients, weights, threads, merged=merged)
        expected = np.average(gradients, axis=0, weights=weights)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [INLINE // 8 - 1, INLINE // 8, INLINE // 8 + 1])
@pytest.mark.parametrize("merged", [0, 1, 2])
async def test_large_means_are_the_same(threads: ThreadPoolExecutor, size: int, merged: int) -> None:
    gradients = [np.full(size, value) for value in (1.0, 2.0, 6.0)]
    values = await mean_of(gradients, [1.0, 2.0, 1.0], threads, merged=merged)
    np.testing.assert_allclose(values, 2.75, rtol=1e-12)


async def test_the_mean_of_one_gradient_is_that_gradient_to_the_last_bit(threads: ThreadPoolExecutor) -> None:
    gradient = np.random.default_rng(1).normal(size=100).astype(np.float32)
    np.testing.assert_array_equal(await mean_of([gradient], [7.0], threads), gradient)
    np.testing.assert_array_equal(await mean_of([gradient] * 2, [3.0, 3.0], threads), gradient)


# --- what a tensor may be


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_take_deltas_only_and_not_averaged(dtype: str) -> None:
    check_spec(Spec(dtype, (2,), spec_of(Add())), averaged=False)
    for optimizer, averaged in ((SGD(), False), (Add(), True)):
        with pytest.raises(BadRequest) as caught:
            check_spec(Spec(dtype, (2,), spec_of(optimizer)), averaged=averaged)
        assert (caught.value.field, caught.value.value) == ("dtype", dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("optimizer", [SGD(), Add()])
def test_floats_take_everything(dtype: str, averaged: bool, optimizer: Optimizer) -> None:
    check_spec(Spec(dtype, (2,), spec_of(optimizer)), averaged=averaged)


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("adagrad2", (), "optimizer"),
        ("sgd", (("momentum", 0.9),), "optimizer"),
        ("add", (("lr", 0.1),), "optimizer"),
        ("sgd", (("lr", 0.0),), "lr"),
        ("sgd", (("lr", -1.0),), "lr"),
        ("sgd", (("lr", float("nan")),), "lr"),
        ("sgd", (("lr", float("inf")),), "lr"),
    ],
)
def test_absurd_optimizers_are_refused(
    name: str, settings: tuple[tuple[str, float], ...], field: str
) -> None:
    spec = OptimizerSpec(name, tuple(Setting(*setting) for setting in settings))
    with pytest.raises(BadRequest) as caught:
        check_spec(Spec("float32", (2,), spec), averaged=False)
    assert caught.value.field == field
