"""What all learning rates of a job are multiplied by: on every shard, at every staleness, after restarts."""

import asyncio
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from protocol.errors import BadRequest
from protocol.messages import Set
from protocol.optimizers import DCSGD, FTRL, SGD, Adam, Add, Optimizer
from psserver.optimizers import Moment, hyper_of
from psworker import SparseGradient
from psworker.asking import change
from psworker.client import connect
from tests.cluster import Cluster, DurableCluster, durable_cluster, holds, running_cluster, workers
from tests.psserver.test_metrics import samples

SIZE = 40_000  # in a block on each of two shards
KEYS = np.arange(20, dtype=np.uint64)


async def set_rate(cluster: Cluster | DurableCluster, rate: float) -> None:
    await change(*cluster.endpoint, Set(rate=rate))


@pytest.mark.parametrize("optimizer", [SGD(0.2), Adam(0.2), DCSGD(0.2), FTRL(0.2)])
def test_every_learning_rate_is_multiplied(optimizer: Optimizer) -> None:
    usual, half = hyper_of(optimizer, Moment()), hyper_of(optimizer, Moment(rate=0.5))
    assert half[0] == usual[0] / 2


def test_deltas_have_no_rate() -> None:
    assert hyper_of(Add(), Moment(rate=0.5)) == hyper_of(Add(), Moment())


@pytest.mark.parametrize("staleness", [0, math.inf])
async def test_a_rate_is_heeded_on_all_shards_by_tensors_and_tables_and_not_by_deltas(
    staleness: float,
) -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, staleness=staleness) as ps:
        await ps.create("w", np.zeros(SIZE), SGD(1.0))
        await ps.create("n", np.zeros(SIZE), Add())
        await ps.create_sparse("emb", 2, SGD(1.0))
        rows = SparseGradient(KEYS, np.ones((20, 2), np.float32))
        ones: dict[str, Any] = {"w": np.ones(SIZE), "n": np.ones(SIZE), "emb": rows}
        expected = 0.0
        for step, rate in enumerate((1.0, 0.5, 0.25, 1.0), 1):
            await set_rate(cluster, rate)
            expected -= rate
            new = await ps.push_pull(ones)
            assert (new["w"] == expected).all()
            assert (new["emb"] == expected).all()
            assert (new["n"] == step).all()
            assert (await cluster.job()).rate == rate
            for server in cluster.servers:
                assert samples(server)["psserver_learning_rate_scale", "default"] == rate
            await holds(lambda rate=rate: ps.rate == rate)  # type: ignore[misc]  # a heartbeat tells


async def test_who_joins_is_told_the_rate() -> None:
    async with running_cluster() as cluster, connect(cluster.address):
        await set_rate(cluster, 0.125)
        async with connect(cluster.address, workers=1) as late:
            assert late.rate == 0.125


async def test_a_step_has_one_rate_on_all_shards() -> None:
    async with running_cluster(3) as cluster, workers(cluster.address, 2, staleness=0) as clients:
        await clients[0].create("w", np.zeros(3 * SIZE), SGD(1.0))
        rates = [2.0**-n for n in range(1, 9)]
        found: list[list[float]] = [[], []]  # what each step came to, for each worker

        async def train(number: int, steps: int) -> None:
            for _ in range(steps):
                new = (await clients[number].push_pull({"w": np.ones(3 * SIZE)}))["w"]
                assert (new == new[0]).all()  # all shards had the same rate
                found[number].append(float(new[0]))

        async def turn() -> None:
            for rate in rates:
                await set_rate(cluster, rate)

        await asyncio.gather(train(0, 60), train(1, 60), turn())
        await asyncio.gather(train(0, 1), train(1, 1))
        assert found[0] == found[1]
        steps = -np.diff([0.0, *found[0]])
        assert set(steps) <= {1.0, *rates}
        assert (np.diff(steps) <= 0).all()
        assert steps[-1] == rates[-1]


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_rate_outlives_the_servers(
    mode: Literal["snapshot", "log"], how: str, tmp_path: Path
) -> None:
    async with durable_cluster(tmp_path, 2, mode) as cluster:
        async with connect(cluster.address) as ps:
            await ps.create("w", np.zeros(SIZE), SGD(1.0))
            await set_rate(cluster, 0.5)
            await cluster.checkpoint()
        await (cluster.kill(0, 1) if how == "kill" else cluster.stop())
        await cluster.start()
        async with connect(cluster.address) as ps:
            assert ps.rate == 0.5
            assert ((await ps.push_pull({"w": np.ones(SIZE)}))["w"] == -0.5).all()


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
async def test_what_is_no_rate_is_refused(rate: float) -> None:
    async with running_cluster() as cluster, connect(cluster.address):
        with pytest.raises(BadRequest) as caught:
            await set_rate(cluster, rate)
        assert caught.value.field == "rate"
        assert (await cluster.job()).rate == 1.0
