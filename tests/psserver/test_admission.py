"""Joining, where it takes long: others have yet to come, or a shard is slow to hear of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protocol.frames import VERSION
from protocol.messages import Epoch
from protocol.optimizers import Add
from protocol.status import ClusterStatus
from psserver.coordinator import Coordinator
from psserver.membership import FailureSettings
from psworker.client import connect
from tests.cluster import Cluster, Wire, full, parts_of, payload_of, running_cluster, wire

TICK = 0.25


def coordinator_of(cluster: Cluster) -> Coordinator:
    coordinator = cluster.servers[0]._coordinator
    assert coordinator is not None
    return coordinator


class Watch:
    """The coordinator's clock, in the hands of a test."""

    def __init__(self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._coordinator = coordinator
        self._now = coordinator._clock()
        monkeypatch.setattr(coordinator, "_clock", lambda: self._now)

    def goes_on(self, seconds: float) -> None:
        """Let time pass, with the coordinator awake all the while."""
        for _ in range(int(seconds / TICK)):
            self._now += TICK
            self._coordinator.tick(TICK)


async def says_hello(one: Wire, **identity: Any) -> None:
    assert (await one.ask("hello", versions=[VERSION], client="test", **identity))["op"] == "ok"


def has_workers(status: ClusterStatus, **states: str) -> bool:
    return {worker.name: worker.state for job in status.jobs for worker in job.workers} == states


async def test_who_waited_long_for_the_others_is_alive_when_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_cluster() as cluster, wire(cluster.address) as a, wire(cluster.address) as b:
        watch = Watch(coordinator_of(cluster), monkeypatch)
        for one in (a, b):
            await says_hello(one)
        a.send("join", b"", 0, token="a", job="default", name="a", workers=2)
        await cluster.until(lambda status: has_workers(status, a="waiting"))
        watch.goes_on(100.0)
        assert (await b.ask("join", token="b", job="default", name="b", workers=2))["op"] == "ok"
        assert (await a.reply())[0]["op"] == "ok"
        watch.goes_on(TICK)
        assert has_workers(await cluster.status(), a="training", b="training")
        watch.goes_on(10.0)  # and from now on their silence counts
        assert has_workers(await cluster.status(), a="dead", b="dead")


async def test_who_joins_while_a_shard_is_slow_to_hear_of_it_is_told_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_cluster() as cluster, wire(cluster.address) as late:
        coordinator = coordinator_of(cluster)
        watch = Watch(coordinator, monkeypatch)
        heard, announce = asyncio.Event(), coordinator.links.announce

        async def announce_late(epoch: Epoch, is_over: Callable[[], bool]) -> None:
            await heard.wait()
            await announce(epoch, is_over)

        monkeypatch.setattr(coordinator.links, "announce", announce_late)
        await says_hello(late)
        late.send("join", b"", 0, token="late", job="default", name="late")
        await cluster.until(lambda status: has_workers(status, late="training"))
        watch.goes_on(100.0)
        heard.set()
        joined, _ = await late.reply()
        assert (joined["op"], joined["incarnation"]) == ("ok", 1)
        assert has_workers(await cluster.status(), late="training")


async def test_a_gradient_of_a_former_incarnation_lets_no_later_one_into_a_step() -> None:
    """The former left its gradient on shard 1 alone; the later one's reaches shard 0 first."""
    size = 1 << 16
    lost, kept = full(size // 2, 100.0), full(size // 2, 1.0)
    patient = FailureSettings(heartbeat=30.0, dead_after=120.0)  # the wires below send no heartbeats
    async with (
        running_cluster(2, failure=patient) as cluster,
        connect(cluster.address, name="b", staleness=0) as b,
    ):
        await b.create("w", np.zeros(size, np.float32), Add())
        other = (await cluster.status()).shards[1].address

        async def end(one: Wire, values: Any) -> None:
            """End step 0, and make sure that this has arrived."""
            payload, parts = payload_of(values), parts_of(w=values)
            one.send("push_pull", payload, len(payload), tensors=parts, names=["w"], step=0, seq=1)
            assert (await one.ask("ping"))["op"] == "ok"

        async with wire(cluster.address) as first, wire(other) as first_other:
            await says_hello(first)
            joined = await first.ask("join", token="1", job="default", name="a")
            await says_hello(first_other, job="default", worker=joined["worker"], incarnation=1)
            await end(first_other, lost)
            await cluster.until(lambda status: any(job.waits for job in status.jobs))
            assert (await first.ask("leave", clock=0))["op"] == "ok"
        async with wire(cluster.address) as second, wire(other) as second_other:
            await says_hello(second)
            joined = await second.ask("join", token="2", job="default", name="a")
            assert (joined["incarnation"], joined["clock"]) == (2, 0)
            await says_hello(second_other, job="default", worker=joined["worker"], incarnation=2)
            await end(second, kept)
            await end(second_other, kept)
            values = await b.push_pull({"w": full(size, 3.0)})
        np.testing.assert_array_equal(values["w"], full(size, 4.0))
