"""A checkpoint of three shards goes on on one, two or five: the same numbers, and the same training."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.addresses import split_address
from protocol.messages import Checkpoint, Restore
from protocol.optimizers import SGD, Add
from psserver.persistence import DurabilitySettings
from psserver.server import Server, ServerSettings
from psworker.asking import ask
from psworker.client import Client, connect

Array = npt.NDArray[Any]

FEATURES = 60_000  # 480 kB of float64: cut over as many as five shards
ROWS = 2
STEPS = 8


@asynccontextmanager
async def cluster(shards: int, directory: Path, mode: Any = "snapshot") -> AsyncIterator[str]:
    async with AsyncExitStack() as stack:
        durability = DurabilitySettings(mode, str(directory), every=0.0)
        coordinator = Server(ServerSettings(port=0, shards=shards, durability=durability))
        stack.push_async_callback(coordinator.stop)
        address = await coordinator.start()
        for _ in range(shards - 1):
            server = Server(ServerSettings(port=0, join=split_address(address), durability=durability))
            stack.push_async_callback(server.stop)
            await server.start()
        yield address


def batch(worker: int, step: int) -> tuple[Array, Array]:
    rng = np.random.default_rng((worker, step))
    return rng.normal(size=(ROWS, FEATURES)) / np.sqrt(FEATURES), rng.normal(size=ROWS)


async def train(client: Client, worker: int, steps: range) -> float:
    """Least squares on known batches; return the loss of the last one."""
    loss = 0.0
    weights = await client.pull("weights")
    for step in steps:
        rows, targets = batch(worker, step)
        error = rows @ weights - targets
        loss = float(error @ error) / ROWS
        new = await client.push_pull({"weights": rows.T @ error / ROWS}, weight=ROWS)
        weights = new["weights"]
    return loss


async def train_both(address: str, steps: range) -> tuple[list[float], Array]:
    async with AsyncExitStack() as stack:

        async def begin(worker: int) -> Client:
            joining = connect(address, "job", name=f"w{worker}", staleness=0, workers=2)
            client = await stack.enter_async_context(joining)
            await client.create("weights", np.zeros(FEATURES), SGD(lr=0.5))
            return client

        clients = await asyncio.gather(begin(0), begin(1))
        losses = await asyncio.gather(*(train(client, i, steps) for i, client in enumerate(clients)))
        return losses, await clients[0].pull("weights")


@pytest.mark.parametrize("shards", [1, 2, 5])
async def test_training_goes_on_to_the_same_loss_on_another_number_of_shards(
    tmp_path: Path, shards: int
) -> None:
    async with cluster(3, tmp_path / "whole") as address:
        expected, weights = await train_both(address, range(STEPS))
    async with cluster(3, tmp_path / "first") as address:
        await train_both(address, range(STEPS // 2))
        await ask(*split_address(address), Checkpoint(), within=5.0)
    async with cluster(shards, tmp_path / "second") as address:
        await ask(*split_address(address), Restore(str(tmp_path / "first")), within=5.0)
        found, restored = await train_both(address, range(STEPS // 2, STEPS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(restored, weights, rtol=1e-5)


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize("shards", [1, 2, 5])
async def test_every_tensor_is_the_same_bit_for_bit(tmp_path: Path, shards: int, mode: str) -> None:
    rng = np.random.default_rng(7)
    tensors: dict[str, Array] = {
        "doubles": rng.normal(size=(300, 400)),
        "floats": rng.normal(size=100_001).astype(np.float32),
        "halves": rng.normal(size=70_000).astype(np.float16),
        "integers": rng.integers(-(1 << 60), 1 << 60, size=(3, 7, 5_000)),
        "scalar": np.array(0.1),
    }
    async with cluster(3, tmp_path / "a", mode) as address, connect(address, "job") as client:
        for name, value in tensors.items():
            await client.create(name, value, Add())
        await client.push({"doubles": tensors["doubles"]})
        before = await client.pull(tuple(tensors))
        await ask(*split_address(address), Checkpoint(), within=5.0)
    async with cluster(shards, tmp_path / "b", mode) as address:
        await ask(*split_address(address), Restore(str(tmp_path / "a")), within=5.0)
        async with connect(address, "job", observe=True) as client:
            after = await client.pull(tuple(tensors))
    for name, value in before.items():
        assert (after[name].dtype, after[name].shape) == (value.dtype, value.shape)
        assert after[name].tobytes() == value.tobytes(), name
