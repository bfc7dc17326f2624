"""Jobs that diverge: they go back to a checkpoint, at a lower rate, a few times at most."""

import asyncio
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import BadRequest, Fenced, HasDiverged
from protocol.messages import Plan, Set
from protocol.optimizers import SGD
from protocol.status import JobStatus
from psworker.asking import change, fetch_status
from psworker.client import Client, connect
from tests.cluster import DurableCluster, durable_cluster, running_cluster, workers
from tests.psserver.test_metrics import samples

SIZE = 40_000  # in a block on each of two shards


async def push_beside_others(client: Client, times: int = 1) -> npt.NDArray[np.float64]:
    """Push ones; return what there is then: of what others push, one shard may have more than another."""
    await client.create("w", np.zeros(SIZE), SGD(1.0))
    for _ in range(times):
        values = (await client.push_pull({"w": np.ones(SIZE)}))["w"]
    return values


async def push(client: Client, times: int = 1) -> float:
    """Push ones, alone; return what there is after that."""
    values = await push_beside_others(client, times)
    assert (values == values[0]).all()
    return -float(values[0])


async def pulled(client: Client) -> float:
    values = await client.pull("w")
    assert (values == values[0]).all()
    return -float(values[0])


async def timeline(cluster: DurableCluster) -> int:
    return (await fetch_status(*cluster.endpoint)).durability.timeline


async def job_of(cluster: DurableCluster, name: str = "default") -> JobStatus:
    (found,) = [job for job in (await fetch_status(*cluster.endpoint)).jobs if job.name == name]
    return found


@pytest.mark.parametrize("staleness", [0, math.inf])
async def test_two_workers_that_say_so_at_once_go_back_once_at_half_the_rate(
    staleness: float, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, 2) as cluster,
        workers(cluster.address, 2, staleness=staleness) as clients,
    ):
        await asyncio.gather(*(push_beside_others(client, 2) for client in clients))
        before = await pulled(clients[0])
        await cluster.checkpoint()
        await asyncio.gather(*(push_beside_others(client, 3) for client in clients))
        assert await pulled(clients[0]) > before
        rates = await asyncio.gather(clients[0].diverged(math.nan), clients[1].diverged(1e30))
        assert list(rates) == [0.5, 0.5]
        assert await timeline(cluster) == 2
        assert await pulled(clients[0]) == before
        await asyncio.gather(*(push_beside_others(client) for client in clients))
        assert await pulled(clients[0]) == before + (0.5 if staleness == 0 else 1.0)
        job = await job_of(cluster)
        assert (job.rate, [worker.state for worker in job.workers]) == (0.5, ["training"] * 2)
        assert samples(cluster[0])["psserver_divergences_total", "default"] == 1


async def test_who_says_so_late_is_told_to_join_again_and_changes_nothing(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster, workers(cluster.address, 2) as (a, b):
        await push(a)
        await cluster.checkpoint()
        assert await a.diverged(math.inf) == 0.5
        with pytest.raises(Fenced):
            await b.push({"w": np.ones(SIZE)})
        assert await b.diverged(math.inf) == 0.5
        assert await timeline(cluster) == 2


async def test_chunks_are_done_again_from_the_checkpoint_on(tmp_path: Path) -> None:
    plan = Plan("text", 3, 1, 0, 0, rate_factor=0.25)
    async with durable_cluster(tmp_path, 2) as cluster, connect(cluster.address, plan=plan) as ps:
        await push(ps)
        first = await ps.lease(block=False)
        await ps.finish(first, 1, {"loss": 1.0})
        await cluster.checkpoint()
        second = await ps.lease(block=False)
        await ps.finish(second, 1, {"loss": math.nan})
        assert await ps.diverged(math.nan) == 0.25
        assert (await ps.lease(block=False)).chunk == second.chunk
        progress = (await job_of(cluster)).progress
        assert progress is not None
        assert (progress.chunks_done, progress.train_loss) == (1, 1.0)


async def test_a_job_that_diverges_again_at_once_goes_further_back(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, keep=10) as cluster, connect(cluster.address) as ps:
        for _ in range(3):  # at 1, 2 and 3
            await push(ps)
            await cluster.checkpoint()
        await push(ps)
        found = []
        for _ in range(4):
            await ps.diverged(math.nan)
            found.append(await pulled(ps))
            await push(ps)
        assert found == [3, 2, 1, 1]  # there is none before the first
        assert ps.rate == 1 / 16


async def test_after_another_checkpoint_that_is_the_one_to_go_back_to(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster, connect(cluster.address) as ps:
        await push(ps)
        await cluster.checkpoint()
        await push(ps)
        await cluster.checkpoint()
        await ps.diverged(math.nan)
        assert await push(ps) == 2.5
        await cluster.checkpoint()
        await push(ps)
        assert await ps.diverged(math.nan) == 0.25
        assert await pulled(ps) == 2.5


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_what_was_learned_outlives_the_servers(how: str, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster:
        async with connect(cluster.address) as ps:
            await push(ps)
            await cluster.checkpoint()
            await ps.diverged(math.nan)
            await (cluster.kill(0, 1) if how == "kill" else cluster.stop())
            await cluster.start()
        async with connect(cluster.address) as ps:
            assert (await job_of(cluster)).rate == 0.5
            assert await push(ps) == 1.5


async def test_a_job_goes_back_so_often_and_no_more(tmp_path: Path) -> None:
    plan = Plan("text", 3, 1, 0, 0, returns=2)
    async with durable_cluster(tmp_path, 1) as cluster, connect(cluster.address, plan=plan) as ps:
        await push(ps)
        await cluster.checkpoint()
        for rate in (0.5, 0.25):
            assert await ps.diverged(math.nan) == rate
        with pytest.raises(HasDiverged, match="gone back 2 times"):
            await ps.diverged(math.nan)
        assert (await timeline(cluster), (await job_of(cluster)).rate) == (3, 0.25)
        assert await push(ps) == 1.25  # whoever wants to may go on


async def test_without_a_checkpoint_of_the_job_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        with pytest.raises(HasDiverged, match="--checkpoint-dir"):
            await ps.diverged(math.nan)
        assert await push(ps) == 1
    async with durable_cluster(tmp_path, 1) as durable, connect(durable.address) as ps:
        await push(ps)
        await durable.checkpoint()
        async with connect(durable.address, "younger") as other:
            with pytest.raises(HasDiverged, match="--checkpoint-every"):
                await other.diverged(math.nan)
        assert (await timeline(durable), await push(ps)) == (1, 2)


async def test_other_jobs_keep_their_rates(tmp_path: Path) -> None:
    async with (
        durable_cluster(tmp_path, 1) as cluster,
        connect(cluster.address) as ps,
        connect(cluster.address, "other") as other,
    ):
        await push(ps)
        await push(other)
        await cluster.checkpoint()
        await change(*cluster.endpoint, Set("other", rate=0.75))
        await ps.diverged(math.nan)
        assert [(await job_of(cluster, name)).rate for name in ("default", "other")] == [0.5, 0.75]


async def test_how_a_job_went_back_is_told_and_outlives_the_servers(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster:
        async with connect(cluster.address) as ps:
            await push(ps)
            first = await cluster.checkpoint()
            await push(ps, 2)
            await ps.diverged(1e30)
            await push(ps)
            await ps.diverged(math.nan)
            before = (await job_of(cluster)).returns
            await cluster.checkpoint()
            await cluster.kill(0, 1)
            await cluster.start()
        after = (await job_of(cluster)).returns
    assert [(one.step, one.rate, one.timeline) for one in before] == [(3, 0.5, 2), (2, 0.25, 3)]
    assert (before[0].loss, before[0].checkpoint) == (1e30, first.checkpoint)
    assert math.isnan(before[1].loss)
    assert repr(after) == repr(before)  # NaN is not equal to itself


async def test_before_the_training_there_is_a_checkpoint_and_one_is_enough(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster, workers(cluster.address, 2) as clients:
        for client in clients:
            await client.create("w", np.zeros(SIZE), SGD(1.0))
        await asyncio.gather(*(client.prepared() for client in clients))
        taken = (await fetch_status(*cluster.endpoint)).durability.checkpoint
        assert taken is not None
        assert taken.checkpoint == 1
        await push(clients[0], 3)
        assert await clients[0].diverged(math.nan) == 0.5
        assert await pulled(clients[0]) == 0
        async with connect(cluster.address, "younger") as other:
            await other.prepared()
            assert await other.diverged(math.nan) == 0.5


async def test_where_nothing_is_kept_there_is_nothing_to_prepare() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        with pytest.raises(BadRequest, match="--checkpoint-dir"):
            await ps.prepared()
        assert await push(ps) == 1


async def test_who_is_out_is_told_so_and_nothing_is_taken(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 1) as cluster, workers(cluster.address, 2) as (a, b):
        await push(a)
        await cluster.checkpoint()
        await a.diverged(math.nan)
        with pytest.raises(Fenced):
            await b.prepared()
