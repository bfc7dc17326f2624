import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import BadRequest, NotFinite
from protocol.messages import Spec
from protocol.optimizers import (
    DCSGD,
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Momentum,
    Nesterov,
    Optimizer,
    OptimizerSpec,
    RMSProp,
    spec_of,
)
from protocol.tables import HASH_SLOTS, HASHED, Keys, Table, hash_keys, hash_slots
from psserver.optimizers import Moment
from psserver.store.dense import DenseBlock
from psserver.store.index import LINE, segments_of
from psserver.store.sparse import RowsGradient, RowsVersion, SparseBlock, check_table
from tests.psserver.store.tables import BOTH, gathered, gradient_of, keys_of, table

Array = npt.NDArray[Any]

OPTIMIZERS = [
    Add(),
    SGD(0.1),
    SGD(0.1, clip_value=0.5),
    SGD(0.1, clip_norm=0.5),
    SGD(0.1, l1=0.01, l2=0.02),
    Momentum(0.1),
    Nesterov(0.1),
    Adagrad(0.1),
    Adagrad(0.1, initial=0.1, clip_value=1.0, clip_norm=1.5, l2=0.1),
    RMSProp(0.1),
    Adam(0.1),
    AdamW(0.1),
    FTRL(0.1, l1=0.1),
    DCSGD(0.1),
]
"""Every rule, and every penalty."""


def push(block: SparseBlock, keys: Keys, values: npt.ArrayLike, moment: Moment | None = None) -> RowsVersion:
    version = block.next_version(gradient_of(block, keys, values), moment or Moment())
    block.swap(version)
    return version


@pytest.mark.parametrize("kernels", BOTH)
def test_rows_are_made_by_pushes_and_repeats_are_summed(kernels: str) -> None:
    block = table(kernels, Add())
    keys = keys_of(7, 0, 2**64 - 1, 7, 3, 0)
    version = push(block, keys, np.arange(6)[:, None])
    assert version.keys.tolist() == [7, 0, 2**64 - 1, 3]
    assert block.rows == 4
    assert gathered(block, keys_of(3, 7, 1, 0, 2**64 - 1, 3))[:, 0].tolist() == [4, 3, 0, 6, 2, 4]
    version = push(block, keys_of(3, 8, 3, 8, 7), 1)
    assert version.keys.tolist() == [3, 7, 8]
    assert gathered(block, keys_of(3, 7, 8))[:, 0].tolist() == [6, 4, 2]
    assert block.rows == 5
    assert block.version == 2


@pytest.mark.parametrize("kernels", BOTH)
def test_a_push_without_keys_is_an_update(kernels: str) -> None:
    block = table(kernels, Adam())
    push(block, keys_of(), np.empty((0, 3)))
    assert block.version == 1
    assert block.rows == 0
    assert gathered(block, keys_of()).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.long)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_kernels_come_to_what_numpy_does(optimizer: Optimizer, dtype: str) -> None:
    """NumPy's kernels on one row at a time are the reference: there the arrays are plain."""
    more: dict[str, Any] = {"initial": "uniform", "scale": 1.0, "seed": 5}
    one, *both = (table(kernels, optimizer, 5, dtype, **more) for kernels in ("numpy", *BOTH))
    random = np.random.default_rng(1)
    for step in range(3):
        keys = random.permutation(np.arange(200, dtype=np.uint64))[:130]
        values = random.standard_normal((130, 5)).astype(dtype)
        moment = Moment(step)
        for many in both:
            many.swap(many.next_version(RowsGradient(keys, values.copy()), moment))
        for place in range(130):
            piece = slice(place, place + 1)
            one.swap(one.next_version(RowsGradient(keys[piece], values[piece].copy()), moment))
    every = np.arange(200, dtype=np.uint64)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for kernels, many in zip(BOTH, both, strict=True):
        found, expected = gathered(many, every), gathered(one, every)
        np.testing.assert_allclose(found, expected, tolerance, tolerance, err_msg=kernels)


@pytest.mark.parametrize("kernels", ["numpy", pytest.param("numba", marks=pytest.mark.long)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_table_whose_rows_are_all_pushed_is_a_dense_tensor(kernels: str, optimizer: Optimizer) -> None:
    """A single row, for the norm is that of a row in the one case and of the whole tensor in the other."""
    size = 64
    block = table(kernels, optimizer, size, "float64", initial="normal", scale=1.0)
    key = keys_of(3)
    dense = DenseBlock("w", Spec("float64", (size,), block.spec.optimizer), gathered(block, key)[0], 1)
    random = np.random.default_rng(1)
    for step in range(20):
        gradient, moment = random.standard_normal(size), Moment(step)
        block.swap(block.next_version(RowsGradient(key, gradient[None].copy()), moment))
        dense.swap(dense.next_version(gradient, moment))
        np.testing.assert_allclose(gathered(block, key)[0], dense.values, 1e-9, 1e-9)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("initial", ["zeros", "uniform", "normal"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_values_are_of_seed_and_key(kernels: str, initial: str, dtype: str) -> None:
    reference = table("numpy", Adam(), 7, dtype, initial=initial, scale=0.3, seed=-4)
    block = table(kernels, Adam(), 7, dtype, initial=initial, scale=0.3, seed=-4)
    keys = np.random.default_rng(1).integers(0, 2**64, 5000, np.uint64)
    before = gathered(block, keys)
    assert before.tobytes() == gathered(reference, keys).tobytes()
    assert block.rows == 0
    block.next_version(
        gradient_of(block, keys[::-2].copy(), 1.0), Moment()
    )  # makes rows; is not put in place
    assert block.rows == 2500
    assert gathered(block, keys).tobytes() == before.tobytes()


@pytest.mark.parametrize("kernels", BOTH)
def test_initial_values_are_distributed_as_they_say(kernels: str) -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    normal = gathered(table(kernels, Add(), 10, "float64", initial="normal", scale=2.0, seed=1), keys)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 2.0) < 0.02
    assert abs((np.abs(normal) > 4.0).mean() - 0.0455) < 0.002
    assert abs((normal**4).mean() / 16 - 3.0) < 0.1
    assert abs(np.corrcoef(normal.T) - np.eye(10)).max() < 0.03
    uniform = gathered(table(kernels, Add(), 10, "float64", initial="uniform", scale=2.0, seed=1), keys)
    assert np.abs(uniform).max() <= 2.0
    np.testing.assert_allclose(np.histogram(uniform, 8, (-2, 2))[0] / uniform.size, 1 / 8, atol=0.004)


@pytest.mark.parametrize("kernels", BOTH)
def test_no_key_is_lost_while_the_table_grows(kernels: str) -> None:
    block = table(kernels, Add(), 1, "float64")
    random = np.random.default_rng(3)
    keys = random.integers(0, 2**64, 150_000, np.uint64)
    for begin in range(0, keys.size, 10_000):
        piece = keys[begin : begin + 10_000]
        push(block, piece, piece.astype(np.float64)[:, None])
        known = keys[random.integers(0, begin + 10_000, 5000)]
        np.testing.assert_array_equal(gathered(block, known)[:, 0], known.astype(np.float64))
    assert block.rows == np.unique(keys).size
    np.testing.assert_array_equal(gathered(block, keys)[:, 0], keys.astype(np.float64))


@pytest.mark.parametrize("kernels", BOTH)
def test_keys_that_share_a_place_in_the_index(kernels: str) -> None:
    """Keys that begin at the same entry of the same segment are found one after the other."""
    from protocol.tables import hash_keys

    candidates = np.arange(6_000_000, dtype=np.uint64)
    hashes = hash_keys(candidates)
    same = candidates[(hashes >> np.uint64(40)) & np.uint64(1023) == 5]
    same = same[hash_keys(same) & np.uint64(60) == 60]  # the last line: they go on at the first
    assert same.size > 300
    block = table(kernels, Add(), 1)
    push(block, same, np.arange(same.size)[:, None])
    np.testing.assert_array_equal(gathered(block, same)[:, 0], np.arange(same.size))
    block.remove(same[::2])
    expected = np.where(np.arange(same.size) % 2, np.arange(same.size), 0)
    np.testing.assert_array_equal(gathered(block, same)[:, 0], expected)


@pytest.mark.parametrize("kernels", BOTH)
def test_rows_that_were_removed_begin_anew(kernels: str) -> None:
    block = table(kernels, Adagrad(0.1), initial="uniform", scale=1.0)
    keys = np.arange(1000, dtype=np.uint64)
    fresh = gathered(block, keys)
    push(block, keys, 1.0)
    once = gathered(block, keys)
    block.remove(np.append(keys[:500], keys[:10] + np.uint64(5000)))
    assert block.rows == 500
    assert gathered(block, keys[:500]).tobytes() == fresh[:500].tobytes()
    push(block, keys[:250], 1.0)
    push(block, keys[:100] + np.uint64(7000), 1.0)
    assert gathered(block, keys[:250]).tobytes() == once[:250].tobytes()
    assert block.rows == 850
    assert gathered(block, keys[500:]).tobytes() == once[500:].tobytes()


@pytest.mark.parametrize("kernels", BOTH)
def test_put_is_the_inverse_of_a_version(kernels: str) -> None:
    block, copy = (table(kernels, Adam(), 4, initial="normal", scale=0.1) for _ in range(2))
    keys = np.random.default_rng(1).integers(0, 2**64, 40_000, np.uint64)
    for _ in range(2):
        version = push(block, keys, 1.0)
        copy.put(version.keys, version.records)
    assert gathered(copy, keys).tobytes() == gathered(block, keys).tobytes()
    copy.put(keys_of(5, 5), np.arange(2 * copy.width, dtype=np.float32).reshape(2, -1))
    assert gathered(copy, keys_of(5)).tolist() == [[13.0, 14.0, 15.0, 16.0]]


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", [Add(), SGD(0.1, clip_value=1.0), Adam(), FTRL()], ids=repr)
def test_what_is_not_finite_is_refused_and_changes_nothing(
    kernels: str, bad: float, optimizer: Optimizer
) -> None:
    block = table(kernels, optimizer, initial="uniform", scale=1.0)
    keys = keys_of(5, 6, 7, 5)
    push(block, keys, 1.0)
    before = gathered(block, np.arange(10, dtype=np.uint64))
    gradient = gradient_of(block, keys_of(6, 9, 6, 5), 1.0)
    gradient.values[2, 1] = bad
    with pytest.raises(NotFinite, match="users"):
        block.next_version(gradient, Moment())
    assert block.version == 1
    assert gathered(block, np.arange(10, dtype=np.uint64)).tobytes() == before.tobytes()


@pytest.mark.parametrize("kernels", BOTH)
def test_a_sum_that_overflows_is_refused(kernels: str) -> None:
    block = table(kernels, Add())
    push(block, keys_of(1), 3e38)
    for keys in (keys_of(1), keys_of(2, 2)):
        with pytest.raises(NotFinite):
            block.next_version(gradient_of(block, keys, 3e38), Moment())
    assert gathered(block, keys_of(1, 2))[:, 0].tolist() == [np.float32(3e38), 0]


@pytest.mark.parametrize("kernels", BOTH)
def test_delay_is_made_up_for_where_it_is_known_what_was_read(kernels: str) -> None:
    block = table(kernels, DCSGD(0.5, lam=2.0), dim=1)
    block.put(keys_of(1, 2), np.array([[1.0], [1.0]], np.float32))
    backup = np.array([[0.25], [np.nan]], np.float32)
    block.swap(block.next_version(gradient_of(block, keys_of(1, 2), 1.0), Moment(), backup))
    assert gathered(block, keys_of(1, 2)).tolist() == [[1 - 0.5 * (1 + 2.0 * 0.75)], [0.5]]


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("dim", [1, 3, 20, 40])
def test_keys_that_crowd_in_one_line_of_the_index_are_found(kernels: str, dim: int) -> None:
    keys = np.arange(500_000, dtype=np.uint64)
    hashes = hash_keys(keys)
    last_line = (hashes & np.uint64(63)) // np.uint64(LINE) == 63 // LINE  # the search goes on at the first
    crowd = keys[last_line & (segments_of(hashes) == 0)][:26]
    assert crowd.size == 26
    there = crowd[:20]
    block = table(kernels, Add(), dim)
    push(block, there, np.arange(1, 21)[:, None])
    assert block.rows == 20
    which = np.random.default_rng(0).integers(0, crowd.size, 1500)  # in several of the kernels' blocks
    expected = np.where(which < 20, which + 1, 0)
    assert (gathered(block, crowd[which]) == expected[:, None]).all()


def test_keys_of_other_shards_are_refused() -> None:
    block = table("numpy", Add(), start=100, stop=200)
    keys = np.arange(100_000, dtype=np.uint64)
    slots = hash_slots(keys)
    ours = (slots >= 100) & (slots < 200)
    block.check_keys(keys[ours])
    block.check_keys(keys_of())
    stray = keys[~ours][0]
    with pytest.raises(BadRequest, match=f"keys={stray}"):
        block.check_keys(np.append(keys[ours], stray))
    with pytest.raises(BadRequest, match=f"keys={stray}"):
        block.check_keys(np.append(np.resize(keys[ours], HASHED), stray))
    table("numpy", Add()).check_keys(keys)


async def test_long_updates_leave_the_event_loop() -> None:
    keys = np.arange(50_000, dtype=np.uint64)
    with ThreadPoolExecutor(1) as threads:
        block = table("numba", Adagrad(0.1))
        assert not block.is_long(100)
        assert block.is_long(keys.size)
        for some in (keys[:100], keys):
            await block.check(gradient_of(block, some, 1.0), threads)
            with pytest.raises(NotFinite):
                await block.check(gradient_of(block, some, math.nan), threads)
            version = await block.next_version_in_threads(gradient_of(block, some, 1.0), Moment(), threads)
            block.swap(version)
    other = table("numba", Adagrad(0.1))
    push(other, keys[:100], 1.0)
    push(other, keys, 1.0)
    assert gathered(block, keys).tobytes() == gathered(other, keys).tobytes()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Spec("float16", (HASH_SLOTS,), spec_of(Add()), Table(3)), "dtype"),
        (Spec("int64", (HASH_SLOTS,), spec_of(Add()), Table(3)), "dtype"),
        (Spec("float32", (5,), spec_of(Add()), Table(3)), "shape"),
        (Spec("float32", (HASH_SLOTS,), spec_of(Add())), "table"),
        (Spec("float32", (HASH_SLOTS,), OptimizerSpec("magic", ()), Table(3)), "optimizer"),
    ],
)
def test_what_no_table_can_be_made_of(spec: Spec, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_table(spec)
    assert caught.value.field == field
