"""What servers are when they are started again: exactly what they were, or else what a checkpoint says."""

import asyncio
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from protocol.errors import (
    BadRequest,
    CheckpointFailed,
    Fenced,
    InternalError,
    LogUnwritable,
    NotReady,
)
from protocol.optimizers import SGD, Add
from protocol.status import ClusterStatus
from psserver.durability.failpoints import configure
from psserver.persistence import DurabilitySettings
from psserver.server import Server, ServerSettings
from psworker.asking import fetch_status
from psworker.client import Client, connect
from tests.cluster import EAGER, DurableCluster, durable_cluster, holds

Mode = Literal["snapshot", "log"]

ELEMENTS = 40_000  # a block on each of two servers
ONES = np.ones(ELEMENTS, np.float32)


async def make(client: Client) -> None:
    optimizer = SGD(lr=1.0) if client.staleness == 0 else Add()
    await client.create("w", np.zeros(ELEMENTS, np.float32), optimizer)


async def value(client: Client) -> float:
    """Return what every element of the tensor is."""
    values = await client.pull("w")
    assert (values == values[0]).all(), "some shard has another state"
    return float(values[0])


async def timeline_of(cluster: DurableCluster) -> int:
    return (await status_of(cluster)).durability.timeline


async def status_of(cluster: DurableCluster) -> ClusterStatus:
    return await fetch_status(*cluster.endpoint, within=5.0)


def switch(cluster: DurableCluster, mode: Mode) -> None:
    """Have the servers that are started from now on keep something else."""
    for number, settings in enumerate(cluster.durability):
        cluster.durability[number] = DurabilitySettings(mode, settings.url, settings.every, settings.keep)


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize(("shards", "separate"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("staleness", [0.0, 1.0, math.inf])
async def test_servers_that_were_stopped_are_what_they_were(
    mode: Mode, shards: int, staleness: float, separate: bool, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, shards, mode, separate=separate) as cluster,
        connect(cluster.address, staleness=staleness) as client,
    ):
        await make(client)
        await client.push_pull({"w": ONES})
        before, sign = client.joined, -1 if staleness == 0 else 1
        for count in (2, 3):
            await cluster.stop()
            await cluster.start()
            await client.push_pull({"w": ONES})
            assert await value(client) == sign * count
        assert client.joined == before, "it went on with its incarnation"
        assert await timeline_of(cluster) == 1


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("victim", [0, 1])
async def test_without_a_log_a_server_that_was_killed_makes_all_go_back(
    victim: int, separate: bool, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, 2, "snapshot", separate=separate) as cluster,
        connect(cluster.address) as client,
    ):
        await make(client)
        await client.push({"w": ONES})
        await cluster.checkpoint()
        await client.push({"w": ONES})
        await cluster.kill(victim)
        await cluster.start(victim)
        with pytest.raises(Fenced):
            await client.push({"w": ONES})
        assert await value(client) == 1
        await client.push({"w": ONES})
        assert await value(client) == 2
        assert await timeline_of(cluster) == 2


@pytest.mark.parametrize("separate", [False, True])
async def test_a_log_that_was_moved_away_is_not_passed_over_in_silence(
    separate: bool, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, 2, "log", separate=separate) as cluster,
        connect(cluster.address) as client,
    ):
        await make(client)
        await client.push({"w": ONES})
        await cluster.checkpoint()
        await client.push({"w": ONES})
        await cluster.kill(1)
        shutil.rmtree((tmp_path / "server-1" if separate else tmp_path) / "log" / "shard-1")
        await cluster.start(1)
        with pytest.raises(Fenced):
            await client.push({"w": ONES})
        assert await value(client) == 1
        assert await timeline_of(cluster) == 2
        await client.push({"w": ONES})
        await cluster.kill(0, 1)
        await cluster.start()
        assert await value(client) == 2, "from now on nothing is lost any more"


async def test_who_begins_to_log_after_a_death_goes_back(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "snapshot") as cluster, connect(cluster.address) as client:
        await make(client)
        await client.push({"w": ONES})
        await cluster.checkpoint()
        await client.push({"w": ONES})
        await cluster.kill(1, 0)
        switch(cluster, "log")
        await cluster.start()
        with pytest.raises(Fenced):
            await client.push({"w": ONES})
        assert await value(client) == 1
        assert await timeline_of(cluster) == 2


@pytest.mark.parametrize("checkpointed", [False, True])
async def test_who_begins_to_log_after_clean_stops_has_lost_nothing(
    checkpointed: bool, tmp_path: Path
) -> None:
    async with durable_cluster(tmp_path, 2, "snapshot") as cluster, connect(cluster.address) as client:
        await make(client)
        await client.push({"w": ONES})
        await cluster.stop(1)  # with a checkpoint of all
        half = asyncio.create_task(client.push({"w": ONES}))  # shard 0 applies its half of it
        await holds(lambda: cluster[0]._shard.updates > 2)
        await cluster.stop(0)  # with a state of its own
        switch(cluster, "log")
        await cluster.start()
        await half
        assert await value(client) == 2
        if checkpointed:
            await cluster.checkpoint()
        for count in (3, 4):
            await client.push({"w": ONES})
            await cluster.kill(1, 0)
            await cluster.start()
            assert await value(client) == count
        assert await timeline_of(cluster) == 1


@pytest.mark.parametrize(("first", "second"), [("log", "snapshot"), ("snapshot", "log"), ("log", None)])
async def test_all_servers_keep_the_same(first: Mode, second: Mode | None, tmp_path: Path) -> None:
    coordinator = Server(
        ServerSettings(port=0, shards=2, durability=DurabilitySettings(first, str(tmp_path / "0")))
    )
    address = await coordinator.start()
    host, _, port = address.rpartition(":")
    kept = None if second is None else DurabilitySettings(second, str(tmp_path / "1"))
    other = Server(ServerSettings(port=0, join=(host, int(port)), durability=kept))
    try:
        with pytest.raises(BadRequest, match=f"started with --durability {first}") as raised:
            await other.start()
        assert raised.value.field == "durability"
    finally:
        await other.stop()
        await coordinator.stop()


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_job_that_no_shard_has_heard_of_goes_on_after_a_restart(shards: int, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, shards, "log") as cluster:
        configure("membership.before-announce=error:EIO@1")  # nobody hears of it but the coordinator
        try:
            with pytest.raises(InternalError):
                async with connect(cluster.address, staleness=0):
                    pass
        finally:
            configure("")
        await cluster.kill(0)
        await cluster.start(0)
        async with connect(cluster.address, staleness=0, name="other") as client:
            await make(client)
            assert await value(client) == 0


# --- an operator's restore


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize("separate", [False, True])
async def test_a_restore_of_an_older_checkpoint_lasts(mode: Mode, separate: bool, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, mode, separate=separate) as cluster:
        async with connect(cluster.address) as client:
            await make(client)
            await client.push({"w": ONES})
            first = await cluster.checkpoint()
            await client.push({"w": ONES})
            await cluster.checkpoint()
        place = tmp_path / "server-0" if separate else tmp_path
        if separate:  # it must be a place that all servers see
            for name in ("shard-1.json", "shard-1.safetensors"):
                shutil.copy(tmp_path / "server-1/checkpoint-00000001" / name, place / "checkpoint-00000001")
        await cluster.restore(place, checkpoint=first.checkpoint)
        assert await observed(cluster) == 1
        await cluster.kill(1, 0)
        await cluster.start()
        assert await observed(cluster) == 1


async def test_a_pull_is_of_one_timeline(tmp_path: Path) -> None:
    """One part of it is answered, the other waits for a dead server; then all go back."""
    async with (
        durable_cluster(tmp_path, 2, failure=EAGER) as cluster,
        connect(cluster.address, "job") as client,
    ):
        await make(client)
        await cluster.checkpoint()
        await client.push({"w": ONES})
        await cluster.kill(1)
        answered = cluster[0].metrics.requests["pull", "ok"]
        pulling = asyncio.create_task(client.pull("w"))
        await holds(lambda: cluster[0].metrics.requests["pull", "ok"] > answered)
        await cluster.start(1)
        values = await pulling
        assert (values == values[0]).all()
        assert values[0] == await value(client) == 0


async def test_a_restore_needs_all_servers(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster:
        async with connect(cluster.address) as client:
            await make(client)
        await cluster.checkpoint()
        await cluster.kill(1)
        with pytest.raises(NotReady, match="a server is away"):
            await cluster.restore(tmp_path)


# --- the disk is full


async def test_a_push_that_is_refused_is_sent_again_when_there_is_room(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster, connect(cluster.address) as client:
        await make(client)
        configure("log.before-write=error:ENOSPC")
        try:
            waiting = asyncio.create_task(client.push({"w": ONES}))  # was taken before anybody knew
            await holds(lambda: all(cluster[number]._shard.log_problem for number in (0, 1)))
            refused = asyncio.create_task(client.push_pull({"w": ONES}))
            await holds(lambda: cluster[1].metrics.requests["push_pull", "log_unwritable"] > 0)
            with pytest.raises(CheckpointFailed, match="cannot be written"):
                await cluster.checkpoint()
            assert not refused.done()
            assert not waiting.done()
        finally:
            configure("")
        await asyncio.gather(waiting, refused)
        assert await value(client) == 2


async def test_after_a_while_a_push_that_is_refused_fails(tmp_path: Path) -> None:
    async with (
        durable_cluster(tmp_path, 1, "log") as cluster,
        connect(cluster.address, reconnect_for=0.1) as client,
    ):
        await make(client)
        configure("log.before-write=error:ENOSPC")
        try:
            waiting = asyncio.create_task(client.push({"w": ONES}))
            await holds(lambda: bool(cluster[0]._shard.log_problem))
            with pytest.raises(LogUnwritable, match="No space left"):
                await client.push({"w": ONES})
        finally:
            configure("")
        await waiting
        assert await value(client) == 1


async def test_a_server_stops_with_a_log_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with durable_cluster(tmp_path, 1, "log") as cluster, connect(cluster.address) as client:
        await make(client)
        await client.push({"w": ONES})
        configure("log.before-write=error:ENOSPC")
        try:
            waiting = asyncio.create_task(client.push({"w": ONES}))
            await holds(lambda: bool(cluster[0]._shard.log_problem))
            await cluster.stop()
        finally:
            configure("")
        assert "some updates were not made durable" in caplog.text
        await cluster.start()
        await waiting
        assert await value(client) == 2


# --- checkpoints beside workers that come, go and hang


def deaf(client: Client, asked: Callable[[], None]) -> None:
    """Have a client not send its marker when it is asked for one, as one that hangs."""
    link = client._links[0]
    marked = link._marked
    assert marked is not None

    def swallow(checkpoint: int) -> None:
        asked()

    link._marked = swallow


async def test_a_checkpoint_is_given_up_for_a_worker_that_hangs_and_the_others_go_on(tmp_path: Path) -> None:
    async with (
        durable_cluster(tmp_path, 2) as cluster,
        connect(cluster.address, name="hung") as hung,
        connect(cluster.address, name="busy") as busy,
    ):
        await make(busy)
        deaf(hung, lambda: None)
        with pytest.raises(CheckpointFailed, match="no marker of hung"):
            await cluster.checkpoint()
        assert "no marker of hung" in (await status_of(cluster)).durability.problem
        await asyncio.gather(busy.push({"w": ONES}), hung.push({"w": ONES}))
        assert await value(busy) == 2


async def test_a_worker_that_dies_meanwhile_is_waited_for_no_longer(tmp_path: Path) -> None:
    asked = asyncio.Event()
    async with durable_cluster(tmp_path, 2, failure=EAGER) as cluster, connect(cluster.address) as busy:
        await make(busy)
        async with connect(cluster.address, name="dying") as dying:
            deaf(dying, asked.set)
            taking = asyncio.create_task(cluster.checkpoint())
            await asked.wait()
            dying._fenced = True  # it says nothing any more, not even goodbye
            for link in dying._links:
                await link.close()
            await taking
        await busy.push({"w": ONES})
        assert await value(busy) == 1


async def test_workers_come_go_and_push_while_checkpoints_are_taken(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2) as cluster, connect(cluster.address) as owner:
        await make(owner)
        count, done = 0, False

        async def visit(number: int) -> None:
            nonlocal count
            while not done:
                async with connect(cluster.address, name=f"visitor-{number}") as visitor:
                    await visitor.push({"w": ONES})
                    count += 1

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(visit(number))
            for _ in range(5):
                await cluster.checkpoint()
            done = True
        assert await value(owner) == count
        await cluster.kill(1, 0)
        await cluster.start()
        restored = await observed(cluster)
        assert restored <= count
        assert restored == int(restored)


async def observed(cluster: DurableCluster) -> float:
    async with connect(cluster.address, observe=True) as reader:
        return await value(reader)
