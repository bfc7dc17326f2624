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
from protocol.optimizers import (
    DCSGD,
    SGD,
    Adagrad,
    Adam,
    Add,
    Momentum,
    Optimizer,
    OptimizerSpec,
    Setting,
    Step,
    spec_of,
)
from protocol.tensors import DTYPES
from psserver.optimizers import Moment, rule_of
from psserver.store.arithmetic import INLINE, THREADS
from psserver.store.dense import DenseBlock, StepMean, check_spec
from tests.psserver.optimizers.kinds import EVERY, Parameters

Array = npt.NDArray[Any]

FLOATS = ["float16", "float32", "float64"]
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

NOW = Moment()

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
        np.testing.assert_array_equal(block.next_version(delta.copy(), NOW).values, expected)
        fresh = await block.next_version_in_threads(delta.copy(), NOW, threads)
        np.testing.assert_array_equal(fresh.values, expected)


@pytest.mark.parametrize("dtype", FLOATS)
async def test_sgd_equals_numpy_inline_and_in_threads(threads: ThreadPoolExecutor, dtype: str) -> None:
    for size in sizes_around_inline(dtype):
        values, gradient = random(size, dtype, 1), random(size, dtype, 2)
        expected = values - DTYPES[dtype].type(0.5) * gradient
        block = block_of(values, SGD(0.5))
        np.testing.assert_array_equal(block.next_version(gradient.copy(), NOW).values, expected)
        fresh = await block.next_version_in_threads(gradient, NOW, threads)
        np.testing.assert_array_equal(fresh.values, expected)


async def test_a_version_is_never_written_to(threads: ThreadPoolExecutor) -> None:
    """A pull that is still being sent keeps the version that it began with."""
    for size in (100, INLINE // 4 + 1):
        block = block_of(np.zeros(size, np.float32))
        versions: list[tuple[Array, float]] = [(block.values, 0.0)]
        for number in range(1, 6):
            gradient = np.ones(size, np.float32)
            fresh = await block.next_version_in_threads(gradient, NOW, threads)
            assert not any(np.shares_memory(fresh.values, version) for version, _ in versions)
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
            await block.next_version_in_threads(gradient, NOW, threads)
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
        await block.next_version_in_threads(delta, NOW, threads)
    assert (block.values == np.float32(3e38)).all()


# --- optimizers with slots

KEEPING = [optimizer for optimizer in EVERY if rule_of(optimizer).slots]
of_those = pytest.mark.parametrize("optimizer", KEEPING, ids=[optimizer.name for optimizer in KEEPING])


@of_those
@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_a_block_equals_the_rule_inline_and_in_threads(
    threads: ThreadPoolExecutor, dtype: str, optimizer: Optimizer
) -> None:
    for size in (100, INLINE // DTYPES[dtype].itemsize + 1):
        begin, pushed = random(size, dtype, 1), [random(size, dtype, seed) for seed in (2, 3, 4)]
        expected = Parameters(optimizer, begin)
        block = block_of(begin, optimizer)
        for gradient in pushed:
            expected.update(gradient)
            block.swap(await block.next_version_in_threads(gradient.copy(), NOW, threads))
        assert [slot.dtype for slot in block.slots] == [DTYPES[dtype]] * len(rule_of(optimizer).slots)
        np.testing.assert_array_equal(block.values, expected.values)
        for slot, kept in zip(block.slots, (expected.a, expected.b), strict=False):
            np.testing.assert_array_equal(slot, kept)


@of_those
@pytest.mark.parametrize("size", [100, INLINE // 4 + 1])
async def test_a_version_of_slots_is_never_written_to(
    threads: ThreadPoolExecutor, optimizer: Optimizer, size: int
) -> None:
    block = block_of(random(size, "float32", 1), optimizer)
    kept = [(block.slots, [slot.copy() for slot in block.slots])]
    for seed in range(3):
        block.swap(await block.next_version_in_threads(random(size, "float32", seed), NOW, threads))
        kept.append((block.slots, [slot.copy() for slot in block.slots]))
    for slots, copies in kept:
        for slot, copy in zip(slots, copies, strict=True):
            np.testing.assert_array_equal(slot, copy)


@of_those
def test_slots_of_a_checkpoint_are_taken_up(optimizer: Optimizer) -> None:
    begin, pushed = random(50, "float64", 1), [random(50, "float64", seed) for seed in (2, 3, 4)]
    whole = block_of(begin, optimizer)
    for gradient in pushed[:2]:
        whole.swap(whole.next_version(gradient.copy(), NOW))
    again = DenseBlock("w", whole.spec, whole.values, attempt=1, slots=whole.slots)
    again.version = whole.version
    expected, found = (block.next_version(pushed[2].copy(), NOW) for block in (whole, again))
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.slots, expected.slots)


@pytest.mark.parametrize("size", [100, INLINE // 4 + 1])
async def test_what_is_refused_leaves_the_slots_as_they_were(threads: ThreadPoolExecutor, size: int) -> None:
    block = block_of(np.zeros(size, np.float32), Adagrad(initial=1.0))
    gradient = np.zeros(size, np.float32)
    gradient[-1] = 1e30  # its square is infinite
    with pytest.raises(NotFinite):
        await block.next_version_in_threads(gradient, NOW, threads)
    assert (block.slots[0] == 1.0).all()


@pytest.mark.parametrize("size", [100, INLINE // 4 + 1])
async def test_a_gradient_is_scaled_to_the_greatest_length_as_a_whole(
    threads: ThreadPoolExecutor, size: int
) -> None:
    block = block_of(np.zeros(size, np.float32), SGD(1.0, clip_norm=3.0))
    for length, expected in ((6.0, 3.0), (2.0, 2.0)):
        gradient = np.full(size, length / size**0.5, np.float32)
        fresh = await block.next_version_in_threads(gradient, NOW, threads)
        assert np.linalg.norm(fresh.values.astype(np.float64)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(NotFinite):
        await block.next_version_in_threads(np.full(size, np.inf, np.float32), NOW, threads)


def test_the_moment_decides_about_the_learning_rate() -> None:
    block = block_of(np.zeros(1), SGD(1.0, schedule=Step(every=1, factor=0.5), scale_by_staleness=True))
    for moment, rate in ((NOW, 1.0), (Moment(2), 0.25), (Moment(1, staleness=4.0), 0.125)):
        assert block.next_version(np.ones(1), moment).values == -rate


@pytest.mark.parametrize("size", [100, INLINE // 4 + 1])
async def test_what_the_worker_had_read_compensates_for_the_delay(
    threads: ThreadPoolExecutor, size: int
) -> None:
    block = block_of(np.full(size, 2.0, np.float32), DCSGD(0.5, lam=0.25))
    read = np.full(size, 1.0, np.float32)
    for backup, expected in ((None, 2.0 - 0.5 * 4.0), (read, 2.0 - 0.5 * (4.0 + 0.25 * 4.0**2 * 1.0))):
        gradient = np.full(size, 4.0, np.float32)
        fresh = await block.next_version_in_threads(gradient, NOW, threads, backup)
        assert (fresh.values == expected).all()
    assert (read == 1.0).all()


def test_effort_tells_what_is_to_leave_the_event_loop() -> None:
    efforts = [block_of(np.zeros(1), optimizer).effort for optimizer in (Add(), SGD(), Momentum(), Adam())]
    assert efforts == [1, 1, 3, 5]


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
def test_integers_take_deltas_only(dtype: str) -> None:
    check_spec(Spec(dtype, (2,), spec_of(Add())))
    with pytest.raises(BadRequest) as caught:
        check_spec(Spec(dtype, (2,), spec_of(SGD())))
    assert (caught.value.field, caught.value.value) == ("dtype", dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("optimizer", [SGD(), Add()])
def test_floats_take_everything(dtype: str, optimizer: Optimizer) -> None:
    check_spec(Spec(dtype, (2,), spec_of(optimizer)))


@pytest.mark.parametrize("optimizer", EVERY, ids=[optimizer.name for optimizer in EVERY])
def test_what_keeps_squares_needs_more_than_half_precision(optimizer: Optimizer) -> None:
    for dtype in ("float32", "float64"):
        check_spec(Spec(dtype, (2,), spec_of(optimizer)))
    spec = Spec("float16", (2,), spec_of(optimizer))
    if rule_of(optimizer).slots:
        with pytest.raises(BadRequest, match="needs float32 or float64") as caught:
            check_spec(spec)
        assert (caught.value.field, caught.value.value) == ("dtype", "float16")
    else:
        check_spec(spec)


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
        check_spec(Spec("float32", (2,), spec))
    assert caught.value.field == field
