"""Guarantee 1 under every fault that a network has: each push leaves a trace of its own, exactly once."""

import asyncio

import numpy as np
import pytest

from protocol.optimizers import Add
from psserver.membership import FailureSettings
from psworker.client import Client, connect
from tests.faults.schedule import OF_PROXIES, Progress, Schedule, on_proxies, play
from tests.faults.servers import proxied_cluster
from tests.faults.slots import Outcomes, slot_gradient, slot_violations

CLIENTS = 4
SLOTS = 30_000  # 120 kB: over both servers
PATIENT = FailureSettings(heartbeat=3.0, dead_after=30.0)


async def push_slots(
    client: Client, numbers: range, done: asyncio.Event, say: Progress, kept: Outcomes
) -> None:
    """Push one slot after the other, two under way, by turns with and without ending a step."""

    async def push(number: int) -> None:
        gradient = {"slots": slot_gradient(number, SLOTS)}
        await (client.push_pull(gradient, ()) if number % 4 == 0 else client.push(gradient))
        kept.acknowledged.add(number)
        say.advance()

    for first in numbers[::2]:
        await asyncio.gather(push(first), push(first + 1))
        if done.is_set():
            return


async def every_push_leaves_one_trace(seed: int, faults: int) -> None:
    schedule = Schedule.random(seed, OF_PROXIES, faults, over=faults * 6, targets=2)
    progress, done, kept = Progress(), asyncio.Event(), Outcomes()
    async with (
        proxied_cluster(2, seed=seed, failure=PATIENT) as cluster,
        connect(cluster.direct, "chaos", name="owner") as owner,
    ):
        await owner.create("slots", np.zeros(SLOTS, np.float32), Add())

        async def worker(number: int) -> None:
            numbers = range(number * SLOTS // CLIENTS, (number + 1) * SLOTS // CLIENTS)
            async with connect(cluster.address, "chaos", name=f"pusher-{number}") as client:
                await push_slots(client, numbers, done, progress, kept)

        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(worker(number))
            await play(schedule, on_proxies(cluster.proxies), progress)
            done.set()
        async with connect(cluster.direct, "chaos", observe=True) as reader:
            values = {"slots": await reader.pull("slots")}
    violations = slot_violations(values, kept)
    assert not violations, f"{schedule}\n{violations}"
    assert len(kept.acknowledged) >= faults * 5, f"vacuous: {len(kept.acknowledged)} pushes\n{schedule}"


async def test_every_push_leaves_one_trace(fault_seed: int) -> None:
    await every_push_leaves_one_trace(fault_seed, 20)


@pytest.mark.long
@pytest.mark.parametrize("number", range(10))
async def test_every_push_leaves_one_trace_over_and_over(fault_seed: int, number: int) -> None:
    await every_push_leaves_one_trace(fault_seed + number, 100)
