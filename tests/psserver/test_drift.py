"""Streams that drift: one worker acts on a drift, and the rate is raised, by no more than the plan says."""

import math
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import BadRequest, Fenced
from protocol.messages import Plan, Set
from protocol.optimizers import SGD
from psserver.coordinated_job import Drifts
from psworker.asking import change, fetch_status
from psworker.client import connect
from tests.cluster import durable_cluster, holds, running_cluster, workers

PLAN = Plan("text", 2, 1, 0, 0, stream=True, raised_rate=3.0)


def test_the_first_acts_and_is_told_so_again() -> None:
    drifts = Drifts().acted_on(7, 0)
    assert drifts == Drifts(1, 7)
    assert drifts.is_last(7, 0)
    assert drifts.acted_on(8, 0) == drifts
    assert not drifts.is_last(8, 0)
    assert drifts.acted_on(7, 0) == drifts
    assert drifts.acted_on(8, 1) == Drifts(2, 8)


def test_who_knows_of_more_than_the_state_that_was_gone_back_to_is_believed() -> None:
    assert Drifts(1, 7).acted_on(8, 5) == Drifts(6, 8)


async def test_one_of_two_workers_acts_and_the_rate_is_raised_until_it_is_over() -> None:
    async with (
        running_cluster(2) as cluster,
        connect(cluster.address, plan=PLAN, name="a") as a,
        connect(cluster.address, plan=PLAN, name="b") as b,
    ):
        assert await a.drift(0)
        assert (await cluster.job()).rate == 3.0
        assert not await b.drift(0)
        assert b.drifts == 1
        assert await a.drift(0), "its request may come twice"
        assert (await cluster.job()).drifts == 1
        assert await b.drift(1)
        assert not await a.drift_over(1)
        assert (await cluster.job()).rate == 3.0, "there was another one"
        await holds(lambda: a.drifts == 2)  # a heartbeat tells
        assert await a.drift_over(2)
        assert not await b.drift_over(2)
        assert (await cluster.job()).rate == 1.0


async def test_a_rate_that_was_set_meanwhile_stays() -> None:
    async with running_cluster() as cluster, connect(cluster.address, plan=PLAN) as client:
        await client.drift(0)
        await change(*cluster.endpoint, Set(rate=0.5))
        assert not await client.drift_over(1)
        assert (await cluster.job()).rate == 0.5


async def test_who_comes_later_hears_of_it() -> None:
    async with running_cluster() as cluster, connect(cluster.address, plan=PLAN, name="a") as first:
        await first.drift(0)
        async with connect(cluster.address, plan=PLAN, name="b") as second:
            assert second.drifts == 1


async def test_a_drift_outlives_the_coordinator(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 1, "log") as cluster:
        async with connect(cluster.address, plan=PLAN, name="a") as client:
            await client.drift(0)
            await cluster.kill(0)
            await cluster.start(0)
            await client.pull([])
        (job,) = (await fetch_status(*cluster.endpoint)).jobs
        assert (job.drifts, job.rate) == (1, 3.0)


async def test_a_raised_rate_can_be_lowered_after_another_job_has_gone_back(tmp_path: Path) -> None:
    async with (
        durable_cluster(tmp_path, 1) as cluster,
        connect(cluster.address, job="stream", plan=PLAN) as client,
        connect(cluster.address, job="other") as other,
    ):
        await other.create("w", np.zeros(3), SGD(1.0))
        await cluster.checkpoint()
        await client.drift(0)
        await other.diverged(math.nan)
        with pytest.raises(Fenced):
            await client.drift_over(1)
        await client.rejoin()
        assert client.drifts == 1

        async def rate() -> float:
            status = await fetch_status(*cluster.endpoint)
            return next(job.rate for job in status.jobs if job.name == "stream")

        assert await rate() == 3.0
        await client.drift_over(1)
        assert await rate() == 1.0


async def test_nobody_knows_of_more_drifts_than_there_can_have_been() -> None:
    async with running_cluster() as cluster, connect(cluster.address, plan=PLAN) as client:
        with pytest.raises(BadRequest, match="not so many"):
            await client.drift(2**63 - 1)
        assert (await cluster.job()).drifts == 0


async def test_a_job_whose_data_is_in_chunks_has_none() -> None:
    plan = Plan("text", 2, 1, 0, 0)
    async with running_cluster() as cluster, connect(cluster.address, plan=plan) as client:
        with pytest.raises(BadRequest, match="chunks"):
            await client.drift(0)


async def test_a_job_without_a_plan_has_none() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 1) as (client,):
        with pytest.raises(BadRequest):
            await client.drift(0)
