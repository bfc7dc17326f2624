"""Jobs that are dropped: nothing of them is left, whoever waits is told, and the name is free at once."""

import asyncio
import gc
import math
import shutil
import weakref
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest

from protocol.errors import (
    CheckpointFailed,
    Fenced,
    HasDiverged,
    JobDropped,
    JobMismatch,
    LogUnwritable,
    PSError,
    UnknownJob,
)
from protocol.messages import Create, Dropped, Join, Joined, Plan, Pull, Push, PushPull, Spec
from protocol.optimizers import SGD, Add, Momentum, spec_of
from protocol.tensors import Part
from psserver import checkpoints
from psserver import coordinator as coordinators
from psserver.durability.failpoints import configure
from psserver.durability.log import UpdateLog
from psserver.membership import FailureSettings
from psserver.restoring import Restored
from psserver.server import Server
from psserver.shard import Shard
from psworker import SparseGradient
from psworker.asking import drop, fetch_status
from psworker.client import Client, connect
from tests.cluster import (
    Cluster,
    DurableCluster,
    connected,
    durable_cluster,
    hello,
    holds,
    put_out,
    running_cluster,
    workers,
)
from tests.psserver.lone_shard import lone_shard
from tests.psserver.memory_log import MemoryLog
from tests.psserver.test_metrics import samples

Mode = Literal["snapshot", "log"]

SIZE = 40_000  # a block on each of two shards
ONES = np.ones(SIZE, np.float32)
KEYS = np.arange(1000, dtype=np.uint64)
JOB = "gone"
PATIENT = FailureSettings(heartbeat=60.0, dead_after=300.0)  # nobody dies in a test with these
PLAN = Plan("text", 4, 1, 0, 0)


async def dropped(cluster: Cluster | DurableCluster, job: str = JOB, *, force: bool = False) -> Dropped:
    return await drop(*cluster.endpoint, job, force=force)


async def make(client: Client, value: float = 0.0) -> None:
    await client.create("w", np.full(SIZE, value, np.float32), Add())
    await client.create_sparse("emb", 4, Momentum(lr=0.1))
    await client.push({"w": ONES, "emb": SparseGradient(KEYS, np.ones((KEYS.size, 4), np.float32))})


async def make_and_leave(cluster: Cluster | DurableCluster, job: str = JOB) -> None:
    async with connect(cluster.address, job) as client:
        await make(client)


def names(*servers: Server) -> list[set[str]]:
    return [set(server._shard.jobs) for server in servers]


@asynccontextmanager
async def refused(error: type[PSError], text: str | None = None) -> AsyncIterator[None]:
    with pytest.raises(error, match=text) as caught:
        yield
    assert type(caught.value) is error


# --- what is left


async def test_nothing_is_left_of_it_and_others_are_as_they_were() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, "stays") as other:
        await make(other)
        before = await cluster.status()
        await make_and_leave(cluster)
        held = sum(server._shard.jobs[JOB].nbytes for server in cluster.servers)
        assert held > 4 * SIZE
        kept = [weakref.ref(server._shard.jobs[JOB].clocks) for server in cluster.servers]
        coordinator = cluster.servers[0]._coordinator
        assert coordinator is not None
        kept_there: Any = weakref.ref(coordinator._jobs[JOB].decisions)
        assert await dropped(cluster) == Dropped(JOB, 2, held)
        status = await cluster.status()
        assert [job.name for job in status.jobs] == ["stays"]
        assert [one.parameters_bytes for one in status.shards] == [
            one.parameters_bytes for one in before.shards
        ]
        assert names(*cluster.servers) == [{"stays"}] * 2
        for server in cluster.servers:
            assert not [labels for labels in samples(server) if JOB in labels]
        await make(other)  # whatever the event loop still held of the last request is gone
        gc.collect()
        assert [one() for one in (*kept, kept_there)] == [None] * 3
        assert ((await other.pull("w")) == 2).all()


@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.long)])
async def test_jobs_that_come_and_go_leave_no_trace(count: int) -> None:
    async with running_cluster(2) as cluster:
        for number in range(count):
            async with connect(cluster.address, f"fit-{number}", staleness=0) as client:
                await client.create("w", np.zeros(8, np.float32), SGD(lr=0.1))
                await client.push_pull({"w": np.ones(8, np.float32)})
            assert (await dropped(cluster, f"fit-{number}")).bytes >= 32
        status = await cluster.status()
        assert status.jobs == ()
        assert [one.parameters_bytes for one in status.shards] == [0, 0]
        for server in cluster.servers:
            of_jobs = [key for key in samples(server) if any(label.startswith("fit-") for label in key)]
            assert of_jobs == []
            assert not server._shard.jobs
            assert not server._shard._steps
        coordinator = cluster.servers[0]._coordinator
        assert coordinator is not None
        assert not coordinator._histories
        assert not coordinator._at_work
        assert not coordinator._dropping


async def test_a_job_that_is_not_there_cannot_be_dropped() -> None:
    async with running_cluster() as cluster:
        async with refused(UnknownJob):
            await dropped(cluster)
        await make_and_leave(cluster)
        await dropped(cluster)
        async with refused(UnknownJob):
            await dropped(cluster)


# --- who works on it


async def test_as_long_as_there_are_workers_it_is_refused() -> None:
    async with running_cluster(2) as cluster:
        async with connect(cluster.address, JOB, name="alice") as client:
            await make(client)
            async with refused(JobMismatch, "alice"):
                await dropped(cluster)
            assert ((await client.pull("w")) == 1).all()
        await dropped(cluster)


@pytest.mark.parametrize("staleness", [0, 2, math.inf])
async def test_by_force_its_workers_are_told_whatever_they_ask_for(staleness: float) -> None:
    async with (
        running_cluster(2) as cluster,
        connect(cluster.address, JOB, staleness=staleness) as client,
        connect(cluster.address, JOB, observe=True) as observer,
    ):
        await client.create("w", ONES, Add())
        await client.push_pull({"w": ONES})
        await dropped(cluster, force=True)
        for ask in (
            client.push({"w": ONES}),
            client.pull("w"),
            client.push_pull({"w": ONES}),
            client.create("v", ONES),
            client.lease(block=True),
            client.pull("w"),
        ):
            with pytest.raises(JobDropped) as caught:
                await ask
            assert (caught.value.field, caught.value.value) == ("job", JOB)
        async with refused(UnknownJob):
            await observer.pull("w")
    assert names(*cluster.servers) == [set()] * 2, "nobody has made it anew"


async def test_its_heartbeat_tells_a_worker_that_asks_for_nothing() -> None:
    async with running_cluster() as cluster, connect(cluster.address, JOB) as client:
        await dropped(cluster, force=True)
        await holds(lambda: isinstance(client._links[0]._error, JobDropped))


@asynccontextmanager
async def waiting(cluster: Cluster, what: str) -> AsyncIterator[None]:
    """When the block ends, somebody waits for ``what`` in the job; then it is dropped, and ends with that."""
    yield
    await cluster.until(lambda status: any(what in wait.what for job in status.jobs for wait in job.waits))
    await dropped(cluster, force=True)


async def test_who_waits_for_the_job_to_start_is_told() -> None:
    async with running_cluster() as cluster:
        async with waiting(cluster, "start"):
            joining = asyncio.ensure_future(connect(cluster.address, JOB, workers=2).__aenter__())
        async with refused(JobDropped):
            await joining


async def test_who_waits_for_the_end_of_a_step_is_told() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, job=JOB, staleness=0) as (a, b):
        await a.create("w", ONES, SGD())
        async with waiting(cluster, "step 0"):
            ending = asyncio.ensure_future(a.push_pull({"w": ONES}))
        for work in (ending, b.push_pull({"w": ONES})):
            async with refused(JobDropped):
                await work


async def test_who_may_not_read_yet_is_told() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, job=JOB, staleness=1) as (a, b):
        await a.create("w", ONES, SGD())
        async with waiting(cluster, "step"):
            await a.push_pull({"w": ONES})
            reading = asyncio.ensure_future(a.push_pull({"w": ONES}))
        for work in (reading, b.pull("w")):
            async with refused(JobDropped):
                await work


async def test_who_waits_for_work_is_told() -> None:
    plan = replace(PLAN, chunks=1)
    async with running_cluster() as cluster, workers(cluster.address, 2, job=JOB, plan=plan) as (a, b):
        leased = await a.lease(block=True)
        async with waiting(cluster, "chunks"):
            leasing = asyncio.ensure_future(b.lease(block=True))
        for work in (leasing, a.finish(leased, 1, {})):
            async with refused(JobDropped):
                await work


async def test_who_waits_for_a_tensor_is_told() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, job=JOB) as (a, b):
        await a._links[0].send(Create("w", Spec("float32", (SIZE,), spec_of(Add()))))  # and does not fill it
        async with waiting(cluster, "tensor w"):
            creating = asyncio.ensure_future(b.create("w", ONES, Add()))
        async with refused(JobDropped):
            await creating


# --- another one of that name


async def test_what_workers_of_the_former_job_still_send_does_not_get_into_the_new_one() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, JOB) as former:
        await make(former)
        joined = former.joined
        assert joined is not None
        await dropped(cluster, force=True)
        async with connect(cluster.address, JOB) as client:
            await client.create("w", np.zeros(SIZE, np.float32), Add())
            for work in (former.push({"w": ONES}), former.pull("w"), former.create("v", ONES)):
                async with refused(JobDropped):
                    await work
            for server in cluster.servers:  # on connections of their own
                address = await _address(cluster, server)
                async with connected(address, hello(JOB, joined.worker, joined.incarnation)) as late:
                    half = ONES[: SIZE // 2]
                    part = (Part("w", "float32", half.size),)
                    for request in (Push(part, 0, 2), PushPull(part, ("w",), 0, 2)):
                        async with refused(JobDropped):
                            await late.request(request, (half,))
                    async with refused(JobDropped):
                        await late.request(Pull(("w",)))
            assert client.joined is not None
            assert client.joined.incarnation > joined.incarnation
            assert (await client.push_pull({"w": ONES}))["w"].max() == 1


async def _address(cluster: Cluster, server: Server) -> str:
    shards = (await cluster.status()).shards
    return cluster.address if server is cluster.servers[0] else shards[cluster.servers.index(server)].address


async def test_a_worker_that_was_out_does_not_make_it_anew() -> None:
    async with running_cluster() as cluster:
        async with connect(cluster.address, JOB) as client:
            await client.create("w", ONES, Add())
            await put_out(cluster, client)
            with pytest.raises(Fenced):
                await client.push({"w": ONES})
            await dropped(cluster)
            async with refused(JobDropped):
                await client.pull("w")
            async with connect(cluster.address, JOB) as new:
                await new.create("w", ONES, Add())
                async with refused(JobDropped):
                    await client.pull("w")
        assert names(*cluster.servers) == [{JOB}]


async def test_a_job_that_servers_lost_which_keep_nothing_was_not_dropped() -> None:
    async with running_cluster(2) as cluster:  # as after a start again: nothing is known of a worker 0
        for server in cluster.servers:
            address = await _address(cluster, server)
            async with connected(address, hello(JOB, 0, 1)) as late, refused(Fenced):
                await late.request(Pull(("w",)))
        async with connected(cluster.address, hello(JOB, 0, 1)) as late, refused(Fenced):
            await late.request(Create("w", Spec("float32", (SIZE,), spec_of(Add()))))
        async with connected(cluster.address, hello()) as worker:
            joined: Joined
            joined, _ = await worker.request(Join("token", JOB, former=1))
            assert joined.job == JOB


async def test_a_job_that_went_with_a_power_failure_was_not_dropped() -> None:
    async with running_cluster() as cluster:
        await make_and_leave(cluster)
        await dropped(cluster)
        coordinator = cluster.servers[0]._coordinator
        assert coordinator is not None
        coordinator.fence_all()  # as when the newest part of the log is lost
        async with connected(cluster.address, hello("lost", 0, 2)) as late:
            async with refused(Fenced):
                await late.request(Pull(("w",)))
            async with connect(cluster.address, "lost") as client:
                assert client.joined is not None
                assert client.joined.incarnation > 1000, "none that may have been issued is issued again"
                async with refused(Fenced):
                    await late.request(Pull(("w",)))


async def test_who_has_to_join_again_after_a_return_does_not_make_a_job_anew_that_was_dropped(
    tmp_path: Path,
) -> None:
    async with durable_cluster(tmp_path, 2, "snapshot") as cluster:
        async with connect(cluster.address, "stays") as other, connect(cluster.address, JOB) as client:
            await make(other)
            await make(client)
            first = await cluster.checkpoint()
            assert client.joined is not None
            former = client.joined.incarnation
            await other.diverged(math.inf)
        async with connected(cluster.address, hello()) as again:
            await dropped(cluster)  # its worker is out
            async with refused(JobDropped):
                await again.request(Join("token", JOB, former=former))
            assert await state(cluster) == [{"stays"}] * 3
            await make_and_leave(cluster)
            async with refused(JobDropped):
                await again.request(Join("token", JOB, former=former))
        await cluster.restore(tmp_path, checkpoint=first.checkpoint)
        async with connected(cluster.address, hello()) as again:
            joined: Joined
            joined, _ = await again.request(Join("token", JOB, former=former))
            assert joined.incarnation > former


async def test_not_all_names_of_jobs_that_were_dropped_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinators, "_NAMES_KEPT", 2)
    async with running_cluster() as cluster:
        for job in ("a", "b", "a", "c"):
            async with connect(cluster.address, job):
                pass
            await dropped(cluster, job)
        coordinator = cluster.servers[0]._coordinator
        assert coordinator is not None
        assert list(coordinator._former) == ["a", "c"]


@pytest.mark.parametrize("staleness", [0, math.inf])
async def test_a_job_is_dropped_and_made_anew_again_and_again_while_it_is_worked_on(staleness: float) -> None:
    async with running_cluster(3) as cluster:

        async def work(value: int) -> None:
            async with connect(cluster.address, JOB, staleness=staleness) as client:
                await client.create("w", np.zeros(3 * SIZE, np.float32), Add())
                try:
                    for count in range(1, 100_000):
                        pulled = await client.push_pull({"w": np.full(3 * SIZE, value, np.float32)})
                        assert (pulled["w"] == count * value).all()
                except JobDropped:
                    return
            pytest.fail("it was not dropped")

        for number in range(1, 5):
            working = asyncio.create_task(work(number))
            await cluster.until(lambda status: any(job.step > 2 for job in status.jobs))
            await dropped(cluster, force=True)
            following = asyncio.create_task(work(100 + number))  # while the former may still be at it
            await cluster.until(lambda status: any(job.step > 2 for job in status.jobs))
            await working
            await dropped(cluster, force=True)
            await following
        assert names(*cluster.servers) == [set()] * 3


# --- checkpoints, logs and restarts


async def state(cluster: DurableCluster) -> list[set[str]]:
    """The jobs that the coordinator and each shard have, when all servers are there."""
    status = await fetch_status(*cluster.endpoint)
    return [{job.name for job in status.jobs}, *names(*(cluster[n] for n in range(cluster.shards)))]


async def all_have(cluster: DurableCluster, jobs: set[str]) -> None:
    async with connect(cluster.address, "stays") as other:  # waits until all servers are there
        assert ((await other.pull("w")) == 1).all()
    assert await state(cluster) == [jobs] * (cluster.shards + 1)


@pytest.mark.parametrize("mode", ["snapshot", "log"])
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_it_stays_dropped_after_a_restart(mode: Mode, how: str, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, mode) as cluster:
        await make_and_leave(cluster, "stays")
        async with connect(cluster.address, JOB) as client:
            await make(client)
            await cluster.checkpoint()
            former = client.joined
        await dropped(cluster)
        if mode == "snapshot":
            await cluster.checkpoint()
        await (cluster.kill(1, 0) if how == "kill" else cluster.stop())
        await cluster.start()
        await all_have(cluster, {"stays"})
        async with connect(cluster.address, JOB) as new:
            await new.create("w", np.zeros(SIZE, np.float32), Add())
            await new.push({"w": ONES})
            assert new.joined is not None
            assert former is not None
            assert new.joined.incarnation > former.incarnation
        if mode == "log":
            await cluster.kill(0, 1)
            await cluster.start()
            async with connect(cluster.address, JOB) as new:
                assert ((await new.pull("w")) == 1).all()


async def test_when_all_jobs_are_dropped_a_clean_stop_keeps_that(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "snapshot") as cluster:
        await make_and_leave(cluster)
        await cluster.checkpoint()
        await dropped(cluster)
        for _ in range(2):
            await cluster.stop()
            await cluster.start()
            async with connect(cluster.address, "other"):  # waits until all servers are there
                pass
            assert await state(cluster) == [{"other"}] * 3
            await dropped(cluster, "other")


@pytest.mark.parametrize("mode", ["snapshot", "log"])
async def test_a_server_that_is_away_hears_of_it_when_it_is_back(mode: Mode, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, mode) as cluster:
        await make_and_leave(cluster, "stays")
        await make_and_leave(cluster)
        await (cluster.stop(1) if mode == "snapshot" else cluster.kill(1))
        async with asyncio.timeout(30):
            while (await fetch_status(*cluster.endpoint)).shards[1].state != "lost":
                pass
        found = await dropped(cluster)
        assert found.away == (1,)
        assert found.bytes > 0
        joining = asyncio.create_task(_make_anew(cluster))  # which waits for that server
        await cluster.start(1)
        await joining
        await all_have(cluster, {"stays", JOB})
        await cluster.stop() if mode == "snapshot" else await cluster.kill(1, 0)
        await cluster.start()
        async with connect(cluster.address, JOB) as client:
            assert ((await client.pull("w")) == 7).all()


async def _make_anew(cluster: DurableCluster) -> None:
    async with connect(cluster.address, JOB) as client:
        await client.create("w", np.full(SIZE, 7, np.float32), Add())


@pytest.mark.parametrize(
    ("place", "is_done"), [("drop.forgotten", False), ("drop.durable", True), ("drop.told", True)]
)
async def test_if_the_coordinator_dies_it_is_dropped_wholly_or_not_at_all(
    place: str, is_done: bool, tmp_path: Path
) -> None:
    async with durable_cluster(tmp_path, 3, "log") as cluster:
        await make_and_leave(cluster, "stays")
        await make_and_leave(cluster)
        configure(f"{place}=error:EIO@1")
        try:
            dropping = asyncio.ensure_future(dropped(cluster))
            await holds(lambda: JOB not in _jobs(cluster))
            if place != "drop.durable":
                await asyncio.wait([dropping])
        finally:
            if place != "drop.durable":
                configure("")
        await cluster.kill(0)
        configure("")
        await asyncio.wait([dropping])
        assert dropping.exception() is not None
        await cluster.start(0)
        await all_have(cluster, {"stays"} if is_done else {"stays", JOB})
        async with connect(cluster.address, JOB) as client:
            await client.create("w", np.zeros(SIZE, np.float32), Add())
            assert ((await client.pull("w")) == (0 if is_done else 1)).all()


async def test_each_of_two_goes_only_when_its_own_end_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster:
        for job in ("stays", "first", JOB):
            await make_and_leave(cluster, job)
        journal = cluster[0]._shard.journal
        drop = journal.drop

        def drop_others(jobs: Collection[str], *more: Any) -> None:
            if JOB not in jobs:
                drop(jobs, *more)

        monkeypatch.setattr(journal, "drop", drop_others)  # this one's does not become durable
        dropping = asyncio.ensure_future(dropped(cluster))
        await holds(lambda: JOB not in _jobs(cluster))
        await dropped(cluster, "first")
        await cluster.kill(1)
        await cluster.start(1)  # which is told anew
        await cluster.kill(0)
        await asyncio.wait([dropping])
        assert dropping.exception() is not None
        await cluster.start(0)
        await all_have(cluster, {"stays", JOB})
        async with connect(cluster.address, JOB, observe=True) as observer:
            assert ((await observer.pull("w")) == 1).all()


def _jobs(cluster: DurableCluster) -> dict[str, Any]:
    coordinator = cluster[0]._coordinator
    assert coordinator is not None
    return coordinator._jobs


@pytest.mark.parametrize("log_sync", [0.0, 1.0])
@pytest.mark.parametrize("count", [3, pytest.param(18, marks=pytest.mark.long)])
async def test_jobs_of_one_name_follow_one_another_in_the_log(
    count: int, log_sync: float, tmp_path: Path
) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster:
        await cluster.kill(1, 0)
        cluster.durability = [replace(one, log_sync=log_sync) for one in cluster.durability]
        await cluster.start()
        await make_and_leave(cluster, "stays")
        for number in range(count):
            async with connect(cluster.address, JOB, staleness=0 if number % 2 else 1) as client:
                await client.create("w", np.full(SIZE, number, np.float32), Add())
                await client.push_pull({"w": ONES})
            if number % 3 == 1:
                await cluster.kill(*((0, 1) if number % 2 else (1, 0)))
                await cluster.start()
                async with connect(cluster.address, JOB) as client:
                    assert ((await client.pull("w")) == number + 1).all()
            await dropped(cluster)
        await cluster.kill(0, 1)
        await cluster.start()
        await all_have(cluster, {"stays"})


@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.long)])
async def test_it_is_in_a_checkpoint_wholly_or_not_at_all(count: int, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 3, "log", keep=20) as cluster:
        await make_and_leave(cluster, "stays")
        for number in range(count):
            async with connect(cluster.address, JOB) as client:
                await make(client, number)
                checkpoint = asyncio.create_task(cluster.checkpoint())
                for _ in range(5 * number):
                    await asyncio.sleep(0)
                await dropped(cluster, force=True)
                with suppress(CheckpointFailed):
                    await checkpoint
            if number % 4 == 3:
                await cluster.kill(2, 1, 0)
                await cluster.start()
            await all_have(cluster, {"stays"})
        newest = (await fetch_status(*cluster.endpoint)).durability.checkpoint
        assert newest is not None
        for number in range(1, newest.checkpoint + 1):
            await cluster.restore(tmp_path, checkpoint=number)
            if len({frozenset(one) for one in await state(cluster)}) > 1:
                pytest.fail(f"checkpoint {number} has a part of it")
            if JOB in _jobs(cluster):
                async with connect(cluster.address, JOB, observe=True) as observer:
                    values = await observer.pull("w")
                    assert (values == values[0]).all()


async def test_it_waits_for_a_cut_that_is_being_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_HOLD_AT_MOST", 0.5)
    async with durable_cluster(tmp_path, 2, "log", failure=PATIENT) as cluster:
        async with connected(cluster.address, hello()) as silent:  # who sends no markers
            joined: Joined
            joined, _ = await silent.request(Join("token", JOB))
            assert joined.worker == 0
            checkpoint = asyncio.create_task(cluster.checkpoint())
            await holds(lambda: cluster[1]._shard._cut.checkpoint > 0)
            dropping = asyncio.create_task(dropped(cluster, force=True))
            with pytest.raises(CheckpointFailed, match="no marker"):
                await checkpoint
            await dropping
        assert await state(cluster) == [set()] * 3
        assert (await cluster.checkpoint()).checkpoint > 1


async def test_a_restore_brings_back_what_the_checkpoint_has(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster:
        await make_and_leave(cluster)
        taken = await cluster.checkpoint()
        await dropped(cluster)
        await _make_anew(cluster)
        await cluster.restore(tmp_path, checkpoint=taken.checkpoint)
        await cluster.kill(1)
        await cluster.start(1)  # which has the former one, and is told that it is the one
        async with connect(cluster.address, JOB) as client:
            assert ((await client.pull("w")) == 1).all()
            await client.push({"w": ONES})
        await dropped(cluster)
        assert await state(cluster) == [set()] * 3


async def test_workers_join_jobs_that_were_made_on_a_later_timeline_of_another_cluster(
    tmp_path: Path,
) -> None:
    async with durable_cluster(tmp_path / "old", 1) as cluster:
        await make_and_leave(cluster, "stays")
        first = await cluster.checkpoint()
        for _ in range(2):
            await cluster.restore(tmp_path / "old", checkpoint=first.checkpoint)
        await make_and_leave(cluster)
        await cluster.checkpoint()
    async with durable_cluster(tmp_path / "new", 2) as cluster:
        await cluster.restore(tmp_path / "old")
        assert (await fetch_status(*cluster.endpoint)).durability.timeline == 4
        async with connect(cluster.address, JOB, name="new") as client:
            assert ((await client.pull("w")) == 1).all()
            await client.push({"w": ONES})
        await cluster.stop()
        await cluster.start()
        async with connect(cluster.address, JOB) as client:
            assert ((await client.pull("w")) == 2).all()


async def test_when_another_job_goes_back_to_a_checkpoint_it_stays_dropped(tmp_path: Path) -> None:
    async with (
        durable_cluster(tmp_path, 2, "snapshot") as cluster,
        connect(cluster.address, "stays") as other,
    ):
        await make(other)
        await make_and_leave(cluster)
        await make_and_leave(cluster, "anew")
        await cluster.checkpoint()
        await dropped(cluster)
        await dropped(cluster, "anew")
        await make_and_leave(cluster, "anew")
        await other.diverged(math.inf)
        assert ((await other.pull("w")) == 1).all()
        assert await state(cluster) == [{"stays"}] * 3, "the new one was in no checkpoint yet"


async def test_with_a_log_it_stays_dropped_when_another_server_has_lost_its_own(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster:
        await make_and_leave(cluster, "stays")
        await make_and_leave(cluster)
        await cluster.checkpoint()
        await dropped(cluster)
        await cluster.kill(1)
        shutil.rmtree(tmp_path / "log" / "shard-1")
        await cluster.start(1)
        await all_have(cluster, {"stays"})
        assert (await fetch_status(*cluster.endpoint)).durability.timeline == 2


@pytest.mark.parametrize("failing", [0, 1])
async def test_with_a_log_it_stays_dropped_when_a_return_of_another_job_fails(
    failing: int, tmp_path: Path
) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster:
        await make_and_leave(cluster)
        async with connect(cluster.address, "stays") as other:
            await make(other)
            await cluster.checkpoint()
            await dropped(cluster)
            with failing_once(f"restore.installed=error:EIO@{failing + 1}"), suppress(PSError):
                await other.diverged(math.inf)
        await all_have(cluster, {"stays"})


@pytest.mark.parametrize("failing", [0, 1])
async def test_with_a_log_a_restore_that_fails_leaves_all_jobs(failing: int, tmp_path: Path) -> None:
    async with durable_cluster(tmp_path / "other", 1) as cluster:
        await make_and_leave(cluster, "foreign")
        await cluster.checkpoint()
    async with durable_cluster(tmp_path / "own", 2, "log") as cluster:
        await make_and_leave(cluster, "stays")
        await cluster.checkpoint()
        with failing_once(f"restore.installed=error:EIO@{failing + 1}"), pytest.raises(PSError):
            await cluster.restore(tmp_path / "other")
        await all_have(cluster, {"stays"})


@contextmanager
def failing_once(failpoint: str) -> Iterator[None]:
    configure(failpoint)
    try:
        yield
    finally:
        configure("")


async def test_one_that_was_made_anew_does_not_go_back_to_its_namesake(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "snapshot") as cluster:
        await make_and_leave(cluster)
        await cluster.checkpoint()
        await dropped(cluster)
        async with connect(cluster.address, JOB) as client:
            await make(client)
            with pytest.raises(HasDiverged, match="there is no checkpoint of the job yet"):
                await client.diverged(math.inf)


async def test_one_that_was_made_anew_is_prepared_by_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "snapshot") as cluster:
        for number, checkpoint in ((1, 1), (2, 3)):  # to go back makes one, too
            async with connect(cluster.address, JOB) as client:
                await client.create("w", np.full(SIZE, number, np.float32), Add())
                await client.prepared()
                await client.prepared()
                taken = (await fetch_status(*cluster.endpoint)).durability.checkpoint
                assert taken is not None
                assert taken.checkpoint == checkpoint
                await client.push({"w": ONES})
                await client.diverged(math.inf)
                assert ((await client.pull("w")) == number).all()
            await dropped(cluster)


async def test_one_that_is_dropped_while_its_checkpoint_is_read_takes_nobody_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        durable_cluster(tmp_path, 2, "snapshot") as cluster,
        connect(cluster.address, "stays") as other,
        connect(cluster.address, JOB) as client,
    ):
        await make(other)
        await make(client)
        await cluster.checkpoint()
        await other.push({"w": ONES})
        lead = cluster[0]._lead
        assert lead is not None
        load = lead._load_newest

        async def load_and_drop(*what: Any) -> Restored | None:
            restored = await load(*what)
            await dropped(cluster, force=True)
            return restored

        monkeypatch.setattr(lead, "_load_newest", load_and_drop)
        async with refused(JobDropped):
            await client.diverged(math.inf)
        assert ((await other.pull("w")) == 2).all()
        assert (await fetch_status(*cluster.endpoint)).durability.timeline == 1
        assert not [labels for labels in samples(cluster[0]) if JOB in labels]


async def test_it_cannot_be_dropped_while_the_log_cannot_be_written(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 2, "log") as cluster:
        await make_and_leave(cluster)
        async with connect(cluster.address, "stays") as other:
            await make(other)
            configure("log.before-write=error:ENOSPC")
            try:
                pushing = asyncio.create_task(other.push({"w": ONES}))
                await holds(lambda: all(cluster[n]._shard.journal.problem is not None for n in range(2)))
                async with refused(LogUnwritable):
                    await dropped(cluster)
                assert JOB in _jobs(cluster)
            finally:
                configure("")
            await pushing
        await dropped(cluster)


def test_all_of_that_name_in_the_batch_of_a_drop_is_of_the_job_that_was() -> None:
    async def replayed() -> None:
        async with lone_shard(w=10) as lone:
            shard, log = lone.shard, MemoryLog()
            shard.journal.log = cast(UpdateLog, log)
            lone.follow(1, 0)
            lone.push(0, 0, w=np.ones(10, np.float32))
            job = shard.jobs["job"]
            shard.journal.filled(job, job.dense("w"), lambda: None)
            shard.drop(["job"])
            shard.journal.drop(["job"], lambda: None)
            shard.journal.filled(job, job.dense("w"), lambda: None)  # it is gone, and nothing is logged of it
            log.commit()
            ((_, batch),) = log.durable
            assert {key[:2] for key in batch.arrays} == {("block", "job")}
            again = Shard(lone.metrics, lone._spawn, lone.reports.append)
            again.replay(batch)
            assert not again.jobs
            assert not again._steps
            again.close()

    asyncio.run(replayed())
