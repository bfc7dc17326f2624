import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from protocol.errors import (
    BadRequest,
    BadTensor,
    ConnectionLost,
    Fenced,
    FrameTooLarge,
    NotAMember,
    NotFinite,
    UnknownJob,
    UnknownTensor,
    Unreachable,
)
from protocol.messages import Plan, Set
from protocol.optimizers import SGD, Add
from psserver.membership import FailureSettings
from psworker import client as client_module
from psworker.asking import change
from psworker.client import Client, connect
from psworker.link import Link
from tests.cluster import EAGER, PATIENT, Cluster, full, holds, put_out, running_cluster, workers
from tests.faults.proxy import Proxy
from tests.faults.servers import proxied_cluster

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

SIZE = 200_000  # float32 elements: 3 blocks on 3 shards


@asynccontextmanager
async def client(shards: int = 1, **settings: Any) -> AsyncIterator[Client]:
    async with (
        running_cluster(shards, failure=PATIENT) as cluster,
        connect(cluster.address, **settings) as ps,
    ):
        yield ps


@pytest.mark.parametrize("shards", [1, 3])
async def test_the_example_of_the_documentation(shards: int) -> None:
    async with client(shards, job="demo") as ps:
        await ps.create("w", np.zeros((784, 100), np.float32), optimizer=SGD(lr=0.1))
        await ps.create("b", np.zeros(10, np.float32), optimizer=SGD(lr=0.1))
        gradients = {"w": np.ones((784, 100), np.float32), "b": np.ones(10, np.float32)}
        await ps.push(gradients)
        new = await ps.push_pull(gradients)
        np.testing.assert_allclose(new["w"], np.full((784, 100), -0.2), rtol=1e-6)
        np.testing.assert_allclose(await ps.pull("b"), np.full(10, -0.2), rtol=1e-6)
        both = await ps.pull(["w", "b"])
        assert list(both) == ["w", "b"]
        assert both["w"].shape == (784, 100)


async def test_the_default_optimizer_is_sgd() -> None:
    async with client() as ps:
        await ps.create("w", [1.0])
        await ps.push({"w": [1.0]})
        np.testing.assert_allclose(await ps.pull("w"), [1.0 - SGD().lr])


@pytest.mark.parametrize("value", [3.0, [[1, 2], [3, 4]], np.arange(6, dtype=">f8").reshape(2, 3).T])
async def test_whatever_is_an_array_can_be_a_tensor(value: Any) -> None:
    array = np.asarray(value)
    async with client() as ps:
        await ps.create("w", value, Add())
        await ps.push({"w": value})
        pulled = await ps.pull("w")
        assert pulled.shape == array.shape
        np.testing.assert_array_equal(pulled, 2 * array)


async def test_what_is_pulled_is_read_only_and_ones_own() -> None:
    async with client(3) as ps:
        value = full(SIZE, 1.0)
        await ps.create("w", value, Add())
        value[:] = 7.0
        pulled = await ps.pull("w")
        assert (pulled == 1.0).all()
        for array in (pulled, (await ps.push_pull({"w": full(SIZE, 0.0)}))["w"]):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1.0


async def test_a_gradient_may_change_when_its_push_has_returned() -> None:
    async with client() as ps:
        await ps.create("w", full(SIZE, 0.0), Add())
        gradient = full(SIZE, 1.0)
        for _ in range(5):
            await ps.push({"w": gradient})
            gradient += 1.0
        np.testing.assert_array_equal(await ps.pull("w"), full(SIZE, 15.0))


@pytest.mark.parametrize("shards", [1, 3])
async def test_many_requests_at_once_on_one_connection(shards: int) -> None:
    async with client(shards) as ps:
        size = 30_000
        await ps.create("large", np.zeros(size), Add())
        await ps.create("slots", np.zeros(100), Add())
        await ps.create("count", np.int64(0), Add())

        async def push(number: int) -> None:
            slot = np.zeros(100)
            slot[number] = 1.0
            await ps.push({"slots": slot, "count": np.int64(1), "large": np.ones(size)})

        pulls = (ps.pull(["large", "count"]) for _ in range(100))
        await asyncio.gather(*(push(number) for number in range(100)), *pulls)
        np.testing.assert_array_equal(await ps.pull("slots"), np.ones(100))
        np.testing.assert_array_equal(await ps.pull("large"), np.full(size, 100.0))
        assert (await ps.pull("count")).item() == 100


async def test_push_pull_returns_what_is_asked_for() -> None:
    async with client(3) as ps:
        for name in ("a", "b", "c"):
            await ps.create(name, [1.0], Add())
        assert list(await ps.push_pull({"a": [1.0]})) == ["a"]
        assert await ps.push_pull({"a": [1.0]}, ()) == {}
        new = await ps.push_pull({"a": [1.0]}, ["c", "a"])
        assert {name: value.tolist() for name, value in new.items()} == {"a": [4.0], "c": [1.0]}
        assert (await ps.push_pull({}, ["b"]))["b"].tolist() == [1.0]
        assert ps.clock == 4


async def test_step_counts_even_without_tensors() -> None:
    async with client(3, staleness=0) as ps:
        for clock in (1, 2, 3):
            await ps.step()
            assert ps.clock == clock


async def assert_usable(ps: Client, expected: float) -> None:
    assert (await ps.pull("w")).tolist() == [expected, expected]
    await ps.push({"w": [0.0, 0.0]})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("staleness", [0.0, math.inf])
async def test_bad_gradients_are_refused_by_name_and_change_nothing(shards: int, staleness: float) -> None:
    async with client(shards, staleness=staleness) as ps:
        for name in ("w", "v"):
            await ps.create(name, [1.0, 1.0], Add())
        bad: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"x": [1.0]}, UnknownTensor, "name"),
            ({"w": [1.0, 1.0], "x": [1.0]}, UnknownTensor, "name"),
            ({"v": [1.0, 1.0], "w": [1.0]}, BadTensor, "w"),
            ({"v": [1.0, 1.0], "w": [[1.0, 1.0]]}, BadTensor, "w"),
            ({"v": [1.0, 1.0], "w": np.ones(2, np.float32)}, BadTensor, "w"),
            ({"v": [1.0, 1.0], "w": [1, 1]}, BadTensor, "w"),
            ({"v": [1.0, 1.0], "w": ["a", "b"]}, BadTensor, "w"),
            ({"v": [1.0, 1.0], "w": []}, BadTensor, "w"),
            ({"v": [1.0, 1.0], "w": [1.0, math.nan]}, NotFinite, "tensors"),
            ({"v": [1.0, math.inf], "w": [1.0, 1.0]}, NotFinite, "tensors"),
        ]
        for gradients, error, field in bad:
            for attempt in (ps.push, ps.push_pull):
                with pytest.raises(error) as caught:
                    await attempt(gradients)
                assert getattr(caught.value, "field", None) == field
                await assert_usable(ps, 1.0)
        assert ps.clock == 0
        assert {n: v.tolist() for n, v in (await ps.pull(["w", "v"])).items()} == {"w": [1, 1], "v": [1, 1]}


async def test_names_that_are_asked_for_twice_or_not_there() -> None:
    async with client() as ps:
        await ps.create("w", [1.0, 1.0], Add())
        with pytest.raises(BadRequest, match="twice"):
            await ps.pull(["w", "w"])
        with pytest.raises(UnknownTensor) as caught:
            await ps.pull(["w", "x"])
        assert (caught.value.field, caught.value.value) == ("name", "x")
        with pytest.raises(UnknownTensor):
            await ps.push_pull({"w": [5.0, 5.0]}, ["x"])
        assert await ps.pull([]) == {}
        await assert_usable(ps, 1.0)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0", "a\n", "x" * 129, "\x1b[31m"])
async def test_names_that_are_no_names(name: str) -> None:
    async with client() as ps:
        with pytest.raises(BadRequest) as caught:
            await ps.create(name, [1.0])
        assert caught.value.field == "name"
        await ps.create("w", [1.0, 1.0], Add())
        await assert_usable(ps, 1.0)


async def test_the_name_of_an_optimizer_is_none() -> None:
    async with client() as ps:
        for create in (partial(ps.create, "w", [1.0]), partial(ps.create_sparse, "t", 4)):
            with pytest.raises(BadRequest, match=r"psworker\.Adam\(\)") as caught:
                await create(optimizer="adam")  # type: ignore[arg-type]
            assert (caught.value.field, caught.value.value) == ("optimizer", "adam")
        await ps.create("w", [1.0, 1.0], Add())
        await assert_usable(ps, 1.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
async def test_weights_that_are_no_weights(weight: float) -> None:
    async with client(staleness=0) as ps:
        await ps.create("w", [1.0, 1.0], Add())
        with pytest.raises(BadRequest) as caught:
            await ps.push_pull({"w": [1.0, 1.0]}, weight=weight)
        assert caught.value.field == "weight"
        await assert_usable(ps, 1.0)


async def test_a_tensor_made_by_another_needs_no_create() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address) as a, connect(cluster.address) as b:
        await a.create("w", full(SIZE, 1.0), Add())
        await b.push({"w": full(SIZE, 1.0)})
        infos = await b.tensors()
        assert (infos["w"].spec.dtype, infos["w"].spec.shape, len(infos["w"].blocks)) == (
            "float32",
            (SIZE,),
            3,
        )
        np.testing.assert_array_equal(await b.pull("w"), full(SIZE, 2.0))


async def test_more_tensors_than_one_description_holds() -> None:
    names = [f"{number:03d}" + "x" * 120 for number in range(250)]
    async with running_cluster() as cluster, connect(cluster.address) as a, connect(cluster.address) as b:
        for name in names:
            await a.create(name, np.float32(1.0))
        assert list(await b.pull(names)) == names


async def test_an_observer_looks_and_does_not_touch() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address) as ps:
        await ps.create("w", full(SIZE, 1.0), Add())
        async with connect(cluster.address, observe=True) as observer:
            assert (observer.name, observer.job, observer.staleness) == ("", "default", math.inf)
            np.testing.assert_array_equal(await observer.pull("w"), full(SIZE, 1.0))
            for attempt in (observer.push, observer.push_pull):
                with pytest.raises(NotAMember):
                    await attempt({"w": full(SIZE, 1.0)})
            with pytest.raises(NotAMember):
                await observer.lease(block=False)
            np.testing.assert_array_equal(await observer.pull("w"), full(SIZE, 1.0))
        assert [worker.name for worker in (await cluster.job()).workers] == ["worker-0"]


async def test_observing_a_job_that_waits_for_its_workers() -> None:
    async with running_cluster() as cluster:

        async def join() -> None:
            async with connect(cluster.address, workers=2):
                raise AssertionError("there is no second worker")

        waiting = asyncio.create_task(join())
        await cluster.until(lambda status: bool(status.jobs))
        async with connect(cluster.address, observe=True) as observer:
            with pytest.raises((UnknownTensor, UnknownJob)):
                await observer.pull("w")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


# --- the end of a connection


async def test_leaving_is_a_goodbye_also_after_an_error() -> None:
    async def work(address: str, name: str, *, divisor: int) -> None:
        async with connect(address, name=name) as ps:
            await ps.create("w", full(SIZE, 1 / divisor))

    async with running_cluster(3) as cluster:
        await work(cluster.address, "well", divisor=1)
        with pytest.raises(ZeroDivisionError):
            await work(cluster.address, "badly", divisor=0)
        assert [worker.state for worker in (await cluster.job()).workers] == ["left", "left"]


async def test_after_the_block_nothing_can_be_asked() -> None:
    async with client() as ps:
        await ps.create("w", [1.0])
    with pytest.raises(ConnectionLost):
        await ps.pull("w")


async def test_everything_fails_when_the_server_stays_away() -> None:
    async with (
        running_cluster(2) as cluster,
        connect(cluster.address, staleness=0, workers=1, reconnect_for=0.1) as ps,
    ):
        await ps.create("w", [1.0])
        for server in cluster.servers:
            await server.stop()
        for attempt in (ps.pull("w"), ps.push({"w": [1.0]}), ps.create("v", [1.0]), ps.step()):
            with pytest.raises(ConnectionLost):
                await attempt


async def test_a_shard_that_does_not_answer_is_named_and_nothing_stays_open() -> None:
    async with running_cluster(3) as cluster:
        last = cluster.servers[2]
        (address,) = [s.address for s in (await cluster.status()).shards if s.shard == 2]
        assert last._listener is not None
        last._listener.close()  # it is alive, but takes no connections
        with pytest.raises(Unreachable) as caught:
            async with connect(cluster.address, reconnect_for=0.05):
                pass
        assert (caught.value.field, caught.value.value) == ("server", address)
        await cluster.until(lambda _: len(cluster.servers[1]._connections) == 1)  # the coordinator's
        assert (await cluster.job()).workers[0].state == "left"  # nobody waits for it


async def test_cancelling_leaves_the_job() -> None:
    async with running_cluster(2) as cluster:
        joined = asyncio.Event()

        async def wait_for_ever() -> None:
            async with connect(cluster.address):
                joined.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(wait_for_ever())
        await joined.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await cluster.until(lambda status: status.jobs[0].workers[0].state == "left")


async def test_joining_again_ends_no_push_of_the_former_self_as_if_its_connection_were_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_cluster(2) as cluster, connect(cluster.address) as client:
        await client.create("w", np.zeros(40_000, np.float32))  # a block on each server
        heartbeats = []

        async def close(link: Link) -> None:
            heartbeats.append(client._send_heartbeat())  # while the links are being closed
            heartbeats[-1].add_done_callback(partial(client._heard, 1))
            await original(link)

        original = Link.close
        monkeypatch.setattr(Link, "close", close)
        await put_out(cluster, client)
        with pytest.raises(Fenced):
            await client.push({"w": np.ones(40_000, np.float32)})
        await client.pull("w")  # which joins again
        assert [type(beat.exception()) for beat in heartbeats] == [Fenced, Fenced]
        await client.push({"w": np.ones(40_000, np.float32)})


async def test_cancelling_the_goodbye_ends_the_links(monkeypatch: pytest.MonkeyPatch) -> None:
    goodbye = asyncio.Event()

    async def say_for_ever(client: Client) -> None:
        goodbye.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Client, "_leave", say_for_ever)
    async with running_cluster(2) as cluster:

        async def come_and_go() -> None:
            async with connect(cluster.address):
                pass

        task = asyncio.create_task(come_and_go())
        await goodbye.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await cluster.until(lambda _: len(cluster.servers[1]._connections) == 1)  # the coordinator's


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", ":7070", "127.0.0.1:0", "127.0.0.1:http", "h:65536", "h:²"]
)
async def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadRequest, match="HOST:PORT") as caught:
        async with connect(address):
            pass
    assert caught.value.field == "address"


async def test_a_gradient_that_is_refused_ends_the_step_on_no_shard() -> None:
    async with client(3, staleness=0) as ps:
        await ps.create("w", np.zeros(4, np.float32), Add())
        with pytest.raises(NotFinite):
            await ps.push_pull({"w": np.full(4, np.nan, np.float32)})
        for step in (1, 2):
            new = await ps.push_pull({"w": np.ones(4, np.float32)})
            np.testing.assert_array_equal(new["w"], np.full(4, step))


# --- workers that are out


async def push_until_fenced(ps: Client) -> int:
    """Return how many pushes of 1 were acknowledged before one was refused."""
    for number in range(10_000):
        try:
            await ps.push({"w": [1.0]})
        except Fenced:
            return number
    raise AssertionError("it was never refused")


def plan() -> Plan:
    return Plan("text", 4, 2, 0, 0)


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_worker_that_is_out_is_refused_until_it_pulls(shards: int) -> None:
    async with running_cluster(shards) as cluster, connect(cluster.address, name="a", plan=plan()) as ps:
        await ps.create("w", [0.0], Add())
        leased = await ps.lease(block=False)
        await put_out(cluster, ps)
        pushed = await push_until_fenced(ps)
        attempts: list[Callable[[], Awaitable[Any]]] = [
            lambda: ps.push({"w": [1.0]}),
            lambda: ps.push_pull({"w": [1.0]}),
            ps.step,
            lambda: ps.lease(block=False),
            lambda: ps.finish(leased, 1, {}),
        ]
        for attempt in attempts:
            with pytest.raises(Fenced):
                await attempt()
        assert (await ps.pull("w")).tolist() == [pushed]
        assert ps.joined is not None
        assert (ps.name, ps.joined.worker, ps.joined.incarnation) == ("a", 0, 2)
        with pytest.raises(Fenced):  # others do it again
            await ps.finish(leased, 1, {})
        assert await ps.lease(block=False) == leased
        await ps.finish(leased, 1, {})
        assert (await ps.push_pull({"w": [1.0]}))["w"].tolist() == [pushed + 1]
        job = await cluster.job()
        assert [(one.name, one.incarnation, one.state) for one in job.workers] == [("a", 2, "training")]
        assert job.progress is not None
        assert (job.progress.chunks_done, job.progress.chunks_leased) == (1, 0)


async def test_several_calls_at_once_join_again_once() -> None:
    async with (
        running_cluster(3) as cluster,
        connect(cluster.address, name="a") as ps,
        connect(cluster.address, name="b") as other,
    ):
        await ps.create("w", [0.0], Add())
        await other.create("v", full(SIZE, 1.0), Add())  # of which a has not heard
        await put_out(cluster, ps)
        await push_until_fenced(ps)
        calls = (ps.pull("v"), ps.pull(["w", "v"]), ps.tensors(), ps.create("u", [3.0]), ps.rejoin())
        v, both, known, _, _ = await asyncio.gather(*calls)
        assert (v == both["v"]).all()
        assert set(known) >= {"w", "v"}
        assert ps.joined is not None
        assert ps.joined.incarnation == 2
        assert (await other.pull("u")).tolist() == [3.0]
        await ps.push({"u": [0.0], "v": full(SIZE, 1.0)})
        assert (await other.pull("v") == 2.0).all()


async def test_a_heartbeat_notices_too() -> None:
    async with running_cluster(failure=EAGER) as cluster, connect(cluster.address) as ps:
        await ps.create("w", [0.0], Add())
        await put_out(cluster, ps)
        await holds(lambda: ps._fenced)
        with pytest.raises(Fenced, match="pull"):
            await ps.push({"w": [1.0]})
        await ps.rejoin()
        await ps.push({"w": [1.0]})
        assert (await ps.pull("w")).tolist() == [1.0]


async def test_who_is_in_has_nothing_to_join_again() -> None:
    async with client() as ps:
        await ps.rejoin()
        assert ps.joined is not None
        assert ps.joined.incarnation == 1


async def test_joining_again_may_be_cancelled_anywhere_and_tried_again() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address, name="a") as ps:
        await ps.create("w", [0.0], Add())
        total = 0
        for turns in range(0, 60, 2):
            await put_out(cluster, ps)
            total += await push_until_fenced(ps)
            joining = asyncio.create_task(ps.pull("w"))
            for _ in range(turns):
                await asyncio.sleep(0)
            joining.cancel()
            await asyncio.wait([joining])
            assert (await ps.pull("w")).tolist() == [total]
            await ps.push({"w": [1.0]})
            total += 1


async def test_a_worker_that_joins_again_takes_part_from_the_open_step() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        await asyncio.gather(*(ps.create("w", [0.0], Add()) for ps in (a, b)))
        await asyncio.gather(*(ps.push_pull({"w": [2.0]}) for ps in (a, b)))
        await put_out(cluster, a)
        for _ in range(3):
            await b.push_pull({"w": [2.0]})
        with pytest.raises(Fenced):
            await a.push_pull({"w": [100.0]})
        assert (await a.pull("w")).tolist() == [10.0]
        assert a.clock == b.clock == 4
        first, second = await asyncio.gather(a.push_pull({"w": [1.0]}), b.push_pull({"w": [3.0]}))
        assert first["w"].tolist() == second["w"].tolist() == [14.0]


async def test_a_worker_that_waits_for_a_step_is_told_that_it_is_out() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        await asyncio.gather(*(ps.create("w", [0.0], Add()) for ps in (a, b)))
        waiting = asyncio.create_task(a.push_pull({"w": [100.0]}))
        await cluster.until(lambda status: bool(status.jobs[0].waits))
        await put_out(cluster, a)
        with pytest.raises(Fenced):
            await waiting
        assert (await b.push_pull({"w": [1.0]}))["w"].tolist() in ([1.0], [101.0])
        assert (await b.push_pull({"w": [1.0]}))["w"].tolist() in ([2.0], [102.0])


async def test_a_worker_that_is_out_goes_without_a_word() -> None:
    async with running_cluster() as cluster:
        async with connect(cluster.address, name="a") as ps:
            await ps.create("w", [0.0], Add())
            await put_out(cluster, ps)
            await push_until_fenced(ps)
        async with connect(cluster.address, name="a") as ps:
            assert ps.joined is not None
            assert ps.joined.incarnation == 2


async def test_joining_again_where_nobody_answers() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, reconnect_for=0.1) as ps:
        await ps.create("w", [0.0], Add())
        await put_out(cluster, ps)
        await push_until_fenced(ps)
        for server in reversed(cluster.servers):
            await server.stop()
        for attempt in (ps.pull("w"), ps.tensors(), ps.create("v", [1.0]), ps.pull("v")):
            with pytest.raises(Unreachable):
                await attempt
        with pytest.raises(Fenced):
            await ps.push({"w": [1.0]})


async def test_a_heart_beats_while_the_links_are_being_made() -> None:
    async with proxied_cluster(2, failure=EAGER) as cluster:
        cluster.proxies[1].refuse()
        beats = cluster.servers[0].metrics.requests

        async def join() -> int:
            async with connect(cluster.address) as ps:
                await ps.create("w", full(SIZE, 0.0), Add())
                await ps.push({"w": full(SIZE, 1.0)})
                assert ps.joined is not None
                return ps.joined.incarnation

        joining = asyncio.create_task(join())
        await holds(lambda: beats["heartbeat", "ok"] >= 10)  # which is longer than silence may last
        cluster.proxies[1].heal()
        assert await joining == 1


async def test_a_heart_beats_while_the_links_are_being_made_again() -> None:
    async with proxied_cluster(2, failure=EAGER) as cluster, connect(cluster.address) as ps:
        await ps.create("w", full(SIZE, 0.0), Add())
        cluster.proxies[1].refuse()
        await put_out(Cluster(cluster.servers, cluster.direct), ps)
        await holds(lambda: ps._fenced)
        pulling = asyncio.create_task(ps.pull("w"))
        beats = cluster.servers[0].metrics.requests
        before = beats["heartbeat", "ok"]
        await holds(lambda: beats["heartbeat", "ok"] >= before + 10)
        cluster.proxies[1].heal()
        await pulling
        await ps.push({"w": full(SIZE, 1.0)})
        assert ps.joined is not None
        assert ps.joined.incarnation == 2


# --- connections that break


async def test_a_push_whose_reply_is_lost_counts_once() -> None:
    async with (
        running_cluster() as cluster,
        Proxy(cluster.address) as proxy,
        connect(proxy.address) as ps,
    ):
        await ps.create("w", np.int64(0), Add())
        for number in range(1, 21):
            proxy.cut_after(1, "to-client")
            await ps.push({"w": np.int64(number)})
        assert (await ps.pull("w")).item() == 210
        assert proxy.seen.cuts == ps.recovery.reconnects
        assert ps.recovery.retries >= proxy.seen.cuts > 10


@pytest.mark.parametrize("staleness", [0.0, 2.0, math.inf])
async def test_steps_under_cuts_are_the_steps_without(staleness: float) -> None:
    async with proxied_cluster(2) as cluster, workers(cluster.address, 2, staleness=staleness) as both:
        await asyncio.gather(*(ps.create("w", np.zeros(30_000), Add()) for ps in both))
        rng = random.Random(7)

        async def work(ps: Client, amount: float) -> None:
            for _ in range(30):
                await ps.push_pull({"w": np.full(30_000, amount)})
                cut()

        def cut() -> None:
            proxy = rng.choice(cluster.proxies)
            proxy.cut_after(rng.randint(1, 400_000), rng.choice(["to-client", "to-upstream"]))

        cut()
        await asyncio.gather(work(both[0], 1.0), work(both[1], 3.0))
        np.testing.assert_array_equal(await both[0].pull("w"), np.full(30_000, 30 * 4.0))
        assert both[0].clock == both[1].clock == 30
        assert sum(proxy.seen.cuts for proxy in cluster.proxies) > 5
        assert [ps.joined and ps.joined.incarnation for ps in both] == [1, 1]


async def test_a_connection_that_breaks_while_a_step_waits() -> None:
    async with running_cluster() as cluster, Proxy(cluster.address) as proxy:
        settings: dict[str, Any] = {"workers": 2, "staleness": 0}
        async with (
            asyncio.TaskGroup() as group,
            connected_beside(cluster.address, proxy.address, **settings) as (near, far),
        ):
            creating = group.create_task(near.create("w", [0.0], Add()))
            await far.create("w", [0.0], Add())
            await creating
            waiting = group.create_task(far.push_pull({"w": [1.0]}))
            await cluster.until(lambda status: bool(status.jobs[0].waits))
            for _ in range(3):
                before = far.recovery.reconnects
                assert proxy.cut() == 1
                await holds(lambda before=before: far.recovery.reconnects > before)  # type: ignore[misc]
            await far.tensors()  # behind the retry
            assert (await near.push_pull({"w": [3.0]}))["w"].tolist() == [4.0]
            assert (await waiting)["w"].tolist() == [4.0]
            assert far.clock == 1


@asynccontextmanager
async def connected_beside(one: str, other: str, **settings: Any) -> AsyncIterator[tuple[Client, Client]]:
    """Two workers of a job of two, by two addresses."""
    async with AsyncExitStack() as stack:
        joining = (connect(one, name="near", **settings), connect(other, name="far", **settings))
        near, far = await asyncio.gather(*(stack.enter_async_context(one) for one in joining))
        yield near, far


async def test_a_connection_that_breaks_while_others_are_waited_for_to_join() -> None:
    async with running_cluster() as cluster, Proxy(cluster.address) as proxy:
        joined = asyncio.create_task(join_and_say(proxy.address, workers=2))
        await cluster.until(lambda status: bool(status.jobs and status.jobs[0].workers))
        for connections in (2, 3):
            assert proxy.cut() == 1
            await proxy.until(lambda seen, connections=connections: seen.connections == connections)  # type: ignore[misc]
        async with connect(cluster.address, workers=2):
            assert await joined == (0, 1)


async def join_and_say(address: str, **settings: Any) -> tuple[int, int]:
    async with connect(address, **settings) as ps:
        assert ps.joined is not None
        return ps.joined.worker, ps.joined.incarnation


async def test_a_connection_that_breaks_while_work_is_waited_for() -> None:
    one_chunk = Plan("text", 1, 2, 1, 0)
    async with running_cluster() as cluster, Proxy(cluster.address) as proxy:
        settings: dict[str, Any] = {"workers": 2, "plan": one_chunk}
        async with connected_beside(cluster.address, proxy.address, **settings) as (near, far):
            leased = await near.lease(block=False)
            waiting = asyncio.create_task(far.lease(block=True))
            await cluster.until(lambda status: bool(status.jobs[0].waits))
            assert proxy.cut() == 1
            await holds(lambda: far.recovery.reconnects == 1)
            await far.tensors()
            await near.finish(leased, 1, {})
            assert (await waiting).kind == "evaluate"
            progress = (await cluster.job()).progress
            assert progress is not None
            assert (progress.chunks_done, progress.chunks_leased) == (1, 1)


async def test_a_link_that_has_gone_silent_is_made_anew() -> None:
    """Of one shard, while the coordinator is heard of: nobody is dead."""
    async with (
        proxied_cluster(2, failure=FailureSettings(heartbeat=0.05)) as cluster,
        connect(cluster.address) as ps,
    ):
        await ps.create("w", full(SIZE, 0.0), Add())
        cluster.proxies[1].swallow(scope="present")
        await ps.push({"w": full(SIZE, 1.0)})
        assert (await ps.pull("w") == 1.0).all()
        assert cluster.proxies[1].seen.swallowed > 0
        assert ps.joined is not None
        assert ps.joined.incarnation == 1


async def test_cancelled_pushes_leave_no_gap() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        await ps.create("w", np.int64(0), Add())
        pushes = [asyncio.create_task(ps.push({"w": np.int64(1)})) for _ in range(200)]
        for turn, push in enumerate(pushes[::3]):
            if turn % 10 == 0:
                await asyncio.sleep(0)
            push.cancel()
        ends = await asyncio.gather(*pushes, return_exceptions=True)
        acknowledged = sum(end is None for end in ends)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
        await ps.push({"w": np.int64(0)})
        assert acknowledged <= (await ps.pull("w")).item() <= 200
        assert acknowledged >= 133


async def test_a_step_that_is_given_up_while_it_waits_is_ended_all_the_same() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        await asyncio.gather(*(ps.create("w", [0.0], Add()) for ps in (a, b)))
        waiting = asyncio.create_task(a.push_pull({"w": [1.0]}))
        await cluster.until(lambda status: bool(status.jobs[0].waits))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (await b.push_pull({"w": [3.0]}))["w"].tolist() == [4.0]
        assert a.clock == b.clock == 1
        await asyncio.gather(*(ps.push_pull({"w": [1.0]}) for ps in (a, b)))
        assert (await a.pull("w")).tolist() == [6.0]


@pytest.mark.parametrize("staleness", [0.0, math.inf])
async def test_what_is_too_long_for_one_shard_goes_to_none(staleness: float) -> None:
    async with client(2, staleness=staleness) as ps:
        await ps.create("on the first", np.zeros(1000, np.int64) if staleness else np.zeros(1000), Add())
        names = [f"{number:03d}" + "x" * 120 for number in range(500)]
        for name in names:
            await ps.create(name, 0.0, Add())
        where = {block.shard for info in (await ps.tensors()).values() for block in info.blocks}
        assert where == {0, 1}
        gradients = {name: np.asarray(1.0) for name in names}
        gradients["on the first"] = np.ones(1000, np.int64) if staleness else np.ones(1000)
        for attempt in (ps.push, ps.push_pull):
            with pytest.raises(FrameTooLarge):
                await attempt(gradients)
        assert ps.clock == 0
        new = await ps.push_pull({}, ["on the first", names[0]])
        assert not new["on the first"].any()
        assert new[names[0]].item() == 0.0


# --- leaving


async def test_leaving_a_cluster_that_is_gone_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_GOODBYE_WITHIN", 0.05)
    async with running_cluster(2) as cluster:
        async with asyncio.timeout(20), connect(cluster.address) as ps:
            await ps.create("w", [0.0], Add())
            for server in reversed(cluster.servers):
                await server.stop()
            pushing = asyncio.create_task(ps.push({"w": [1.0]}))
            await asyncio.sleep(0)
        with pytest.raises(ConnectionLost):
            await pushing


async def test_leaving_a_cluster_that_has_gone_silent_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_GOODBYE_WITHIN", 0.05)
    async with running_cluster() as cluster, Proxy(cluster.address) as proxy:
        async with asyncio.timeout(20), connect(proxy.address) as ps:
            size = 8 << 20  # more than sockets and proxy hold
            await ps.create("w", full(size, 0.0), Add())
            proxy.stall()
            pushing = asyncio.create_task(ps.push({"w": full(size, 1.0)}))
            await asyncio.sleep(0)
        with pytest.raises(ConnectionLost):
            await pushing


# --- heartbeats


@pytest.mark.parametrize("loss", [0.25, np.float32(0.25), None, math.nan])
async def test_heartbeats_tell_how_far_a_worker_has_come(loss: Any) -> None:
    async with running_cluster(failure=EAGER) as cluster, connect(cluster.address) as ps:
        ps.report.examples, ps.report.loss = 640, loss
        await ps.step()
        status = await cluster.until(lambda status: status.jobs[0].workers[0].examples == 640)
        beat = status.jobs[0].workers[0]
        assert beat.clock == 1
        assert beat.loss == loss or (beat.loss != beat.loss and loss != loss)  # noqa: PLR0124 (NaN)


async def test_heartbeats_keep_a_worker_that_does_nothing_alive() -> None:
    async with running_cluster(failure=EAGER) as cluster, connect(cluster.address) as ps:
        beats = cluster.servers[0].metrics.requests
        await holds(lambda: beats["heartbeat", "ok"] >= 12)
        await ps.create("w", [0.0])
        assert [worker.state for worker in (await cluster.job()).workers] == ["training"]


async def test_who_is_silent_is_missed_and_told_so_when_it_comes_back() -> None:
    async with (
        running_cluster(2, failure=EAGER) as cluster,
        Proxy(cluster.address) as proxy,
        connect(cluster.address, name="here", workers=1) as here,
        connect(proxy.address, name="away", workers=1) as away,
    ):
        await here.create("w", [0.0], Add())
        await away.push({"w": [1.0]})
        proxy.stall()
        await cluster.until(lambda status: status.jobs[0].workers[1].state == "dead")
        await here.push({"w": [1.0]})
        proxy.heal()
        pushed = await push_until_fenced(away)
        assert pushed == 0
        assert (await away.pull("w")).tolist() == [2.0]
        assert away.joined is not None
        assert away.joined.incarnation == 2


async def test_all_begin_at_one_step_when_steps_begin_to_count() -> None:
    async with running_cluster(2, failure=EAGER) as cluster, workers(cluster.address, 2) as (a, b):
        await asyncio.gather(*(ps.create("w", [0.0], Add()) for ps in (a, b)))
        for _ in range(5):
            await a.push_pull({"w": [1.0]})
        await change(*cluster.endpoint, Set("default", 0.0))
        await holds(lambda: a.staleness == b.staleness == 0)
        assert a.clock == b.clock > 5
        waiting = asyncio.create_task(a.push_pull({"w": [1.0]}))
        await cluster.until(lambda status: bool(status.jobs[0].waits))
        await b.push_pull({"w": [3.0]})
        assert (await waiting)["w"].tolist() == [9.0]
        assert a.clock == b.clock


@pytest.mark.parametrize("shards", [1, 3])
async def test_heartbeats_tell_a_change_of_staleness(shards: int) -> None:
    """The dial is turned while two workers push and a third only steps; each push counts once."""
    dial = (2.0, 0.0, math.inf, 0.0, 3.0, 1.0, 0.0, math.inf)
    async with (
        running_cluster(shards, failure=FailureSettings(heartbeat=0.1)) as cluster,
        workers(cluster.address, 2) as both,
        connect(cluster.address, name="idle") as idle,
    ):
        for name in ("w0", "w1"):
            await idle.create(name, np.zeros(30_000), Add())
        turning = True
        pushed = [0, 0]

        async def work(number: int, ps: Client) -> None:
            while turning:
                await ps.push_pull({f"w{number}": np.ones(30_000)})
                pushed[number] += 1

        async def follow() -> None:
            while turning:
                await idle.step()

        async with asyncio.TaskGroup() as group:
            for number, ps in enumerate(both):
                group.create_task(work(number, ps))
            group.create_task(follow())
            for staleness in dial:
                await change(*cluster.endpoint, Set("default", staleness))
                for ps in (*both, idle):
                    await holds(lambda ps=ps, now=staleness: ps.staleness == now)  # type: ignore[misc]
                before = sum(pushed)
                await holds(lambda before=before: sum(pushed) > before + 10)  # type: ignore[misc]
            turning = False
        final = await idle.pull(["w0", "w1"])
        for number in (0, 1):
            np.testing.assert_array_equal(final[f"w{number}"], np.full(30_000, float(pushed[number])))
        assert (await cluster.job()).staleness == math.inf
