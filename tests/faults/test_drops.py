"""A job is dropped on all servers or on none, wherever one of them dies; its namesake begins with nothing."""

import random
from asyncio import create_task, to_thread
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from protocol.addresses import split_address
from protocol.errors import PSError
from protocol.optimizers import Add
from psworker.asking import drop
from psworker.client import connect
from tests.faults.pushing import told
from tests.faults.restarts import ANSWERS_WITHIN, RestartableCluster

ALWAYS: Final = 10  # deaths at each place, in `make faults`
ELEMENTS: Final = 40_000  # a block on each server
JOB: Final = "dropped"
ANEW: Final = -1000.0

PLACES: Final = {  # who dies there, and whether the job is dropped then
    "drop.forgotten": (0, False),
    "drop.durable": (0, True),
    "drop.followed": (1, True),
    "drop.told": (0, True),
}


async def _drop(cluster: RestartableCluster) -> None:
    await drop(*split_address(cluster.address), JOB, within=ANSWERS_WITHIN)


async def _value(cluster: RestartableCluster, first: float) -> float:
    """Make the job if it is not there, and return what all elements of its tensor are."""
    async with connect(cluster.address, JOB) as client:
        await client.create("w", np.full(ELEMENTS, first, np.float32), Add())
        values = await client.pull("w")
        assert (values == values[0]).all(), "a server has a part of another job"
        return float(values[0])


async def it_is_dropped_or_not(place: str, times: int, seed: int, directory: Path) -> None:
    """Have a server die at a place while a job is dropped, so many times."""
    rng = random.Random(f"{seed} {place}")
    victim, is_dropped = PLACES[place]
    with (
        RestartableCluster(directory, "log", flags=("--checkpoint-every", "0s")) as cluster,
        told(cluster, f"seed {seed}, {place}"),
    ):
        for number in range(1, times + 1):
            assert await _value(cluster, number) == number
            if rng.random() < 0.3:
                await cluster.checkpoint()
            await to_thread(cluster.kill, victim)
            cluster.start(victim, f"{place}=kill")
            await cluster.all_there()
            dropping = create_task(_persistently(cluster))
            await cluster.killed(victim)
            cluster.start(victim)
            await dropping
            assert await _value(cluster, ANEW) == (ANEW if is_dropped else number)
            await _drop(cluster)


async def _persistently(cluster: RestartableCluster) -> None:
    with suppress(PSError, OSError):
        await _drop(cluster)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
async def test_wherever_a_server_dies_it_is_dropped_or_not(
    place: str, fault_seed: int, tmp_path: Path
) -> None:
    await it_is_dropped_or_not(place, ALWAYS, fault_seed, tmp_path)
