"""Sparse tables outlive servers as dense tensors do: exactly, whatever the mode and the number of shards."""

import asyncio
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from protocol.addresses import split_address
from protocol.messages import Checkpoint, Restore
from protocol.optimizers import Adagrad, Adam, Add
from protocol.tables import Normal
from psworker import SparseGradient
from psworker.asking import ask
from psworker.client import Client, connect
from tests.cluster import durable_cluster, holds, running_cluster
from tests.psserver.test_resharding import cluster

Array = npt.NDArray[Any]
Mode = Literal["snapshot", "log"]

DIM = 5
KEYS = np.array([0, 1, 7, 1 << 40, (1 << 64) - 1, *range(1000, 1400)], np.uint64)


def batch(step: int) -> tuple[Array, Array]:
    """Keys, some of them twice, and their gradients."""
    rng = np.random.default_rng(step)
    keys = rng.choice(KEYS, 200)
    return keys, rng.normal(size=(200, DIM)).astype(np.float32)


async def make(client: Client) -> None:
    await client.create_sparse("emb", DIM, optimizer=Adagrad(lr=0.1), init=Normal(0.5), seed=3)
    await client.create_sparse("adam", DIM, optimizer=Adam(lr=0.1))
    await client.create("w", np.zeros(70_000, np.float32), Adam(lr=0.1))


async def train(client: Client, steps: range) -> None:
    for step in steps:
        keys, gradients = batch(step)
        sparse = SparseGradient(keys, gradients)
        dense = np.random.default_rng(step).normal(size=70_000).astype(np.float32)
        await client.push_pull({"emb": sparse, "adam": sparse, "w": dense}, {})


async def values(client: Client) -> dict[str, Array]:
    return await client.pull({"emb": KEYS, "adam": KEYS, "w": None})


def assert_same(found: dict[str, Array], expected: dict[str, Array], rtol: float = 0.0) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)


async def without_a_stop(steps: int, staleness: float) -> dict[str, Array]:
    async with running_cluster() as whole, connect(whole.address, "job", staleness=staleness) as client:
        await make(client)
        await train(client, range(steps))
        return await values(client)


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize(("shards", "separate"), [(1, False), (3, True)])
@pytest.mark.parametrize("staleness", [0.0, math.inf])
async def test_servers_that_were_stopped_go_on_exactly(
    mode: Mode, shards: int, staleness: float, separate: bool, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, shards, mode, separate=separate) as durable,
        connect(durable.address, "job", staleness=staleness) as client,
    ):
        await make(client)
        await train(client, range(3))
        before = await values(client)
        await durable.stop()
        await durable.start()
        assert_same(await values(client), before)
        await train(client, range(3, 6))
        assert_same(await values(client), await without_a_stop(6, staleness), rtol=1e-5)


@pytest.mark.parametrize("staleness", [0.0, math.inf])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("shards", [1, 2])
async def test_with_a_log_servers_that_were_killed_go_on_exactly(
    shards: int, checkpoint: bool, staleness: float, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, shards, "log") as durable,
        connect(durable.address, "job", staleness=staleness) as client,
    ):
        await make(client)
        await train(client, range(3))
        if checkpoint:
            await durable.checkpoint()
            await train(client, range(3, 4))
        before = await values(client)
        await durable.kill(*range(shards - 1, -1, -1))
        await durable.start()
        assert_same(await values(client), before)
        await train(client, range(3 + checkpoint, 6))
        assert_same(await values(client), await without_a_stop(6, staleness), rtol=1e-5)


async def test_pushes_under_way_when_a_server_is_killed_count_once(tmp_path: Path) -> None:
    """Push number n adds 1 to its own row n, and to a row that all share; lists of keys are known by then."""
    keys = np.arange(200, dtype=np.uint64)
    async with (
        durable_cluster(tmp_path, 2, "log") as durable,
        connect(durable.address, "job") as client,
    ):
        table = await client.create_sparse("sum", 2, optimizer=Add())
        pushes = []
        for number in range(40):
            gradient = np.zeros((200, 2), np.float32)
            gradient[number] = gradient[199] = 1
            pushes.append(asyncio.ensure_future(table.push(keys, gradient)))
            if number in (10, 25):
                await pushes[number - 5]
                await durable.kill(number % 2)
                await durable.start(number % 2)
        await asyncio.gather(*pushes)
        rows = await table.pull(keys)
    assert (rows[:40] == 1).all()
    assert (rows[40:199] == 0).all()
    assert (rows[199] == 40).all()


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize("shards", [1, 2, 5])
async def test_a_checkpoint_of_three_shards_goes_on_on_another_number(
    tmp_path: Path, shards: int, mode: Mode
) -> None:
    async with cluster(3, tmp_path / "a", mode) as address, connect(address, "job") as client:
        await make(client)
        await train(client, range(3))
        before = await values(client)
        await ask(*split_address(address), Checkpoint(), within=5.0)
    async with cluster(shards, tmp_path / "b", mode) as address:
        await ask(*split_address(address), Restore(str(tmp_path / "a")), within=5.0)
        async with connect(address, "job") as client:
            assert_same(await values(client), before)
            await train(client, range(3, 6))
            assert_same(await values(client), await without_a_stop(6, math.inf), rtol=1e-5)


async def test_a_checkpoint_is_of_one_moment_though_the_table_is_being_pushed_to(tmp_path: Path) -> None:
    """Every push adds 1 to all rows: rows of different numbers would be of different moments."""
    keys = np.arange(30_000, dtype=np.uint64)
    ones = np.ones((keys.size, 2), np.float32)
    async with (
        durable_cluster(tmp_path / "a", 2) as durable,
        connect(durable.address, "job") as client,
    ):
        table = await client.create_sparse("sum", 2, optimizer=Add())
        await table.push(keys, ones)
        done = asyncio.Event()

        async def push() -> None:
            while not done.is_set():
                await table.push(keys, ones)

        pushing = asyncio.ensure_future(push())
        for _ in range(3):
            await durable.checkpoint()
        done.set()
        await pushing
        after = (await table.pull(keys[:1]))[0, 0]
    async with durable_cluster(tmp_path / "b", 1) as durable:
        await durable.restore(tmp_path / "a")
        async with connect(durable.address, "job", observe=True) as client:
            rows = await client.table("sum").pull(keys)
    assert (rows == rows[0, 0]).all()
    assert 0 < rows[0, 0] <= after


async def test_rows_that_were_dropped_stay_so(tmp_path: Path) -> None:
    async with (
        durable_cluster(tmp_path, 1, "log") as durable,
        connect(durable.address, "job") as client,
    ):
        table = await client.create_sparse("some", 2, optimizer=Add(), capacity=100)
        keys = np.arange(1000, dtype=np.uint64)
        await table.push(keys, np.ones((1000, 2), np.float32))
        shard = durable[0]._shard
        shard.drop_rows()
        await holds(lambda: shard.load().rows <= 100)
        await table.push(keys[:1], np.ones((1, 2), np.float32))
        before = await table.pull(keys)
        assert 80 <= np.count_nonzero(before[:, 0]) <= 101
        await durable.kill(0)
        await durable.start(0)
        np.testing.assert_array_equal(await table.pull(keys), before)
