"""Tensors that begin anew while their job runs."""

import asyncio
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from protocol.errors import BadRequest, BadTensor, Conflict, NotFinite
from protocol.messages import Empty, Reset, Set
from protocol.optimizers import DCSGD, FTRL, SGD, Adagrad, Adam, Momentum, Optimizer
from protocol.tables import Uniform
from protocol.tensors import Part
from psworker import SparseGradient
from psworker.asking import change
from psworker.client import Client, connect
from tests.cluster import durable_cluster, full, running_cluster
from tests.psserver.by_hand import worker_by_hand

SIZE = 40_000  # in a block on each of two shards
KEYS = np.arange(100, dtype=np.uint64)
OPTIMIZERS: list[Optimizer] = [SGD(0.1), Momentum(0.1), Adagrad(0.1), Adam(0.1), FTRL(0.1), DCSGD(0.1)]
WANTED: dict[str, Any] = {"w": None, "emb": KEYS}


def first() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.linspace(-1.0, 1.0, SIZE)


async def make(client: Client, optimizer: Optimizer) -> None:
    await client.create("w", first(), optimizer)
    await client.create_sparse("emb", 2, optimizer, Uniform(1.0), seed=3)


async def train(client: Client, steps: int) -> list[dict[str, Any]]:
    """Return what there is after each step, the first of which is as at the start."""
    found = [await client.pull(WANTED)]
    for step in range(steps):
        rows = SparseGradient(KEYS[step:], np.full((100 - step, 2), step + 1.0, np.float32))
        found.append(await client.push_pull({"w": np.full(SIZE, 1.0 + step), "emb": rows}, WANTED))
    return found


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
async def test_all_is_as_after_create(optimizer: Optimizer) -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as ps:
        await make(ps, optimizer)
        expected = await train(ps, 3)
        await ps.reset({"w": first(), "emb": None})
        assert sum(server._shard.load().rows for server in cluster.servers) == 0
        assert_same(await train(ps, 3), expected)


async def test_what_is_not_named_stays() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as ps:
        await make(ps, Adam(0.1))
        before = (await train(ps, 3))[-1]
        await ps.reset({"w": 2.0 * first()})
        after = await ps.pull(WANTED)
        np.testing.assert_array_equal(after["w"], 2.0 * first())
        np.testing.assert_array_equal(after["emb"], before["emb"])
        await ps.reset({"emb": None})
        assert (await ps.pull(WANTED))["emb"].tolist() != before["emb"].tolist()
        np.testing.assert_array_equal(await ps.pull("w"), 2.0 * first())


async def test_a_reset_comes_between_the_pushes_before_and_after_it() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as ps:
        await ps.create("w", np.zeros(2_000_000), SGD(1.0))  # computed in threads
        ones = np.ones(2_000_000)
        await asyncio.gather(
            ps.push({"w": ones}), ps.reset({"w": 10.0 * ones}), ps.push({"w": ones}), ps.push({"w": ones})
        )
        assert ((await ps.pull("w")) == 8.0).all()


@pytest.mark.parametrize("mode", ["snapshot", "log"])
async def test_it_outlives_the_servers(mode: Literal["snapshot", "log"], tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, mode) as cluster:
        async with connect(cluster.address) as ps:
            await make(ps, Adam(0.1))
            expected = await train(ps, 3)
            await cluster.checkpoint()
            await train(ps, 1)
            await ps.reset({"w": first(), "emb": None})
            assert_same(await train(ps, 1), expected[:2])
            if mode == "snapshot":
                await cluster.checkpoint()
            await cluster.kill(0, 1)
            await cluster.start()
        async with connect(cluster.address) as ps:
            np.testing.assert_array_equal((await ps.pull(WANTED))["emb"], expected[1]["emb"])
            assert_same([await ps.pull(WANTED)], expected[1:2])
            await ps.reset({"w": first(), "emb": None})
            assert_same(await train(ps, 3), expected)


async def test_a_retry_counts_once() -> None:
    async with (
        running_cluster() as cluster,
        connect(cluster.address) as ps,
        worker_by_hand(cluster.address, "hand", staleness=math.inf) as hand,
    ):
        await ps.create("w", full(4, 0.0), SGD(1.0))
        part = Part("w", "float32", 4)
        (connection,) = hand.connections
        for _ in range(2):
            reply, _ = await connection.request(Reset((part,), (), 1), (full(4, 5.0),))
            assert reply == Empty()
            await ps.push({"w": full(4, 1.0)})
        assert (await ps.pull("w")).tolist() == [3.0] * 4
        with pytest.raises(Conflict):
            await connection.request(Reset((part,), (), 1), (full(4, 6.0),))
        await connection.request(Reset((part,), (), 2), (full(4, 6.0),))
        assert (await ps.pull("w")).tolist() == [6.0] * 4


@pytest.mark.parametrize("staleness", [0, 2])
async def test_where_workers_are_kept_together_nothing_begins_anew(staleness: float) -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, staleness=staleness) as ps:
        await make(ps, SGD(0.1))
        with pytest.raises(BadRequest) as caught:
            await ps.reset({"w": first(), "emb": None})
        assert (caught.value.field, caught.value.value) == ("staleness", str(float(staleness)))
        before = await ps.pull(WANTED)
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await ps.reset({"w": -first(), "emb": None})  # numbers went on
        np.testing.assert_array_equal(await ps.pull("w"), -before["w"])


@pytest.mark.parametrize(
    ("values", "error", "field"),
    [
        ({"w": None}, BadRequest, "values"),
        ({"emb": np.zeros(3)}, BadRequest, "values"),
        ({"w": np.zeros(3)}, BadTensor, "w"),
        ({"w": np.full(SIZE, math.nan), "emb": None}, NotFinite, "tensors"),
        ({"v": [math.nan], "emb": None}, NotFinite, "tensors"),
    ],
)
async def test_what_cannot_be_begun_with_changes_nothing(
    values: dict[str, Any], error: type[Exception], field: str
) -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as ps:
        await make(ps, SGD(0.1))
        await ps.create("v", [1.0], SGD(0.1))
        before = (await train(ps, 2))[-1]
        with pytest.raises(error) as caught:
            await ps.reset(values)
        assert caught.value.field == field  # type: ignore[attr-defined]
        assert (await ps.pull("v")).tolist() == [1.0]
        np.testing.assert_array_equal(await ps.pull("w"), before["w"])
