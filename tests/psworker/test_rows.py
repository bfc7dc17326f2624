import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffers import BufferPool
from protocol.compression.halves import narrow, widen
from protocol.compression.keys import decode_keys, digest_of, parts_of_rows, parts_of_wanted
from protocol.errors import BadRequest, BadTensor, NotFinite
from protocol.messages import Block, Spec, TensorInfo
from protocol.optimizers import Add, spec_of
from protocol.tables import HASH_SLOTS, Table
from psworker.router import Pulls, plan_pull, plan_push
from psworker.rows import Outgoing, RowPlans, SparseGradient

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

Array = npt.NDArray[Any]

POOL = BufferPool(0)
PLANS = RowPlans(POOL, None)
DIM = 3
EMPTY = digest_of(np.zeros(0, np.uint64))


def table(shards: int = 1, name: str = "emb", dtype: str = "float32") -> TensorInfo:
    bounds = [HASH_SLOTS * number // shards for number in range(shards + 1)]
    blocks = tuple(Block(number, bounds[number], bounds[number + 1]) for number in range(shards))
    return TensorInfo(name, Spec(dtype, (HASH_SLOTS,), spec_of(Add()), Table(DIM)), blocks)


def dense(size: int, shard: int, name: str = "w") -> TensorInfo:
    return TensorInfo(name, Spec("float32", (size,), spec_of(Add())), (Block(shard, 0, size),))


class Rowed:
    """What a server holds of a table: rows by keys, which begin with the key's last digit."""

    def __init__(self) -> None:
        self.sums: dict[int, Array] = {}

    def push(self, out: Outgoing, dtype: str, skip: int = 0) -> None:
        place = skip
        for rows in out.rows:
            keys = decode_keys(rows.coding, rows.keys, out.arrays[place])
            assert rows.digest == digest_of(keys)
            values = np.empty(rows.keys * DIM, dtype)
            widen(out.arrays[place + 1], rows.values, values)
            for key, row in zip(keys.tolist(), values.reshape(-1, DIM), strict=True):
                self.sums[key] = self.sums.get(key, np.full(DIM, key % 10, dtype)) + row
            place += 2
        assert place == len(out.arrays) == len(out.parts)
        assert [*out.parts[skip:]] == parts_of_rows(out.rows, [DIM] * len(out.rows))

    def pull(self, asked: Outgoing, into: list[Array], dtype: str) -> None:
        assert asked.parts == parts_of_wanted(asked.rows)
        for rows, coded, target in zip(asked.rows, asked.arrays, into, strict=True):
            keys = decode_keys(rows.coding, rows.keys, coded).tolist()
            found = np.array([self.sums.get(key, np.full(DIM, key % 10)) for key in keys], dtype)
            target[...] = narrow(found.reshape(-1), rows.values, rows.name)


def answered(servers: dict[int, Rowed], pulls: Pulls, dtype: str) -> dict[str, Array]:
    for shard, asked in pulls.wanted.items():
        servers[shard].pull(asked, pulls.into[shard], dtype)
    return pulls.finish(POOL)


key_lists = st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 30), max_size=40)


@given(
    st.integers(1, 5),
    key_lists,
    key_lists,
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([None, "float16", "bfloat16", "float32", "float64"]),
)
def test_rows_on_any_number_of_shards_are_as_on_none(
    shards: int, pushed: list[int], wanted: list[int], dtype: str, values: str | None
) -> None:
    info, plans = table(shards, dtype=dtype), RowPlans(POOL, values)
    gradient = (np.arange(len(pushed) * DIM) % 64).astype(dtype).reshape(-1, DIM)
    servers = {shard: Rowed() for shard in range(shards)}
    plan = plan_push([info], {"emb": SparseGradient(pushed, gradient)}, plans)
    assert set(plan) == set(servers)  # also those that none of the keys is for
    for shard, out in plan.items():
        servers[shard].push(out, dtype)
    expected: dict[int, Array] = {}
    for key, row in zip(pushed, gradient, strict=True):
        expected[key] = expected.get(key, np.full(DIM, key % 10, dtype)) + row
    for keys in (wanted, pushed):
        found = answered(servers, plan_pull([info], POOL, plans, {"emb": keys}), dtype)["emb"]
        assert (found.dtype, found.shape, found.flags.writeable) == (np.dtype(dtype), (len(keys), DIM), False)
        right = np.array([expected.get(key, np.full(DIM, key % 10)) for key in keys], dtype).reshape(-1, DIM)
        np.testing.assert_allclose(found, right, rtol=2**-8 if values else 0)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("values", [None, "bfloat16"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 0)])
def test_rows_have_the_shape_of_the_keys(shards: int, values: str | None, shape: tuple[int, ...]) -> None:
    info, plans = table(shards), RowPlans(POOL, values)
    keys = np.arange(math.prod(shape)).reshape(shape)
    servers = {shard: Rowed() for shard in range(shards)}
    found = answered(servers, plan_pull([info], POOL, plans, {"emb": keys}), "float32")["emb"]
    assert found.shape == (*shape, DIM)
    np.testing.assert_array_equal(found[..., 0], keys % 10)
    for gradient in (found + 1, (found + 1).reshape(-1, DIM)):
        plan_push([info], {"emb": SparseGradient(keys, gradient)}, plans)


def test_on_one_shard_nothing_is_copied() -> None:
    keys, gradient = np.arange(9, dtype=np.uint64)[::-1].copy(), np.ones((9, DIM), np.float32)
    (out,) = plan_push([table()], {"emb": SparseGradient(keys, gradient)}, PLANS).values()
    assert all(np.shares_memory(a, b) for a, b in zip(out.arrays, (keys, gradient), strict=True))
    pulls = plan_pull([table()], POOL, PLANS, {"emb": keys})
    assert np.shares_memory(pulls.into[0][0], pulls.arrays["emb"])
    assert np.shares_memory(pulls.wanted[0].arrays[0], keys)


def test_shards_without_a_key_are_asked_nothing_but_are_pushed_to() -> None:
    info = table(4)
    assert plan_pull([info], POOL, PLANS, {"emb": []}).into == {}
    pulls = plan_pull([info], POOL, PLANS, {"emb": [5]})
    (shard,) = pulls.into
    for keys in ([], [5]):
        plan = plan_push([info], {"emb": SparseGradient(keys, np.ones((len(keys), DIM), np.float32))}, PLANS)
        assert list(plan) == [0, 1, 2, 3]
        for number, out in plan.items():
            (rows,) = out.rows
            assert rows.keys == (number == shard and len(keys))
            assert rows.keys or (rows.coding, rows.digest) == ("raw", EMPTY)


def test_dense_gradients_come_before_rows() -> None:
    infos = [table(2, "a"), dense(4, 1), table(1, "b")]
    keys = np.arange(100)
    gradients: dict[str, Any] = {
        "a": SparseGradient(keys, np.ones((100, DIM), np.float32)),
        "w": np.ones(4, np.float32),
        "b": SparseGradient(keys, np.ones((100, DIM), np.float32)),
    }
    plan = plan_push(infos, gradients, PLANS)
    assert [part.name for part in plan[1].parts] == ["w", "a", "a"]
    assert [part.name for part in plan[0].parts] == ["a", "a", "b", "b"]
    Rowed().push(plan[1], "float32", skip=1)
    Rowed().push(plan[0], "float32")
    pulls = plan_pull(infos, POOL, PLANS, {"a": keys, "b": [3]})
    assert list(pulls.arrays) == ["a", "w", "b"]
    assert pulls.names == {1: ["w"]}
    assert [rows.name for rows in pulls.wanted[0].rows] == ["a", "b"]
    assert [array.size for array in pulls.into[1]] == [4, DIM * pulls.wanted[1].rows[0].keys]


BAD_GRADIENTS: list[tuple[Any, type[Exception], str, str]] = [
    (np.ones((2, DIM), np.float32), BadTensor, "emb", "ndarray"),
    (([1, 2], np.ones((2, DIM), np.float32)), BadTensor, "emb", "tuple"),
    (None, BadTensor, "emb", "NoneType"),
    (SparseGradient([1, -2], np.ones((2, DIM), np.float32)), BadRequest, "keys", "-2"),
    (SparseGradient([1, 2.5], np.ones((2, DIM), np.float32)), BadRequest, "keys", "2.5"),
    (SparseGradient(np.array([1.0, 2.0]), np.ones((2, DIM), np.float32)), BadRequest, "keys", "float64"),
    (SparseGradient(np.array([True, False]), np.ones((2, DIM), np.float32)), BadRequest, "keys", "bool"),
    (SparseGradient(np.array([1, 2], object), np.ones((2, DIM), np.float32)), BadRequest, "keys", "'O'"),
    (SparseGradient([1, 2], np.ones((2, DIM))), BadTensor, "emb", "float64"),
    (SparseGradient([1, 2], np.ones((2, DIM), np.float16)), BadTensor, "emb", "float16"),
    (SparseGradient([1, 2], np.ones((2, DIM), int)), BadTensor, "emb", "int64"),
    (SparseGradient([1, 2], np.ones((2, DIM), object)), BadTensor, "emb", "'O'"),
    (SparseGradient([1, 2], np.ones((3, DIM), np.float32)), BadTensor, "emb", "(3, 3)"),
    (SparseGradient([1, 2], np.ones((2, DIM + 1), np.float32)), BadTensor, "emb", "(2, 4)"),
    (SparseGradient([1, 2], np.ones(2 * DIM, np.float32)), BadTensor, "emb", "(6,)"),
    (SparseGradient([1, 2], np.float32(1)), BadTensor, "emb", "()"),
    (SparseGradient([[1, 2]], np.ones((2, 1, DIM), np.float32)), BadTensor, "emb", "(2, 1, 3)"),
]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("gradient", "error", "field", "text"), BAD_GRADIENTS)
def test_a_gradient_that_is_none_is_refused_by_name(
    gradient: Any, error: type[BadTensor], field: str, text: str, shards: int
) -> None:
    with pytest.raises(error) as caught:
        plan_push([table(shards)], {"emb": gradient}, PLANS)
    assert caught.value.field == field
    assert text in caught.value.value


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("shards", "values", "also_elsewhere"),
    [
        (3, None, False),
        (3, "bfloat16", False),
        (1, "bfloat16", False),
        (1, "float16", False),
        (1, None, True),
    ],
)
def test_what_no_server_could_refuse_in_time_is_checked_first(
    bad: float, shards: int, values: str | None, also_elsewhere: bool
) -> None:
    gradient = np.ones((5, DIM), np.float32)
    gradient[4, 2] = bad
    with pytest.raises(NotFinite) as caught:
        plan_push(
            [table(shards)],
            {"emb": SparseGradient(range(5), gradient)},
            RowPlans(POOL, values),
            also_elsewhere=also_elsewhere,
        )
    assert (caught.value.field, caught.value.value) == ("tensors", "emb")


def test_a_gradient_too_large_for_what_rows_travel_as_is_refused() -> None:
    gradient = np.full((1, DIM), 65520.0, np.float32)
    with pytest.raises(BadTensor) as caught:
        plan_push([table()], {"emb": SparseGradient([1], gradient)}, RowPlans(POOL, "float16"))
    assert (caught.value.field, caught.value.value) == ("values", "emb")


_NO_KEYS: list[dict[str, Any]] = [{}, {"emb": None}]


def test_tables_need_keys_and_dense_tensors_have_none() -> None:
    for keys in _NO_KEYS:
        with pytest.raises(BadRequest) as caught:
            plan_pull([table()], POOL, PLANS, keys)
        assert (caught.value.field, caught.value.value) == ("names", "emb")
    plan_pull([dense(3, 0)], POOL, PLANS, {"w": [1]})
    with pytest.raises(BadTensor) as bad:
        plan_push([dense(3, 0)], {"w": SparseGradient([1], [[1.0]])}, PLANS)
    assert (bad.value.field, bad.value.value) == ("w", "SparseGradient")
