"""Answers that take their time."""

import asyncio
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.optimizers import Add
from psworker.client import connect
from tests.cluster import Cluster, running_cluster

Array: TypeAlias = npt.NDArray[Any]

MANY = np.arange(40_000, dtype=np.uint64)
ONES = np.ones((MANY.size, 16), np.float32)


async def test_rows_are_of_one_version_while_others_push() -> None:
    async with (
        running_cluster() as cluster,
        connect(cluster.address, job="j") as client,
        connect(cluster.address, job="j") as other,
    ):
        table = await client.create_sparse("t", 16, Add())
        await table.push(MANY, ONES)
        pulled = [asyncio.create_task(table.pull(MANY)) for _ in range(3)]
        again = other.table("t")
        pushed = [asyncio.create_task(again.push(MANY, ONES)) for _ in range(3)]
        small = asyncio.create_task(table.pull(MANY[:3]))
        for task in pulled:
            rows = await task
            assert rows.shape == (MANY.size, 16)
            assert np.array_equal(rows, np.broadcast_to(rows[0, 0], rows.shape))
            assert rows[0, 0] in (1, 2, 3, 4)
        assert (await small).shape == (3, 16)
        await asyncio.gather(*pushed)
        assert (await table.pull(MANY) == 4).all()


async def test_two_tables_that_become_free_at_once() -> None:
    async with running_cluster() as cluster, connect(cluster.address, job="j") as client:
        tables = [await client.create_sparse(name, 16, Add()) for name in "ab"]
        for table in tables:
            await table.push(MANY, ONES)
        shard = cluster.servers[0]._shard
        blocks = shard.jobs["j"].tables()
        for block in blocks:
            await block.lock.acquire()
        pulled = [asyncio.create_task(table.pull(MANY)) for table in tables for _ in range(2)]
        small = [asyncio.create_task(table.pull(MANY[:0])) for table in tables]
        await cluster.until(lambda _: _owes(cluster, len(pulled)))
        for block in blocks:
            block.lock.release()
        for task in pulled:
            assert (await task == 1).all()
        for task in small:
            assert (await task).shape == (0, 16)


def _owes(cluster: Cluster, answers: int) -> bool:
    return max(connection._owed for connection in cluster.servers[0]._connections) == answers * ONES.nbytes
