import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import (
    BadRequest,
    BadTensor,
    Fenced,
    FrameTooLarge,
    NotAMember,
    NotFinite,
    PSError,
    SpecMismatch,
    UnknownTensor,
)
from protocol.optimizers import SGD, Add
from protocol.tables import HASH_SLOTS, KNOWN_FROM, Normal, Uniform, Zeros
from psserver.arriving import KnownKeys
from psworker.client import Client, connect
from psworker.rows import SparseGradient
from psworker.tables import SparseTable, spec_of_table
from tests.cluster import EAGER, holds, put_out, running_cluster, workers
from tests.faults.servers import proxied_cluster

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

Array = npt.NDArray[Any]

DIM = 4
COUNT = 3 * KNOWN_FROM
SHARDS = pytest.mark.parametrize("shards", [1, 2, 3])
STALENESS = pytest.mark.parametrize("staleness", [math.inf, 0.0, 2.0])


@asynccontextmanager
async def client(shards: int = 1, **settings: Any) -> AsyncIterator[Client]:
    async with running_cluster(shards) as cluster, connect(cluster.address, **settings) as ps:
        yield ps


def drawn(count: int = COUNT, seed: int = 0) -> npt.NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, (1 << 64) - 1, count, np.uint64, endpoint=True)


def ones(count: int, value: float = 1.0, dtype: str = "float32") -> Array:
    return np.full((count, DIM), value, dtype)


@SHARDS
@STALENESS
async def test_rows_are_pushed_and_pulled(shards: int, staleness: float) -> None:
    async with client(shards, staleness=staleness) as ps:
        emb = await ps.create_sparse("emb", DIM, SGD(lr=0.5), Normal(0.01), seed=3)
        keys = drawn()
        before = await emb.pull(keys)
        assert (before.dtype, before.shape) == (np.dtype("float32"), (COUNT, DIM))
        assert 0 < np.abs(before).max() < 0.1
        after = await emb.push_pull(keys, ones(COUNT))
        np.testing.assert_allclose(after, before - 0.5, rtol=1e-6)
        await emb.push(keys[:2], ones(2))
        other = await emb.push_pull(keys[1:3], ones(2), keys[[0, 1, 2, 0]])
        share = 0.5 if staleness == 0 else 1.0  # in lockstep the two pushes are one step's mean
        moved = 0.5 + 0.5 * share * np.array([[1.0], [2.0], [1.0], [1.0]])
        np.testing.assert_allclose(other, before[[0, 1, 2, 0]] - moved, rtol=1e-5)
        np.testing.assert_array_equal(await emb.pull(keys[2::-1]), other[2::-1])
        with pytest.raises(ValueError, match="read-only"):
            other[0] = 1
        assert ps.clock == 2


@SHARDS
@STALENESS
async def test_tables_and_tensors_in_one_request(shards: int, staleness: float) -> None:
    async with client(shards, staleness=staleness) as ps:
        await ps.create("w", np.zeros(50_000, np.float32), Add())
        for name in ("emb", "bias"):
            await ps.create_sparse(name, DIM, Add())
        keys, w = drawn(), np.ones(50_000, np.float32)
        rows = SparseGradient(keys, ones(COUNT))
        await ps.push({"emb": rows, "w": w, "bias": SparseGradient(keys[:5], ones(5, 2.0))})
        new = await ps.push_pull({"w": w, "emb": rows})
        assert list(new) == ["w", "emb"]
        assert (new["w"] == 2.0).all()
        assert (new["emb"] == 2.0).all()
        assert new["emb"].shape == (COUNT, DIM)
        new = await ps.push_pull({"emb": rows}, {"bias": keys[:6].reshape(2, 3), "w": None, "emb": None})
        assert list(new) == ["bias", "w", "emb"]
        assert new["bias"][..., 0].tolist() == [[2.0, 2.0, 2.0], [2.0, 2.0, 0.0]]
        assert (new["emb"] == 3.0).all()
        assert list(await ps.push_pull({"emb": rows, "w": w}, ["emb"])) == ["emb"]
        pulled = await ps.pull({"w": None, "emb": keys[0], "bias": []})
        assert {name: value.shape for name, value in pulled.items()} == {
            "w": (50_000,),
            "emb": (DIM,),
            "bias": (0, DIM),
        }
        assert pulled["emb"].tolist() == [4.0] * DIM
        new = await ps.push_pull({}, {"emb": keys})
        assert (new["emb"] == 4.0).all()


@SHARDS
@STALENESS
async def test_gradients_of_a_key_that_comes_twice_are_summed(shards: int, staleness: float) -> None:
    async with client(shards, staleness=staleness) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        keys = np.repeat(drawn(100), 3)[np.random.default_rng(1).permutation(300)]
        new = await emb.push_pull(keys, ones(300))
        assert (new == 3.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", [None, "float32", "float16", "bfloat16"])
@SHARDS
async def test_rows_travel_as_what_was_asked_for(shards: int, values: str | None, dtype: str) -> None:
    async with client(shards, values=values) as ps:
        emb = await ps.create_sparse("emb", DIM, Add(), dtype=dtype)
        keys = drawn(1000)
        new = await emb.push_pull(keys, ones(1000, 1 / 3, dtype))
        assert new.dtype == np.dtype(dtype)
        error = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}.get(values or dtype, 0)
        np.testing.assert_allclose(new, 1 / 3, rtol=error * (dtype != (values or dtype)) or 1e-7)
        sent, received = ps.traffic.sent, ps.traffic.received
        await emb.push_pull(keys, ones(1000, 1 / 3, dtype))
        width = {"bfloat16": 2, "float16": 2, "float32": 4}.get(values or dtype, 8)
        for grown in (ps.traffic.sent - sent, ps.traffic.received - received):
            assert 0 <= grown - 1000 * DIM * width < 2000


@pytest.mark.parametrize("values", ["int8", "float8", "", "FLOAT16"])
async def test_what_rows_cannot_travel_as(values: str) -> None:
    with pytest.raises(BadRequest) as caught:
        async with client(values=values):
            raise AssertionError("it is refused before anybody is asked")
    assert (caught.value.field, caught.value.value) == ("values", values)


@SHARDS
async def test_keys_are_sent_once(shards: int) -> None:
    async with client(shards) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        keys = drawn(10_000)
        sent = ps.traffic.sent
        await emb.pull(keys)
        assert 8 * 10_000 <= ps.traffic.sent - sent < 8 * 10_000 + 1000
        sent = ps.traffic.sent
        await emb.pull(keys)
        await emb.pull(keys.copy())
        assert ps.traffic.sent - sent < 2000
        assert (await emb.push_pull(keys, ones(10_000)) == 1.0).all()
        assert ps.traffic.sent - sent < 4 * DIM * 10_000 + 5000
        keys[0] += np.uint64(1)  # it is another list now
        assert (await emb.pull(keys))[:2, 0].tolist() == [0.0, 1.0]


@SHARDS
async def test_sorted_keys_are_sent_as_differences(shards: int) -> None:
    async with client(shards) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        keys = np.arange(5, 10_005)
        sent = ps.traffic.sent
        await emb.pull(keys)
        assert ps.traffic.sent - sent < 10_000 + 1000
        assert (await emb.push_pull(keys, ones(10_000), keys[::-1]) == 1.0).all()


def forget_all(ps: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all servers of this process forget all keys but the last, as they do those not used for long."""
    put = KnownKeys.put

    def put_alone(known: KnownKeys, digest: str, keys: npt.NDArray[np.uint64]) -> None:
        known.__init__()  # type: ignore[misc]
        put(known, digest, keys)

    monkeypatch.setattr(KnownKeys, "put", put_alone)


@SHARDS
@STALENESS
async def test_keys_that_servers_have_forgotten_are_sent_again(
    shards: int, staleness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(shards, staleness=staleness) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        await ps.create("w", np.zeros(3), Add())
        keys, other = drawn(), drawn(seed=1)
        forget_all(ps, monkeypatch)
        total = 0.0
        for step in (1, 2, 3):
            await emb.pull(keys)
            assert (await emb.pull(other) == 0.0).all()  # in the place of the former
            await emb.push(keys, ones(COUNT))
            await emb.pull(other)
            both = await ps.push_pull({"emb": SparseGradient(keys, ones(COUNT)), "w": np.ones(3)})
            total += 2
            assert (both["emb"] == total).all()
            assert (both["w"] == step).all()


@pytest.mark.parametrize("staleness", [math.inf, 0.0])
async def test_rows_across_broken_connections(staleness: float) -> None:
    async with proxied_cluster(2) as cluster, connect(cluster.address, staleness=staleness) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        keys = drawn()
        for total in range(1, 9):
            under_way = asyncio.create_task(emb.push_pull(keys, ones(COUNT)))
            for _ in range(total):
                await asyncio.sleep(0)
            for proxy in cluster.proxies:
                proxy.cut()
            assert (await under_way == total).all()
        assert ps.recovery.reconnects >= 8


@STALENESS
async def test_several_workers_at_one_table(staleness: float) -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=staleness) as (a, b):
        tables = [await ps.create_sparse("emb", DIM, Add()) for ps in (a, b)]
        keys = drawn()
        lists = (keys[:100], keys[50:])  # they have some in common
        pushes = [
            table.push_pull(mine, ones(mine.size), keys) for table, mine in zip(tables, lists, strict=True)
        ]
        await asyncio.gather(*pushes)
        found = await tables[0].pull(keys)
        assert (found[:50] == 1.0).all()
        assert (found[50:100] == 2.0).all()
        assert (found[100:] == 1.0).all()


@SHARDS
async def test_a_step_without_rows_counts_in_the_mean(shards: int) -> None:
    async with running_cluster(shards) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        emb, same = [await ps.create_sparse("emb", DIM, SGD(1.0)) for ps in (a, b)]
        pushes = emb.push_pull([7], ones(1, 4.0)), same.push_pull([], ones(0), [7], weight=3.0)
        one, other = await asyncio.gather(*pushes)
        assert one.tolist() == other.tolist() == [[-1.0] * DIM]


# --- what is refused


@SHARDS
@pytest.mark.parametrize("staleness", [math.inf, 0.0])
async def test_what_is_refused_changes_nothing(shards: int, staleness: float) -> None:
    async with client(shards, staleness=staleness) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        await ps.create("w", [1.0], Add())
        keys = drawn()
        await emb.push_pull(keys, ones(COUNT))
        spoilt = ones(COUNT)
        spoilt[-1, -1] = math.nan
        bad: list[tuple[Any, type[PSError], str, str]] = [
            ({"emb": SparseGradient(keys, spoilt)}, NotFinite, "", ""),
            ({"emb": SparseGradient(keys, ones(COUNT, math.inf))}, NotFinite, "", ""),
            ({"emb": SparseGradient(keys, ones(COUNT - 1))}, BadTensor, "emb", f"({COUNT - 1}, {DIM})"),
            ({"emb": SparseGradient(keys, ones(COUNT, 1.0, "float64"))}, BadTensor, "emb", "float64"),
            ({"emb": SparseGradient(-np.arange(COUNT), ones(COUNT))}, BadRequest, "keys", f"-{COUNT - 1}"),
            ({"emb": SparseGradient(np.arange(COUNT) / 2, ones(COUNT))}, BadRequest, "keys", "float64"),
            ({"emb": ones(COUNT)}, BadTensor, "emb", "ndarray"),
            ({"w": SparseGradient([1], ones(1))}, BadTensor, "w", "SparseGradient"),
            ({"x": SparseGradient([1], ones(1))}, UnknownTensor, "name", "x"),
        ]
        for gradients, error, field, text in bad:
            for call in (ps.push, ps.push_pull):
                with pytest.raises(error) as caught:
                    await call({"w": [1.0]} | gradients)
                assert not field or caught.value.field == field
                assert text in caught.value.value
                assert (await emb.pull(keys) == 1.0).all()
                assert (await ps.pull("w")).tolist() == [1.0]
        await emb.push_pull(keys, ones(COUNT))
        assert (await emb.pull(keys) == 2.0).all()
        assert ps.clock == 2


async def test_what_is_too_much_for_one_request_is_refused_by_its_size() -> None:
    async with running_cluster(max_frame=100_000) as cluster, connect(cluster.address) as ps:
        emb, keys = await ps.create_sparse("emb", DIM, Add()), drawn(12_000)
        pushed = {"emb": SparseGradient(keys, ones(12_000))}
        for call in (ps.push(pushed), ps.push_pull(pushed), emb.pull(drawn(12_501))):
            with pytest.raises(FrameTooLarge) as caught:
                await call
            assert caught.value.field == "payload length"
            assert "100000" in caught.value.message
        with pytest.raises(FrameTooLarge):  # whose answer would be
            await emb.pull(keys)
        assert (await emb.push_pull(keys[:3000], ones(3000)) == 1.0).all()


async def test_pulls_that_make_no_sense() -> None:
    async with client(2) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        await ps.create("w", [1.0], Add())
        bad: list[tuple[Any, type[PSError], str, str]] = [
            ("emb", BadRequest, "names", "emb"),
            (["w", "emb"], BadRequest, "names", "emb"),
            ({"emb": None}, BadRequest, "names", "emb"),
            ({"emb": [-1]}, BadRequest, "keys", "-1"),
            ({"emb": [1.5]}, BadRequest, "keys", "1.5"),
            ({"x": [1]}, UnknownTensor, "name", "x"),
        ]
        for names, error, field, text in bad:
            for call in (ps.pull(names), ps.push_pull({}, [names] if isinstance(names, str) else names)):
                with pytest.raises(error) as caught:
                    await call
                assert (caught.value.field, caught.value.value) == (field, text)
        with pytest.raises(UnknownTensor):
            await ps.table("x").pull([1])
        with pytest.raises(BadRequest):
            await ps.table("w").pull([1])
        with pytest.raises(BadTensor):
            await ps.table("w").push([1], ones(1))
        assert ps.clock == 0
        assert (await emb.pull([1])).tolist() == [[0.0] * DIM]


async def test_an_observer_pulls_rows_and_pushes_none() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        await emb.push([1, 2], ones(2))
        async with connect(cluster.address, observe=True) as observer:
            assert (await observer.table("emb").pull([2, 3]))[:, 0].tolist() == [1.0, 0.0]
            with pytest.raises(NotAMember):
                await observer.table("emb").push([1], ones(1))
        assert (await emb.pull([1, 2]) == 1.0).all()


async def test_a_worker_that_was_out_goes_on_with_a_table() -> None:
    async with running_cluster(2, failure=EAGER) as cluster, connect(cluster.address) as ps:
        emb = await ps.create_sparse("emb", DIM, Add())
        keys = drawn()
        await emb.push(keys, ones(COUNT))
        await put_out(cluster, ps)
        await holds(lambda: ps._fenced)
        with pytest.raises(Fenced):
            await emb.push(keys, ones(COUNT))
        assert (await emb.pull(keys) == 1.0).all()
        assert (await emb.push_pull(keys, ones(COUNT)) == 2.0).all()


# --- creating


@SHARDS
async def test_what_rows_begin_with_follows_from_seed_and_key(shards: int) -> None:
    keys = drawn(1000)
    async with client(shards) as ps:
        zeros = await ps.create_sparse("zeros", DIM)
        assert not (await zeros.pull(keys)).any()
        normal = await (await ps.create_sparse("normal", 16, init=Normal(2.0), seed=1)).pull(keys)
        assert (normal.mean(), normal.std()) == (pytest.approx(0, abs=0.1), pytest.approx(2.0, rel=0.05))
        same = await (await ps.create_sparse("same", 16, init=Normal(2.0), seed=1)).pull(keys)
        np.testing.assert_array_equal(same, normal)
        other = await (await ps.create_sparse("other", 16, init=Normal(2.0), seed=2)).pull(keys)
        assert not np.isclose(other, normal).any(axis=1).all()
        uniform = await (await ps.create_sparse("uniform", DIM, init=Uniform(0.5), dtype="float64")).pull(
            keys
        )
        assert uniform.dtype == np.float64
        assert 0.45 < np.abs(uniform).max() <= 0.5


async def test_a_table_is_made_once_and_found_by_others() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as a, connect(cluster.address) as b:
        first = await a.create_sparse("emb", DIM, Add(), Normal(0.1), seed=5)
        await first.push([1], ones(1))
        again = await b.create_sparse("emb", DIM, Add(), Normal(0.1), seed=5)
        np.testing.assert_array_equal(await again.pull([1]), await first.pull([1]))
        info = (await b.tensors())["emb"]
        assert info.spec.shape == (HASH_SLOTS,)
        assert info.spec.table is not None
        assert (info.spec.table.dim, info.spec.table.scale, info.spec.table.seed) == (DIM, 0.1, 5)
        assert [(block.start, block.stop) for block in info.blocks] == [(0, 8192), (8192, 16384)]
        for change in (
            {"dim": 8},
            {"seed": 6},
            {"optimizer": SGD()},
            {"dtype": "float64"},
            {"init": Zeros()},
        ):
            settings: dict[str, Any] = {
                "dim": DIM,
                "optimizer": Add(),
                "init": Normal(0.1),
                "seed": 5,
                **change,
            }
            with pytest.raises(SpecMismatch):
                await b.create_sparse("emb", **settings)
        with pytest.raises(SpecMismatch):
            await b.create("emb", np.zeros(HASH_SLOTS, np.float32), Add())


BAD_SETTINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"dim": 0}, "dim", "0"),
    ({"dim": -1}, "dim", "-1"),
    ({"dim": 1 << 17}, "dim", "131072"),
    ({"dim": 2.0}, "dim", "2.0"),
    ({"dim": True}, "dim", "True"),
    ({"seed": -1}, "seed", "-1"),
    ({"seed": 1 << 63}, "seed", str(1 << 63)),
    ({"dtype": "float16"}, "dtype", "float16"),
    ({"dtype": "int32"}, "dtype", "int32"),
    ({"init": Normal(-1.0)}, "scale", "-1.0"),
    ({"init": Normal(math.nan)}, "scale", "nan"),
    ({"init": Uniform(math.inf)}, "scale", "inf"),
    ({"init": 0.01}, "init", "0.01"),
    ({"admit_after": 0}, "admit_after", "0"),
    ({"admit_after": 256}, "admit_after", "256"),
    ({"expire_after": -1.0}, "expire_after", "-1.0"),
    ({"expire_after": math.inf}, "expire_after", "inf"),
    ({"capacity": -1}, "capacity", "-1"),
    ({"capacity": 1.5}, "capacity", "1.5"),
]


@pytest.mark.parametrize(("settings", "field", "text"), BAD_SETTINGS)
def test_settings_of_no_table_are_refused_by_name(settings: dict[str, Any], field: str, text: str) -> None:
    usual: dict[str, Any] = {"dim": 4, "dtype": "float32", "optimizer": Add(), "init": Zeros()}
    with pytest.raises(BadRequest) as caught:
        spec_of_table(**usual | settings)
    assert (caught.value.field, caught.value.value) == (field, text)


async def test_a_handle_is_one_of_a_name() -> None:
    async with client() as ps:
        await ps.create_sparse("emb", DIM, Add())
        handle = ps.table("emb")
        assert isinstance(handle, SparseTable)
        assert handle.name == "emb"
        await handle.push(7, ones(1)[0])
        assert (await handle.pull(7)).tolist() == [1.0] * DIM
