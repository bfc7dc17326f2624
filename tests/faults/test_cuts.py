"""Guarantee 1: an acknowledged push counts exactly once, over however many connections it was tried."""

import asyncio

import numpy as np
import pytest

from protocol.optimizers import Add
from psserver.membership import FailureSettings
from psworker.client import Client, connect
from psworker.link import Recovery
from tests.faults.schedule import CUT, CUT_AFTER, Progress, Schedule, on_proxies, play
from tests.faults.servers import proxied_cluster

CLIENTS = 8
CUTS = 200  # that hit a connection; some of a schedule find none, because it is being made anew
PATIENT = FailureSettings(heartbeat=3.0, dead_after=30.0)
ELEMENTS = 20_000  # 160 kB: cut over both servers, and often in the midst of a frame


async def push_until(client: Client, number: int, done: asyncio.Event, progress: Progress) -> int:
    """Push known integers, three under way at a time, until the faults are over; return their sum."""
    total = count = 0
    while not done.is_set() or count < 30:
        amounts = [number * 1000 + count + i for i in range(3)]
        pushes = (client.push({"sum": np.full(ELEMENTS, amount, np.int64)}) for amount in amounts)
        await asyncio.gather(*pushes)
        total += sum(amounts)
        count += len(amounts)
        progress.advance(len(amounts))
    return total


async def sums_are_exact(seed: int, cuts: int) -> None:
    schedule = Schedule.random(seed, (CUT, CUT_AFTER), 2 * cuts, over=cuts * 8, targets=2)
    progress, done = Progress(), asyncio.Event()
    async with proxied_cluster(2, seed=seed, failure=PATIENT) as cluster:
        async with asyncio.TaskGroup() as group, connect(cluster.direct, "sums") as owner:
            await owner.create("sum", np.zeros(ELEMENTS, np.int64), Add())

            async def worker(number: int) -> int:
                async with connect(cluster.address, "sums", name=f"pusher-{number}") as client:
                    assert client.joined is not None
                    assert set(client.joined.shards[1:]) == {cluster.proxies[1].address}
                    total = await push_until(client, number, done, progress)
                    recovered.append(client.recovery)
                    return total

            recovered: list[Recovery] = []
            pushers = [group.create_task(worker(number)) for number in range(CLIENTS)]
            await play(schedule, on_proxies(cluster.proxies), progress)
            done.set()
            expected = sum([await pusher for pusher in pushers])
            found = await owner.pull("sum")
        cuts_seen = sum(proxy.seen.cuts for proxy in cluster.proxies)
    assert (found == expected).all(), f"{found.min()}..{found.max()}, expected {expected}\n{schedule}"
    assert cuts_seen >= cuts, f"vacuous: {cuts_seen} cuts of {cuts}\n{schedule}"
    assert sum(one.retries for one in recovered) > cuts / 10, recovered
    print(f"seed {seed}: {cuts_seen} cuts, sum {expected}, retries {sum(o.retries for o in recovered)}")


async def test_sums_are_exact_under_cuts(fault_seed: int) -> None:
    await sums_are_exact(fault_seed, 60)


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
async def test_sums_are_exact_under_200_cuts(fault_seed: int, number: int) -> None:
    await sums_are_exact(fault_seed + number, CUTS)
