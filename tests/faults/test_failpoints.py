"""Guarantees 2 to 4 at every place where a server may fail: it dies there, and nothing is lost."""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pytest

from protocol.addresses import split_address
from protocol.errors import Fenced, PSError
from protocol.optimizers import Add
from psserver.durability.failpoints import NAMES
from psworker.asking import drop
from psworker.client import Client, connect
from tests.faults.histories import log_violations, snapshot_violations
from tests.faults.pushing import JOB, Pushers, Steppers, make_tensors, pull_all, take, told
from tests.faults.restarts import RestartableCluster

Mode = Literal["snapshot", "log"]

ALWAYS: Final = 20  # deaths at each place, in `make faults`
LIVES_ON: Final = 30  # pushes after the last death
ELEMENTS: Final = 40_000  # a block on each server
_PAUSE: Final = 0.05  # seconds between two checkpoints, and between two visitors


@dataclass(frozen=True, slots=True)
class Place:
    """A failpoint: which servers reach it, and how often they do before they die of it, at most."""

    name: str
    victims: tuple[int, ...] = (0, 1)
    most: int = 3
    modes: tuple[Mode, ...] = ("snapshot", "log")
    synchronous: bool = False
    apart: bool = False  # each server has a directory of its own

    @property
    def is_at_start(self) -> bool:
        return self.name.startswith("restart.")


_LOG: Final[tuple[Mode, ...]] = ("log",)
_SNAPSHOT: Final[tuple[Mode, ...]] = ("snapshot",)

PLACES: Final = (
    Place("log.before-write", most=30, modes=_LOG),
    Place("log.after-write", most=30, modes=_LOG),
    Place("log.after-sync", most=30, modes=_LOG),
    Place("log.new-segment", modes=_LOG),
    Place("log.drop-segment", modes=_LOG),
    Place("checkpoint.tensors-written"),
    Place("checkpoint.tensors-synced"),
    Place("checkpoint.state-written"),
    Place("checkpoint.before-manifest", victims=(0,)),
    Place("checkpoint.after-manifest", victims=(0,)),
    Place("checkpoint.prune", victims=(0,)),
    Place("checkpoint.prune", victims=(1,), apart=True),
    Place("cut.held"),
    Place("cut.taken"),
    Place("cut.told"),
    Place("restore.begin", most=1, modes=_SNAPSHOT),
    Place("restore.loaded", most=1, modes=_SNAPSHOT),
    Place("restore.installed", most=1, modes=_SNAPSHOT),
    Place("restart.recovered", most=1),
    Place("restart.joined", most=1, victims=(1,)),
    Place("membership.before-announce", victims=(0,), most=5),
    Place("membership.announced", victims=(0,), most=5),
    Place("membership.before-decide", victims=(0,), most=20, synchronous=True),
    Place("drop.forgotten", victims=(0,), most=5),
    Place("drop.durable", victims=(0,), most=5),
    Place("drop.followed", victims=(1,), most=5),
    Place("drop.told", victims=(0,), most=5),
    Place("log.after-write", most=30, modes=_LOG, synchronous=True),
    Place("log.after-sync", most=30, modes=_LOG, synchronous=True),
    Place("cut.taken", synchronous=True),
)
CASES: Final = [(place, mode) for place in PLACES for mode in place.modes]


def _id(case: object) -> str:
    if not isinstance(case, Place):
        return str(case)
    return f"{case.name}{'-steps' * case.synchronous}{'-apart' * case.apart}"


def test_every_failpoint_is_here() -> None:
    assert {place.name for place in PLACES} == set(NAMES)


async def a_server_dies_there(place: Place, mode: Mode, times: int, seed: int, directory: Path) -> None:
    """Have servers die at a place, so many times, while clients push, come, go, and checkpoints are taken."""
    rng = random.Random(f"{seed} {place.name} {mode}")
    flags = ("--checkpoint-every", "0s", "--keep", "2")
    with (
        RestartableCluster(directory, mode, flags=flags, apart=place.apart) as cluster,
        told(cluster, f"seed {seed}, {place}"),
    ):
        pushers = await _pushers(place, mode, cluster, seed)
        async with asyncio.timeout(30 + 15 * times), asyncio.TaskGroup() as group:
            group.create_task(pushers.run())
            await pushers.progress.reached(1)
            assert await take(cluster, pushers)
            busy = [group.create_task(_checkpoints(cluster, pushers)), group.create_task(_visitors(cluster))]
            await _die(place, times, cluster, rng)
            await pushers.progress.reached(pushers.progress.now + LIVES_ON)
            for task in busy:
                task.cancel()
            pushers.stop()
        final = await pull_all(cluster, pushers.job)
        if mode == "log":
            wrong = log_violations(pushers.history, final)
            assert not pushers.history.outcomes().unknown, "nobody is fenced"
        else:
            wrong = snapshot_violations(pushers.history, final, cluster.bases())
        assert not wrong, "\n".join(wrong)
        assert cluster.kills >= times


async def _pushers(place: Place, mode: Mode, cluster: RestartableCluster, seed: int) -> Pushers:
    if place.synchronous:
        # After a fall back to a checkpoint workers come again one by one, and a step is of who is there.
        return Steppers(cluster, seed, 2 if mode == "log" else 1)
    await make_tensors(cluster)
    return Pushers(cluster, seed)


async def _die(place: Place, times: int, cluster: RestartableCluster, rng: random.Random) -> None:
    victims = sorted(rng.choice(place.victims) for _ in range(times))
    if rng.random() < 0.5:
        victims.reverse()
    armed: int | None = None
    for number, victim in enumerate(victims):
        if victim != armed:
            await asyncio.to_thread(cluster.kill, victim)
            _arm(cluster, victim, place, rng)
        await cluster.killed(victim)
        following = victims[number + 1] if number + 1 < times else None
        armed = following if following == victim and not place.is_at_start else None
        if armed is None:
            cluster.start(victim)
        else:
            _arm(cluster, victim, place, rng)


def _arm(cluster: RestartableCluster, victim: int, place: Place, rng: random.Random) -> None:
    cluster.start(victim, f"{place.name}=kill@{rng.randint(1, place.most)}")


async def _checkpoints(cluster: RestartableCluster, pushers: Pushers) -> None:
    while True:
        await take(cluster, pushers)
        await asyncio.sleep(_PAUSE)


async def _visitors(cluster: RestartableCluster) -> None:
    """Have a job come and go."""
    while True:
        async with connect(cluster.address, "visited"):
            await asyncio.sleep(_PAUSE)
        with suppress(PSError, OSError):  # or there is nothing to drop; or it is done and nobody was told
            await drop(*split_address(cluster.address), "visited")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("place", "mode"), CASES, ids=_id)
async def test_a_server_dies_there_again_and_again(
    place: Place, mode: Mode, fault_seed: int, tmp_path: Path
) -> None:
    await a_server_dies_there(place, mode, ALWAYS, fault_seed, tmp_path)


# --- a restore that an operator has asked for, with update logs


async def a_restore_is_done_or_not_done(place: str, times: int, seed: int, directory: Path) -> None:
    """Have a server die in the midst of restores; the others must not be left with half of it."""
    rng = random.Random(f"{seed} {place}")
    with (
        RestartableCluster(directory, "log", flags=("--checkpoint-every", "0s")) as cluster,
        told(cluster, f"seed {seed}, {place}"),
    ):
        async with connect(cluster.address, JOB) as client:
            await client.create("w", np.zeros(ELEMENTS, np.float32), Add())
            saved = set()
            for _ in range(times):
                saved.add(await _push(client))
                taken = await cluster.checkpoint()
                assert taken is not None
                value, timeline = await _push(client), (await cluster.status()).durability.timeline
                victim = rng.randrange(2)
                await asyncio.to_thread(cluster.kill, victim)
                cluster.start(victim, f"{place}=kill@1")
                await cluster.all_there()
                restoring = asyncio.create_task(cluster.restore(taken.checkpoint))
                await cluster.killed(victim)
                cluster.start(victim)
                await restoring
                after = await _push(client) - 1
                is_done = (await cluster.status()).durability.timeline > timeline
                assert after in saved if is_done else after == value


async def _push(client: Client) -> float:
    """Push once, and return how many pushes are counted, which must be the same for all elements."""
    try:
        await client.push({"w": np.ones(ELEMENTS, np.float32)})
    except Fenced:
        await client.pull("w")  # which joins again
        await client.push({"w": np.ones(ELEMENTS, np.float32)})
    values = await client.pull("w")
    assert (values == values[0]).all()
    return float(values[0])


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["restore.begin", "restore.loaded", "restore.installed"])
async def test_a_restore_is_done_or_not_done_by_all(place: str, fault_seed: int, tmp_path: Path) -> None:
    await a_restore_is_done_or_not_done(place, ALWAYS, fault_seed, tmp_path)


# --- some of it, for the suite


async def test_a_server_dies_at_any_place(fault_seed: int, tmp_path: Path) -> None:
    place, mode = random.Random(fault_seed).choice(CASES)
    await a_server_dies_there(place, mode, 2, fault_seed, tmp_path)
