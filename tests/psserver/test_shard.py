import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.connection import Answer, Connection
from protocol.errors import BadRequest, Conflict, Fenced, NotFinite, OutOfOrder, PSError
from protocol.frames import VERSION
from protocol.messages import Leave, Plan
from protocol.optimizers import SGD, Add
from protocol.status import ClusterStatus
from psserver.membership import FailureSettings
from psserver.optimizers import Moment
from psserver.store.arithmetic import INLINE
from psserver.store.dense import DenseBlock, Version
from psworker.client import Client, connect
from tests.cluster import (
    PATIENT,
    Cluster,
    connected,
    full,
    parts_of,
    payload_of,
    running_cluster,
    wire,
    workers,
)
from tests.psserver.by_hand import ByHand, worker_by_hand

Array = npt.NDArray[Any]

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

SMALL, LARGE = 1000, INLINE // 4 + 1000  # float32: below and above what is computed in threads

SOON = FailureSettings(heartbeat=0.05, dead_after=0.3)


@asynccontextmanager
async def pair(cluster: Cluster, **settings: Any) -> AsyncIterator[tuple[Client, ByHand]]:
    """The two workers of a job: "client", and "hand" that does what it is told."""
    address = cluster.address
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(
            stack.enter_async_context(connect(address, name="client", workers=2, **settings)),
            stack.enter_async_context(worker_by_hand(address, "hand", workers=2, **settings)),
        )


@asynccontextmanager
async def connected_as(worker: ByHand, cluster: Cluster, shard: int = 0) -> AsyncIterator[Connection]:
    """Another connection of a worker's to a shard."""
    address = worker.joined.shards[shard] or cluster.address
    async with connected(address, worker.identity) as connection:
        yield connection


def retrieve(answer: Answer) -> None:
    """Nobody awaits this answer."""
    if not answer.cancelled():
        answer.exception()


def waits_for(*names: str) -> Callable[[ClusterStatus], bool]:
    """Whether somebody waits, for nobody but these."""
    return lambda status: any(wait.waiting_for == names for job in status.jobs for wait in job.waits)


# --- asynchronous


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_pull_sees_a_block_at_one_version(size: int) -> None:
    """Guarantee 5. Each push changes every element by the same amount."""
    pushes, pulls = (5, 10) if size == LARGE else (50, 50)
    async with running_cluster() as cluster, workers(cluster.address, 3) as (a, b, reader):
        await a.create("w", np.zeros(size, np.float32), Add())

        async def push(client: Client, delta: float) -> None:
            for _ in range(pushes):
                await client.push({"w": full(size, delta)})

        async def pull() -> None:
            for _ in range(pulls):
                values = await reader.pull("w")
                assert values.min() == values.max()

        await asyncio.gather(push(a, 1.0), push(a, 16.0), push(b, 256.0), pull(), pull())
        np.testing.assert_array_equal(await reader.pull("w"), full(size, pushes * 273.0))


async def test_small_and_large_updates_of_one_push_come_together() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        await ps.create("small", np.zeros(10, np.float32), Add())
        await ps.create("large", np.zeros(LARGE, np.float32), Add())
        both = {"small": full(10, 1.0), "large": full(LARGE, 1.0)}

        async def push_small() -> None:
            for _ in range(20):
                await ps.push({"small": full(10, 1.0)})

        await asyncio.gather(push_small(), *(ps.push(both) for _ in range(4)), push_small())
        values = await ps.pull(["small", "large"])
        assert (values["small"] == 44.0).all()
        assert (values["large"] == 4.0).all()


async def test_what_was_pulled_does_not_change_any_more() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        await ps.create("w", np.zeros(LARGE, np.float32), Add())
        pulled = [await ps.pull("w")]
        for _ in range(5):
            await ps.push({"w": full(LARGE, 1.0)})
            pulled.append(await ps.pull("w"))
        for number, values in enumerate(pulled):
            assert (values == number).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("shards", [1, 3])
async def test_one_bad_tensor_among_many_changes_none_of_them(bad: float, size: int, shards: int) -> None:
    async with running_cluster(shards) as cluster, connect(cluster.address) as ps:
        names = ["a", "b", "c", "d"]
        for name in names:
            await ps.create(name, full(size, 1.0), Add())
        for last in names:  # whichever is refused, and wherever it is
            gradients = {name: full(size, 1.0) for name in names}
            gradients[last][-1] = bad
            with pytest.raises(NotFinite) as caught:
                await ps.push(gradients)
            assert (caught.value.field, caught.value.value) == ("tensors", last)
            for values in (await ps.pull(names)).values():
                assert (values == 1.0).all()
        await ps.push({name: full(size, 1.0) for name in names})
        for values in (await ps.pull(names)).values():
            assert (values == 2.0).all()


async def test_pushes_of_what_has_left_or_was_replaced_are_refused_on_every_shard() -> None:
    """Guarantee 8: no update of an old incarnation is applied after its removal."""
    async with running_cluster(3) as cluster, connect(cluster.address, name="stays") as other:
        await other.create("w", full(3 * SMALL, 0.0), Add())
        await other.create("v", full(3 * SMALL, 0.0), Add())
        await other.create("u", full(3 * SMALL, 0.0), Add())
        names = {block.shard: name for name, info in (await other.tensors()).items() for block in info.blocks}
        gradient = full(3 * SMALL, 1.0)
        async with worker_by_hand(cluster.address, "a") as old:
            assert old.joined.incarnation == 1
            for shard in range(3):
                await old.push(shard, 1, 0, **{names[shard]: gradient})
            await old.connections[0].request(Leave(0))
            await cluster.until(lambda s: s.jobs[0].workers[1].state == "left")
            async with connect(cluster.address, name="a") as again:
                assert again.joined is not None
                assert again.joined.incarnation == 2
                for shard in range(3):
                    for seq in (1, 2):
                        with pytest.raises(Fenced) as caught:
                            await old.push(shard, seq, 0, **{names[shard]: gradient})
                        assert (caught.value.field, caught.value.value) == ("worker", "1")
                    with pytest.raises(Fenced):
                        await old.end(shard, 2, 0, **{names[shard]: gradient})
                await again.push(dict.fromkeys("wvu", gradient))
                for values in (await again.pull(list("wvu"))).values():
                    np.testing.assert_array_equal(values, full(3 * SMALL, 2.0))


async def test_a_push_that_was_on_the_wire_when_its_worker_was_replaced_is_refused() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as other:
        await other.create("w", full(10_000, 0.0), Add())
        async with wire(cluster.address) as old:
            async with connect(cluster.address, name="a") as first:
                joined = first.joined
                assert joined is not None
                identity: dict[str, Any] = {
                    "job": joined.job,
                    "worker": joined.worker,
                    "incarnation": joined.incarnation,
                }
                await old.ask("hello", versions=[VERSION], client="test", **identity)
                payload = payload_of(full(10_000, 1.0))
                old.send("push", payload[:20_000], len(payload), tensors=PARTS, step=0, seq=1)
                server = cluster.servers[0]
                await cluster.until(lambda _: server.metrics.traffic.received > 60_000)
            async with connect(cluster.address, name="a"):
                old.send_more(payload[20_000:])
                reply, _ = await old.reply()
                assert reply.get("code") == "FENCED"
                assert not (await other.pull("w")).any()


PARTS = parts_of(w=full(10_000, 1.0))


async def test_an_update_in_threads_does_not_outlive_its_worker() -> None:
    """The worker goes between the arrival of a large gradient and the moment at which it is swapped in."""
    async with running_cluster() as cluster, connect(cluster.address, name="stays") as other:
        await other.create("w", full(LARGE, 0.0), Add())
        async with worker_by_hand(cluster.address, "a") as gone:
            pushes = [gone.push(0, seq, 0, w=full(LARGE, 1.0)) for seq in (1, 2, 3)]
            leaving = gone.connections[0].send(Leave(0))
            ends = await asyncio.gather(*pushes, leaving, return_exceptions=True)
            applied = [end for end in ends[:3] if not isinstance(end, BaseException)]
            assert all(isinstance(end, tuple | Fenced) for end in ends)
            np.testing.assert_array_equal(await other.pull("w"), full(LARGE, len(applied)))


# --- exactly once


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_push_counts_once_however_often_and_wherever_it_comes(size: int) -> None:
    async with running_cluster() as cluster, connect(cluster.address, name="stays") as other:
        await other.create("w", full(size, 0.0), Add())
        async with worker_by_hand(cluster.address, "a") as worker, connected_as(worker, cluster) as second:
            first = worker.end(0, 1, 0, w=full(size, 1.0))
            first.add_done_callback(retrieve)
            for _ in range(3):
                _, (values,) = await worker.end(0, 1, 0, on=second, w=full(size, 1.0))
                np.testing.assert_array_equal(values, full(size, 1.0))
            await other.push({"w": full(size, 2.0)})
            _, (values,) = await worker.end(0, 1, 0, w=full(size, 1.0))
            np.testing.assert_array_equal(values, full(size, 3.0))  # what it is now
            with pytest.raises(OutOfOrder) as caught:
                await worker.push(0, 3, 0, w=full(size, 1.0))
            assert (caught.value.field, caught.value.value) == ("seq", "3")
            with pytest.raises(Conflict):
                await worker.push(0, 1, 0, w=full(size, 9.0))
            await worker.push(0, 2, 0, w=full(size, 4.0))
            np.testing.assert_array_equal(await other.pull("w"), full(size, 7.0))
            assert cluster.servers[0].metrics.duplicates == 4


async def test_a_retry_of_a_push_that_waits_at_a_barrier_is_answered_where_it_came() -> None:
    async with running_cluster(2, failure=PATIENT) as cluster, pair(cluster, staleness=0) as (client, worker):
        await client.create("w", full(SMALL, 0.0), Add())
        third = full(SMALL, 3.0)
        worker.end(0, 1, 0, w=third).add_done_callback(retrieve)
        worker.end(1, 1, 0).add_done_callback(retrieve)
        await cluster.until(waits_for("client"))
        async with (
            connected_as(worker, cluster) as first,
            connected_as(worker, cluster, 1) as second,
        ):
            for connection in worker.connections:
                connection.abort()
            retries = [worker.end(0, 1, 0, on=first, w=third), worker.end(1, 1, 0, on=second)]
            step = asyncio.create_task(client.push_pull({"w": full(SMALL, 1.0)}))
            for reply, _ in await asyncio.gather(*retries):
                assert reply.clock is None
            np.testing.assert_array_equal((await step)["w"], full(SMALL, 4.0))
            with pytest.raises(Conflict):
                await worker.end(0, 1, 0, on=first, w=full(SMALL, 9.0))


async def test_a_retry_of_a_push_that_waits_for_slower_workers_is_answered_where_it_came() -> None:
    async with running_cluster(failure=PATIENT) as cluster, pair(cluster, staleness=1) as (client, worker):
        await client.create("w", full(SMALL, 0.0), Add())
        await worker.end(0, 1, 0, w=full(SMALL, 1.0))
        worker.end(0, 2, 1, w=full(SMALL, 1.0)).add_done_callback(retrieve)
        await cluster.until(waits_for("client"))
        async with connected_as(worker, cluster) as again:
            retry = worker.end(0, 2, 1, on=again, w=full(SMALL, 1.0))
            await cluster.until(lambda _: cluster.servers[0].metrics.duplicates == 1)
            assert not retry.done()
            await client.step()
            np.testing.assert_array_equal((await retry)[1][0], full(SMALL, 2.0))


# --- synchronous


def reference(
    start: dict[str, Array], steps: list[dict[int, tuple[float, dict[str, Array]]]], lr: float
) -> list[dict[str, Array]]:
    """One process doing SGD on the weighted mean of the gradients of each step."""
    values = {name: value.astype(np.float64) for name, value in start.items()}
    found = []
    for step in steps:
        for name, value in values.items():
            given = [(weight, gradients[name]) for weight, gradients in step.values() if name in gradients]
            if given:
                weights = [weight for weight, _ in given]
                mean = np.average([g.astype(np.float64) for _, g in given], axis=0, weights=weights)
                values[name] = value - lr * mean
        found.append(dict(values))
    return found


SHAPES = {"w": (300, 200), "v": (3, 5, 7), "b": (11,), "s": (), "large": (LARGE,)}


async def test_synchronous_steps_equal_one_process_on_the_weighted_mean() -> None:
    """Guarantee 6: uneven weights, tensors over 3 shards, some contributing nothing in some steps."""
    rng = np.random.default_rng(1)
    start = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}
    steps = [
        {
            worker: (
                float(rng.integers(1, 100)),
                {
                    name: np.asarray(rng.normal(size=shape), np.float32)
                    for name, shape in SHAPES.items()
                    if rng.random() < 0.6
                },
            )
            for worker in range(3)
            if rng.random() < 0.8
        }
        for _ in range(6)
    ]
    expected = reference(start, steps, lr=0.25)
    async with running_cluster(3) as cluster, workers(cluster.address, 3, staleness=0) as clients:
        for name, value in start.items():
            await asyncio.gather(*(client.create(name, value, SGD(0.25)) for client in clients))
        assert len((await clients[0].tensors())["large"].blocks) == 3

        async def train(worker: int, client: Client) -> None:
            for number, step in enumerate(steps):
                weight, gradients = step.get(worker, (1.0, {}))
                half = dict(list(gradients.items())[: len(gradients) // 2])
                if number % 2:  # in two requests, it comes to the same
                    await client.push(half, weight=weight)
                    gradients = {name: g for name, g in gradients.items() if name not in half}
                new = await client.push_pull(gradients, tuple(SHAPES), weight=weight)
                assert client.clock == number + 1
                for name, value in new.items():
                    np.testing.assert_allclose(value, expected[number][name], rtol=1e-5, atol=1e-6)

        await asyncio.gather(*(train(worker, client) for worker, client in enumerate(clients)))


async def test_nobody_gets_the_next_step_before_the_last_worker_has_ended_this_one() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 3, staleness=0) as (a, b, c):
        await a.create("w", full(4, 0.0), SGD(1.0))
        early = [asyncio.create_task(client.push_pull({"w": full(4, 3.0)})) for client in (a, b)]
        await cluster.until(waits_for("w2"))
        assert not any(task.done() for task in early)
        np.testing.assert_array_equal(await c.pull("w"), full(4, 0.0))
        await c.push({"w": full(4, 3.0)})  # a push alone does not end the step
        np.testing.assert_array_equal(await c.pull("w"), full(4, 0.0))
        assert (await cluster.job()).step == 0
        await c.step()
        for task in early:
            np.testing.assert_array_equal((await task)["w"], full(4, -3.0))
        job = await cluster.job()
        assert (job.step, job.waits) == (1, ())


async def test_a_worker_that_leaves_lets_the_others_go_on() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        async with connect(cluster.address, job="other", staleness=0, workers=1) as alone:
            await alone.step()  # jobs do not wait for each other
        await a.create("w", full(4, 0.0), SGD(1.0))
        await asyncio.gather(a.step(), b.step())
        waiting = asyncio.create_task(a.push_pull({"w": full(4, 1.0)}))
        await cluster.until(waits_for("w1"))
        await b._leave()
        np.testing.assert_array_equal((await waiting)["w"], full(4, -1.0))
        np.testing.assert_array_equal((await a.push_pull({"w": full(4, 1.0)}))["w"], full(4, -2.0))
        with pytest.raises(Fenced):
            await b.push({"w": full(4, 100.0)})
        np.testing.assert_array_equal(await a.pull("w"), full(4, -2.0))


async def test_a_step_is_ended_once_by_each_worker() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        first = asyncio.create_task(a.step())
        await cluster.until(waits_for("w1"))
        with pytest.raises(BadRequest, match="once"):
            await a.step()
        await b.step()
        await first
        await asyncio.gather(a.step(), b.step())
        assert (await cluster.job()).step == 2


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_mean_that_overflows_is_told_to_all_and_changes_nothing(size: int) -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, staleness=0) as clients:
        await clients[0].create("w", full(size, 1.0), Add())
        await clients[0].create("v", full(size, 1.0), Add())
        gradients = {"v": full(size, 1.0), "w": full(size, 3e38)}
        ends = [client.push_pull(gradients) for client in clients]
        for end in await asyncio.gather(*ends, return_exceptions=True):
            assert isinstance(end, NotFinite)
        for values in (await clients[0].pull(["v", "w"])).values():
            assert (values == 1.0).all()


async def test_a_mean_that_overflows_leaves_the_connection_usable() -> None:
    async with running_cluster() as cluster, connect(cluster.address, staleness=0) as ps:
        await ps.create("w", full(4, 3e38), Add())
        with pytest.raises(NotFinite):
            await ps.push_pull({"w": full(4, 3e38)})
        await ps.create("v", full(4, 0.0), Add())
        for number in (1.0, 2.0):
            new = await ps.push_pull({"v": full(4, 1.0)})
            np.testing.assert_array_equal(new["v"], full(4, number))


async def test_a_tensor_may_be_made_while_a_step_is_being_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    held, release = asyncio.Event(), asyncio.Event()
    next_version = DenseBlock.next_version_in_threads

    async def slowly(block: DenseBlock, gradient: Array, moment: Moment, threads: Executor) -> Version:
        held.set()
        await release.wait()
        return await next_version(block, gradient, moment, threads)

    monkeypatch.setattr(DenseBlock, "next_version_in_threads", slowly)
    async with running_cluster() as cluster, connect(cluster.address, staleness=0) as ps:
        await ps.create("w", full(4, 0.0), Add())
        step = asyncio.create_task(ps.push_pull({"w": full(4, 1.0)}))
        await held.wait()
        await ps.create("new", full(4, 0.0))
        release.set()
        np.testing.assert_array_equal((await step)["w"], full(4, 1.0))


# --- jobs


async def test_jobs_do_not_see_each_others_names() -> None:
    async with (
        running_cluster(2) as cluster,
        connect(cluster.address, job="one") as one,
        connect(cluster.address, job="two") as two,
    ):
        await one.create("w", full(4, 1.0), Add())
        await two.create("w", np.full((2, 3), 2.0), Add())
        await one.push({"w": full(4, 1.0)})
        np.testing.assert_array_equal(await one.pull("w"), full(4, 2.0))
        np.testing.assert_array_equal(await two.pull("w"), np.full((2, 3), 2.0))


async def test_who_only_observes_makes_no_tensors() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as ps:
        await ps.create("w", full(4, 1.0), Add())
        async with connect(cluster.address, observe=True) as observer:
            with pytest.raises(PSError, match="join"):
                await observer.create("new", full(4, 0.0))
        assert set(await ps.tensors()) == {"w"}


async def test_a_tensor_in_use_is_not_filled_again() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps, wire(cluster.address) as other:
        await ps.create("w", full(4, 0.0), Add())
        await ps.push({"w": full(4, 1.0)})
        joined = ps.joined
        assert joined is not None
        identity: dict[str, Any] = {"worker": joined.worker, "incarnation": joined.incarnation}
        await other.ask("hello", versions=[VERSION], client="test", job=joined.job, **identity)
        values = full(4, 9.0)
        init: dict[str, Any] = {"name": "w", "spec": ["float32", [4], ["add", []]], "attempt": 7}
        reply = await other.ask("init", payload_of(values), **init, tensors=parts_of(w=values))
        assert (reply["code"], reply["field"]) == ("BAD_REQUEST", "attempt")
        np.testing.assert_array_equal(await ps.pull("w"), full(4, 1.0))


async def test_names_whose_answer_fits_no_header_change_nothing() -> None:
    names = [f"{number:0120}" for number in range(450)]
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        for name in names:
            await ps.create(name, full(1, 0.0), Add())
        assert set(await ps.tensors()) == set(names)
        with pytest.raises(PSError, match="fewer tensors"):
            await ps.push_pull({names[0]: full(1, 1.0)}, names)
        assert await ps.pull(names[0]) == 0.0


async def test_a_worker_has_seen_its_own_updates() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        await ps.create("w", full(4, 0.0), Add())
        await ps.pull("w")
        for _ in range(4):
            await ps.push({"w": full(4, 1.0)})
        async with connect(cluster.address) as other:
            await other.push({"w": full(4, 1.0)})
        await ps.push({"w": full(4, 1.0)})
        _, total = cluster.servers[0].metrics.updates_missed.buckets()
        assert total == 4 + 1  # the other had seen none of 4, and this one had not seen 1


async def test_a_lease_that_is_waited_for_is_answered_when_its_worker_leaves() -> None:
    plan = Plan("text", chunks=1, epochs=1, evaluate_every=0, seed=0)
    async with running_cluster() as cluster, connect(cluster.address, plan=plan) as busy:
        await busy.lease(block=False)
        async with connect(cluster.address, plan=plan) as idle:
            waiting = asyncio.create_task(idle.lease(block=True))
            await cluster.status()
        with pytest.raises(PSError):
            await waiting
