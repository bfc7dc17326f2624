"""Chunks that the coordinator hands out: what is pushed with how far they are, and who goes on with them."""

import asyncio
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from protocol.messages import Leased, Plan
from protocol.optimizers import Add
from psworker.client import Client, connect
from tests.cluster import durable_cluster, put_out, running_cluster, workers


async def leased_of(client: Client, kind: str = "train") -> Leased:
    leased = await client.lease(block=False)
    assert leased.kind == kind
    return leased


@pytest.mark.parametrize("staleness", [0, float("inf")])
async def test_statistics_count_once_though_their_worker_goes_before_it_has_finished(
    staleness: float,
) -> None:
    plan = Plan("text", chunks=2, epochs=1, evaluate_every=0, seed=0, survey=True)
    async with (
        running_cluster(2) as cluster,
        workers(cluster.address, 2, staleness=staleness, plan=plan) as (gone, other),
    ):
        await gone.create("survey.rows", np.zeros(1), Add())
        leased = await leased_of(gone, "survey")
        pushes = [gone.push_pull({"survey.rows": [10.0]}, done=gone.done(leased, 1)), other.push_pull({})]
        await asyncio.gather(*pushes)
        await put_out(cluster, gone)
        again = {leased.chunk: leased for leased in [await leased_of(other, "survey") for _ in range(2)]}
        assert {chunk: one.skip for chunk, one in again.items()} == {leased.chunk: 1, 1 - leased.chunk: 0}
        rest = again[1 - leased.chunk]
        await other.push_pull({"survey.rows": [7.0]}, done=other.done(rest, 1))
        assert (await other.lease(block=False)).kind == "wait"
        for one in again.values():
            await other.finish(one, 0, {})
        await leased_of(other, "train")
        np.testing.assert_array_equal(await other.pull("survey.rows"), [17.0])


STREAM = Plan("text", chunks=3, epochs=1, evaluate_every=0, seed=0, stream=True)


async def push_offsets(client: Client, offsets: dict[Leased, int]) -> None:
    for leased, offset in offsets.items():
        await client.push_pull({"w": [1.0]}, done=client.done(leased, offset))


async def test_whoever_takes_partitions_over_goes_on_from_all_of_their_offsets() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, plan=STREAM) as (gone, other):
        await gone.create("w", [0.0], Add())
        leases = [await leased_of(gone) for _ in range(3)]
        await push_offsets(gone, {leases[0]: 100, leases[1]: 1 << 62})
        await push_offsets(gone, {leases[0]: 250})
        standby = asyncio.create_task(other.lease(block=True))  # there is no partition for it
        await put_out(cluster, gone)
        found = [await standby, *[await leased_of(other) for _ in range(2)]]
        skips = {leased.chunk: leased.skip for leased in found}
        assert skips == {leases[0].chunk: 250, leases[1].chunk: 1 << 62, leases[2].chunk: 0}


@pytest.mark.parametrize(("mode", "reached"), [("snapshot", 100), ("log", 101)])
async def test_offsets_outlive_the_servers(
    mode: Literal["snapshot", "log"], reached: int, tmp_path: Path
) -> None:
    async with durable_cluster(tmp_path, 2, mode) as cluster:
        async with connect(cluster.address, plan=STREAM) as worker:
            await worker.create("w", [0.0], Add())
            leases = [await leased_of(worker) for _ in range(3)]
            await push_offsets(worker, {leases[0]: 100, leases[2]: 1 << 40})
            await cluster.checkpoint()
            await push_offsets(worker, {leases[0]: 101})
            await cluster.kill(0, 1)
            await cluster.start()
        async with connect(cluster.address, plan=STREAM) as worker:
            assert float((await worker.pull("w"))[0]) == reached - 98  # pushes
            found = [await leased_of(worker) for _ in range(3)]
            skips = {leased.chunk: leased.skip for leased in found}
            assert skips == {leases[0].chunk: reached, leases[1].chunk: 0, leases[2].chunk: 1 << 40}
