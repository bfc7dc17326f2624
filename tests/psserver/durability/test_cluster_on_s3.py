"""A cluster whose checkpoints are in an object store."""

import numpy as np
import pytest

from protocol.addresses import split_address
from protocol.messages import Checkpoint, Checkpointed, Restore
from protocol.optimizers import Add
from psserver.persistence import DurabilitySettings
from psserver.server import Server, ServerSettings
from psworker.asking import ask
from psworker.client import connect
from tests.s3 import S3

pytestmark = pytest.mark.xdist_group("s3")

ELEMENTS = 40_000  # 320 kB: cut over both servers


async def start(shards: int, url: str) -> tuple[list[Server], str]:
    durability = DurabilitySettings("snapshot", url, every=0.0)
    servers = [Server(ServerSettings(port=0, shards=shards, durability=durability))]
    address = await servers[0].start()
    for _ in range(shards - 1):
        join = split_address(address)
        servers.append(Server(ServerSettings(port=0, join=join, durability=durability)))
        await servers[-1].start()
    return servers, address


async def stop(servers: list[Server]) -> None:
    for server in reversed(servers):
        await server.stop()


async def test_a_cluster_goes_on_from_s3_on_another_number_of_shards(s3: S3) -> None:
    url = f"s3://{s3.new_bucket()}/run"
    servers, address = await start(2, url)
    values = np.arange(ELEMENTS, dtype=np.int64)
    async with connect(address, "job") as client:
        await client.create("w", np.zeros(ELEMENTS, np.int64), Add())
        await client.push({"w": values})
        taken: Checkpointed
        taken, _ = await ask(*split_address(address), Checkpoint(), within=5.0)
        assert (taken.url, taken.checkpoint) == (url, 1)
        await client.push({"w": values})  # lost: the next cluster has other directories to stop from
    await stop(servers)

    servers, address = await start(3, url)
    loaded: Checkpointed
    loaded, _ = await ask(*split_address(address), Restore(url, 1), within=5.0)
    assert loaded.checkpoint == 1
    async with connect(address, "job") as client:
        assert (await client.pull("w") == values).all()
        await client.push({"w": values})
        assert (await client.pull("w") == 2 * values).all()
    await stop(servers)
