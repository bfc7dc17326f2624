import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from protocol.errors import (
    BadRequest,
    BadTensor,
    ConnectionLost,
    NotAMember,
    NotFinite,
    UnknownJob,
    UnknownTensor,
    Unreachable,
)
from protocol.optimizers import SGD, Add
from psserver.server import Server
from psworker import client as client_module
from psworker.client import Client, connect, fetch_plan, fetch_status
from tests.cluster import Cluster, full, running_cluster

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

SIZE = 200_000  # float32 elements: 3 blocks on 3 shards


@asynccontextmanager
async def client(shards: int = 1, **settings: Any) -> AsyncIterator[Client]:
    async with running_cluster(shards) as cluster, connect(cluster.address, **settings) as ps:
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
            with pytest.raises(BadRequest):
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


async def test_everything_fails_when_the_server_is_gone() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, staleness=0, workers=1) as ps:
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
            async with connect(cluster.address):
                pass
        assert (caught.value.field, caught.value.value) == ("shard", address)
        await cluster.until(lambda _: len(cluster.servers[1]._connections) == 0)
        assert (await cluster.job()).workers[0].state == "left"  # who has pushed nothing is not missed


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


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", ":7070", "127.0.0.1:0", "127.0.0.1:http", "h:65536", "h:²"]
)
async def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadRequest, match="HOST:PORT") as caught:
        async with connect(address):
            pass
    assert caught.value.field == "address"


async def test_heartbeats_tell_how_far_a_worker_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_HEARTBEAT", 0.001)
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        ps.report.examples, ps.report.loss = 640, 0.25
        await ps.step()
        beat = (await cluster.until(lambda status: status.jobs[0].workers[0].clock == 1)).jobs[0].workers[0]
        assert (beat.examples, beat.loss) == (640, 0.25)


# --- questions without a job


async def test_fetch_status_and_plan_of_an_empty_cluster() -> None:
    async with running_cluster() as cluster:
        assert (await fetch_status(*cluster.endpoint)).jobs == ()
        with pytest.raises(UnknownJob):
            await fetch_plan(cluster.address, None, reconnect_for=0.0)
        async with connect(cluster.address):
            assert await fetch_plan(cluster.address, "default", reconnect_for=0.0) is None


async def test_fetch_status_of_a_server_that_is_no_coordinator() -> None:
    async with running_cluster(2) as cluster:
        with pytest.raises(BadRequest, match="coordinator"):
            await fetch_status(*split(cluster, 1))


def split(cluster: Cluster, shard: int) -> tuple[str, int]:
    server: Server = cluster.servers[shard]
    assert server._listener is not None
    host, port = server._listener.sockets[0].getsockname()
    return host, port


async def test_a_gradient_that_is_refused_ends_the_step_on_no_shard() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address, staleness=0) as ps:
        await ps.create("w", np.zeros(4, np.float32), Add())
        with pytest.raises(NotFinite):
            await ps.push_pull({"w": np.full(4, np.nan, np.float32)})
        for step in (1, 2):
            new = await ps.push_pull({"w": np.ones(4, np.float32)})
            np.testing.assert_array_equal(new["w"], np.full(4, step))
