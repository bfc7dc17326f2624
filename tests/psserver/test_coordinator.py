import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from protocol.errors import (
    BadRequest,
    ConnectionLost,
    Fenced,
    JobMismatch,
    NotFinite,
    PSError,
    SpecMismatch,
    UnknownJob,
    UnknownTensor,
)
from protocol.frames import VERSION
from protocol.messages import Create as CreateRequest
from protocol.messages import Created, Leased, Plan, Spec
from protocol.messages import Join as JoinRequest
from protocol.optimizers import SGD, Add, spec_of
from protocol.status import ClusterStatus
from psserver.membership import FailureSettings
from psworker.asking import fetch_plan
from psworker.client import Client, connect
from tests.cluster import connected, full, hello, parts_of, payload_of, running_cluster, wire, workers

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

LARGE = 200_000  # float32 elements: enough for 3 blocks

QUICK = FailureSettings(heartbeat=0.05, dead_after=0.3)
ENDS_COUNT = FailureSettings(heartbeat=0.05, dead_after=30.0)
"""Silence is nothing, but whose connection has ended is missed soon."""


def silence(client: Client) -> None:
    """Have a worker be gone without a word: nothing of it is heard any more."""
    for link in client._links:
        link.fail(ConnectionLost("gone"))


def state_of(status: ClusterStatus, name: str) -> str:
    return next(worker.state for job in status.jobs for worker in job.workers if worker.name == name)


@asynccontextmanager
async def gone_without_a_word(address: str, name: str) -> AsyncIterator[None]:
    async with connect(address, name=name) as client:
        silence(client)
        yield


PLAN = Plan("the job's text", chunks=3, epochs=1, evaluate_every=0, seed=0)


# --- joining


async def test_a_job_starts_when_its_workers_have_joined() -> None:
    async with running_cluster() as cluster:
        first = asyncio.create_task(one_step(cluster.address, "a", workers=2))
        waiting = await cluster.until(lambda s: bool(s.jobs))
        assert [worker.state for worker in waiting.jobs[0].workers] == ["waiting"]
        assert not first.done()
        await asyncio.gather(first, one_step(cluster.address, "b", workers=2))


async def one_step(address: str, name: str, **settings: Any) -> None:
    async with connect(address, name=name, staleness=0, **settings) as ps:
        await ps.step()


async def test_who_gives_up_waiting_is_not_missed() -> None:
    async with running_cluster(2, failure=ENDS_COUNT) as cluster:
        gone = asyncio.create_task(one_step(cluster.address, "gone", workers=2))
        await cluster.until(lambda s: bool(s.jobs))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await cluster.until(lambda s: s.jobs[0].workers[0].state == "left")
        await asyncio.gather(*(one_step(cluster.address, name, workers=2) for name in "ab"))


@pytest.mark.parametrize(
    ("settings", "field", "wanted", "has"),
    [
        ({"staleness": 0}, "staleness", "0.0", "inf"),
        ({"workers": 2}, "workers", "2", "1"),
        ({"plan": Plan("another", 3, 1, 0, 0)}, "plan", "another", "the job's text"),
        ({"plan": Plan("the job's text", 4, 1, 0, 0)}, "chunks", "4", "3"),
    ],
)
async def test_other_settings_are_a_mismatch_that_names_field_and_both_values(
    settings: dict[str, Any], field: str, wanted: str, has: str
) -> None:
    async with running_cluster() as cluster, connect(cluster.address, name="a", plan=PLAN) as ps:
        with pytest.raises(JobMismatch) as caught:
            async with connect(cluster.address, **settings):
                pass
        assert (caught.value.field, caught.value.value) == (field, wanted)
        assert f"{field} {has}" in str(caught.value)
        assert [worker.name for worker in (await cluster.job()).workers] == ["a"]
        await ps.create("w", [1.0])  # and the job goes on


@pytest.mark.parametrize("field", ["chunks", "epochs"])
async def test_an_absurd_plan_makes_no_job(field: str) -> None:
    settings: dict[str, Any] = {"chunks": 1, "epochs": 1, "evaluate_every": 0, "seed": 0} | {field: 2**60}
    plan = Plan("text", **settings)
    async with running_cluster() as cluster:
        with pytest.raises(BadRequest) as caught:
            async with connect(cluster.address, plan=plan):
                pass
        assert caught.value.field == field
        assert (await cluster.status()).jobs == ()


async def test_a_name_in_use_is_refused() -> None:
    async with running_cluster() as cluster, connect(cluster.address, name="a") as ps:
        with pytest.raises(BadRequest, match="--name") as caught:
            async with connect(cluster.address, name="a"):
                pass
        assert (caught.value.field, caught.value.value) == ("name", "a")
        await ps.create("w", [1.0])


async def test_a_late_worker_takes_part_from_the_open_step_on() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        await a.create("w", full(LARGE, 0.0), Add())
        await asyncio.gather(a.step(), b.step())
        async with connect(cluster.address, name="late", staleness=0, workers=2) as late:
            assert late.clock == 1
            pushes = [
                ps.push_pull({"w": full(LARGE, amount)}) for ps, amount in ((a, 1.0), (b, 2.0), (late, 6.0))
            ]
            for new in await asyncio.gather(*pushes):
                np.testing.assert_array_equal(new["w"], full(LARGE, 9.0))
        await asyncio.gather(a.step(), b.step())


async def test_coming_back_is_the_next_incarnation() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, name="stays") as other:
        await other.create("w", full(LARGE, 0.0), Add())
        for incarnation in (1, 2, 3):
            async with connect(cluster.address, name="a") as ps:
                assert ps.joined is not None
                assert (ps.joined.worker, ps.joined.incarnation) == (1, incarnation)
                await ps.push({"w": full(LARGE, 1.0)})
        np.testing.assert_array_equal(await other.pull("w"), full(LARGE, 3.0))


async def test_a_dead_worker_may_come_back() -> None:
    async with running_cluster(2, failure=QUICK) as cluster, connect(cluster.address, name="stays") as other:
        await other.create("w", full(4, 0.0), Add())
        async with gone_without_a_word(cluster.address, "a"):
            await cluster.until(lambda s: state_of(s, "a") == "dead")
        async with connect(cluster.address, name="a") as again:
            assert again.joined is not None
            assert again.joined.incarnation == 2
            await again.push({"w": full(4, 1.0)})
            assert state_of(await cluster.status(), "a") == "training"
        np.testing.assert_array_equal(await other.pull("w"), full(4, 1.0))


@pytest.mark.parametrize(("job", "observe"), [(None, False), (None, True), ("nobody-made-it", True)])
async def test_a_job_that_is_not_there(job: str | None, observe: bool) -> None:
    async with running_cluster() as cluster:
        with pytest.raises(UnknownJob):
            async with connect(cluster.address, job=job, observe=observe):
                pass


async def test_the_only_job_needs_no_name_but_one_of_two_does() -> None:
    async with running_cluster() as cluster, connect(cluster.address, job="one"):
        async with connect(cluster.address, job=None) as ps:
            assert ps.job == "one"
        async with connect(cluster.address, job="two"):
            with pytest.raises(UnknownJob, match="name the job") as caught:
                async with connect(cluster.address, job=None):
                    pass
            assert caught.value.value == "one, two"


async def test_a_plan_is_told_to_those_who_ask() -> None:
    async with running_cluster() as cluster, connect(cluster.address, job="daemons", plan=PLAN) as ps:
        assert ps.joined is not None
        assert ps.joined.plan == PLAN
        for job in (None, "daemons"):
            assert await fetch_plan(cluster.address, job, reconnect_for=0.0) == PLAN


# --- tensors


async def test_create_is_idempotent() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address) as a, connect(cluster.address) as b:
        await a.create("w", full(LARGE, 1.0), Add())
        await a.push({"w": full(LARGE, 1.0)})
        for client in (a, b):
            await client.create("w", full(LARGE, 100.0), Add())
            np.testing.assert_array_equal(await client.pull("w"), full(LARGE, 2.0))


async def test_of_concurrent_creators_one_sets_all_the_values() -> None:
    async with running_cluster(3) as cluster, workers(cluster.address, 4) as clients:
        for number in range(10):
            name = f"w{number}"
            await asyncio.gather(*(c.create(name, full(LARGE, float(i))) for i, c in enumerate(clients)))
            seen = [await client.pull(name) for client in clients]
            assert len((await clients[0].tensors())[name].blocks) == 3
            assert len({float(value) for values in seen for value in (values.min(), values.max())}) == 1


async def test_one_client_may_create_several_times_at_once() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address) as ps:
        await asyncio.gather(
            *(ps.create("w", full(LARGE, float(i))) for i in range(5)), ps.create("v", [1.0])
        )
        values = await ps.pull("w")
        assert values.min() == values.max()


async def test_the_next_creator_fills_what_the_first_left_half_filled() -> None:
    spec = Spec("float32", (LARGE,), spec_of(Add()))
    async with running_cluster(3, failure=ENDS_COUNT) as cluster, connect(cluster.address) as ps:
        async with connected(cluster.address, hello()) as dying:
            await dying.request(JoinRequest("token", "default"))
            created: Created
            created, _ = await dying.request(CreateRequest("w", spec))
            assert created.attempt == 1
            await fill_first_block(ps, cluster.address, created, spec)
            waiting = [asyncio.create_task(ps.create("w", full(LARGE, 2.0), Add()))]
            async with connect(cluster.address) as other:
                waiting.append(asyncio.create_task(other.create("w", full(LARGE, 3.0), Add())))
                await cluster.status()
                with pytest.raises(UnknownTensor):
                    await other.pull("w")
                assert not any(task.done() for task in waiting)
                dying.abort()
                await asyncio.gather(*waiting)
        values = await ps.pull("w")
        assert values.min() == values.max()
        assert values[0] in (2.0, 3.0)


async def fill_first_block(ps: Client, address: str, created: Created, spec: Spec) -> None:
    block = created.blocks[0]
    values = full(block.stop - block.start, 1.0)
    async with wire(address) as creator:
        assert ps.joined is not None
        identity: dict[str, Any] = {"worker": ps.joined.worker, "incarnation": ps.joined.incarnation}
        await creator.ask("hello", versions=[VERSION], client="test", job="default", **identity)
        reply = await creator.ask(
            "init",
            payload_of(values),
            name="w",
            spec=[spec.dtype, list(spec.shape), [spec.optimizer.name, []]],
            attempt=created.attempt,
            tensors=parts_of(w=values),
        )
        assert reply["op"] == "ok"


async def test_a_creator_that_failed_may_try_again() -> None:
    spec = ["float32", [4], ["add", []]]
    async with running_cluster() as cluster, wire(cluster.address) as worker:
        await worker.ask("hello", versions=[VERSION], client="test")
        await worker.ask("join", token="token", job="default")
        for attempt, value, op in ((1, math.nan, "error"), (2, 5.0, "ok")):
            created = await worker.ask("create", name="w", spec=spec)
            assert created["attempt"] == attempt
            values = full(4, value)
            fields: dict[str, Any] = {"spec": spec, "attempt": attempt, "tensors": parts_of(w=values)}
            assert (await worker.ask("init", payload_of(values), name="w", **fields))["op"] == op
        assert (await worker.ask("initialised", name="w", attempt=1))["field"] == "attempt"
        assert (await worker.ask("initialised", name="w", attempt=2))["op"] == "ok"
        async with connect(cluster.address) as ps:
            np.testing.assert_array_equal(await ps.pull("w"), full(4, 5.0))


async def test_an_initial_value_that_is_not_finite_makes_nothing() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as ps:
        for bad in (math.nan, math.inf):
            with pytest.raises(NotFinite):
                await ps.create("w", [1.0, bad])
        await ps.create("w", np.ones((2, 3), np.float32))  # nor has it fixed the spec
        np.testing.assert_array_equal(await ps.pull("w"), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("value", "optimizer", "field", "wanted", "has"),
    [
        (np.zeros(3, np.float64), SGD(0.5), "dtype", "float64", "float32"),
        (np.zeros(4, np.float32), SGD(0.5), "shape", "(4,)", "(3,)"),
        (np.zeros((3, 1), np.float32), SGD(0.5), "shape", "(3, 1)", "(3,)"),
        (np.zeros(3, np.float32), SGD(0.25), "optimizer", "0.25", "0.5"),
        (np.zeros(3, np.float32), Add(), "optimizer", "add", "sgd"),
    ],
)
async def test_another_spec_is_a_mismatch_that_names_field_and_both_values(
    value: Any, optimizer: Any, field: str, wanted: str, has: str
) -> None:
    async with (
        running_cluster() as cluster,
        connect(cluster.address) as ps,
        connect(cluster.address) as other,
    ):
        await ps.create("w", full(3, 1.0), SGD(0.5))
        for client in (ps, other):
            with pytest.raises(SpecMismatch) as caught:
                await client.create("w", value, optimizer)
            assert caught.value.field == field
            assert wanted in caught.value.value
            assert has in caught.value.message
        np.testing.assert_array_equal(await other.pull("w"), full(3, 1.0))


async def test_large_tensors_spread_and_small_ones_go_round() -> None:
    async with running_cluster(3) as cluster, connect(cluster.address) as ps:
        await ps.create("large", full(LARGE, 1.0))
        for number in range(3):
            await ps.create(f"small{number}", full(100, 1.0))
        infos = await ps.tensors()
        assert [block.shard for block in infos["large"].blocks] == [0, 1, 2]
        assert sorted(infos[f"small{number}"].blocks[0].shard for number in range(3)) == [0, 1, 2]
        status = await cluster.status()
        assert sum(shard.parameters_bytes for shard in status.shards) == 4 * (LARGE + 300)
        assert [(t.name, t.dtype, t.shape, t.optimizer, t.shards) for t in status.jobs[0].tensors][:1] == [
            ("large", "float32", (LARGE,), "sgd", 3)
        ]


# --- work


async def test_leases_are_handed_out_and_waited_for() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, plan=PLAN) as (a, b):
        leases = [await a.lease(block=True) for _ in range(3)]
        assert sorted(lease.chunk for lease in leases) == [0, 1, 2]
        assert (await b.lease(block=False)).kind == "wait"
        waiting = asyncio.create_task(b.lease(block=True))
        await a.finish(leases[0], 10, {"loss": 1.0})
        await a.finish(leases[1], 10, {"loss": 3.0})
        assert not waiting.done()
        await a._leave()  # the third goes to who waits for it
        assert await waiting == leases[2]
        await b.finish(leases[2], 20, {"loss": 5.0})
        assert (await b.lease(block=True)).kind == "finished"
        progress = (await cluster.job()).progress
        assert progress is not None
        assert (progress.phase, progress.chunks_done, progress.train_examples) == ("finished", 3, 40)


async def test_the_leases_of_a_dead_worker_go_to_those_who_wait() -> None:
    async with running_cluster(failure=QUICK) as cluster, workers(cluster.address, 2, plan=PLAN) as (a, b):
        leases = [await a.lease(block=True) for _ in range(3)]
        waiting = asyncio.create_task(b.lease(block=True))
        await cluster.status()
        silence(a)
        assert await waiting in leases
        await cluster.until(lambda s: state_of(s, "w0") == "dead")
        with pytest.raises(PSError):
            await a.finish(leases[0], 1, {})


async def test_a_worker_that_sits_on_a_chunk_while_others_wait_is_hung() -> None:
    """Its heartbeats go on; its work does not."""
    failure = FailureSettings(heartbeat=0.05, dead_after=30.0, hung_after=0.3)
    plan = Plan("text", 1, 1, 0, 0)
    async with running_cluster(failure=failure) as cluster, workers(cluster.address, 2, plan=plan) as (a, b):
        lease = await a.lease(block=True)
        assert await b.lease(block=True) == lease
        assert state_of(await cluster.status(), "w0") == "dead"
        await b.finish(lease, 1, {})


async def test_a_part_is_its_workers_until_that_is_gone() -> None:
    plan = Plan("text", 4, 1, 0, 0, "contiguous", 2)
    async with running_cluster(failure=QUICK) as cluster, workers(cluster.address, 2, plan=plan) as (a, b):
        async with connect(cluster.address, name="surplus", plan=plan) as surplus:
            leases = {ps: [await ps.lease(block=False) for _ in range(3)] for ps in (a, b)}
            for found in leases.values():
                assert [lease.kind for lease in found] == ["train", "train", "wait"]
            chunks = [sorted(lease.chunk for lease in leases[ps][:2]) for ps in (a, b)]
            assert sorted(chunks) == [[0, 1], [2, 3]]
            waiting = asyncio.create_task(surplus.lease(block=True))
            await surplus.lease(block=False)  # by its answer, the one before it is waiting
            silence(a)
            assert await waiting == leases[a][0]
        # What the surplus worker gave back goes to who takes the part over.
        async with connect(cluster.address, name="heir", plan=plan) as heir:
            assert [await heir.lease(block=False) for _ in range(2)] == leases[a][:2]
            assert (await b.lease(block=False)).kind == "wait"


async def test_the_part_of_a_lease_comes_back_with_its_finish() -> None:
    plan = Plan("text", 1, 1, 0, 0, "hash:user", 2)
    async with running_cluster() as cluster, connect(cluster.address, plan=plan) as ps:
        own, other = [await ps.lease(block=False) for _ in range(2)]
        assert (own.part, other.part) == (0, 1)
        with pytest.raises(Fenced):
            await ps.finish(Leased("train", 1, 0), 1, {})
        await ps.finish(own, 1, {})
        await ps.finish(other, 1, {})
        assert (await ps.lease(block=False)).kind == "finished"


async def test_all_who_wait_learn_that_the_job_is_finished() -> None:
    plan = Plan("text", 1, 1, 0, 0)
    async with running_cluster() as cluster, workers(cluster.address, 3, plan=plan) as clients:
        leases = [asyncio.create_task(client.lease(block=True)) for client in clients]
        done, waiting = await asyncio.wait(leases, return_when=asyncio.FIRST_COMPLETED)
        (holder,) = done
        await clients[leases.index(holder)].finish(holder.result(), 1, {})
        assert [lease.kind for lease in await asyncio.gather(*waiting)] == ["finished", "finished"]


async def test_a_chunk_is_counted_once() -> None:
    async with running_cluster() as cluster, workers(cluster.address, 2, plan=PLAN) as (a, b):
        lease = await a.lease(block=True)
        for client, leased in (
            (b, lease),
            (a, Leased("train", 1, 99)),
            (a, Leased("evaluate", 1, lease.chunk)),
        ):
            client._leased[leased] = 1  # the client would not ask otherwise
            with pytest.raises(BadRequest) as caught:
                await client.finish(leased, 1, {})
            assert caught.value.field == "chunk"
        await a.finish(lease, 1, {})
        with pytest.raises(Fenced):
            await a.finish(lease, 1, {})
        progress = (await cluster.job()).progress
        assert progress is not None
        assert progress.chunks_done == 1


async def test_latecomers_to_a_finished_synchronous_job_find_nothing_to_do() -> None:
    plan = Plan("text", 1, 1, 0, 0)
    async with (
        running_cluster(2) as cluster,
        connect(cluster.address, staleness=0, workers=1, plan=plan) as ps,
    ):
        await ps.create("w", full(4, 1.0))
        lease = await ps.lease(block=False)
        await ps.step()
        await ps.finish(lease, 1, {})
        async with connect(cluster.address, staleness=0, workers=1, plan=plan) as late:
            assert (await late.lease(block=False)).kind == "finished"
            assert late.clock == 1
            np.testing.assert_array_equal(await late.pull("w"), full(4, 1.0))
        await ps.step()  # it is not waited for any more


# --- status


async def test_the_status_tells_who_does_what() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0, plan=PLAN) as (a, b):
        a.report.examples, a.report.loss = 7, 0.5
        await a._send_heartbeat()
        step = asyncio.create_task(b.step())
        job = (await cluster.until(lambda s: bool(s.jobs[0].waits))).jobs[0]
        (wait,) = job.waits
        assert (wait.what, wait.waiting, wait.waiting_for, wait.shard) == ("step 0", 1, ("w0",), 0)
        assert (job.name, job.staleness, job.step) == ("default", 0.0, 0)
        mine = next(worker for worker in job.workers if worker.name == "w0")
        assert (mine.state, mine.examples, mine.loss) == ("training", 7, 0.5)
        await a.step()
        await step
        assert (await cluster.job()).step == 1
        status = await cluster.status()
        assert [(shard.shard, shard.state) for shard in status.shards] == [(0, "ready"), (1, "ready")]
        assert status.shards[0].address == cluster.address


async def test_the_status_tells_how_a_job_went_to_whoever_asks_late() -> None:
    async with running_cluster(failure=QUICK) as cluster:
        async with connect(cluster.address) as client:
            client.report.examples, client.report.loss = 100, 0.5
            await cluster.until(lambda status: 0.5 in status.jobs[0].history.loss.values)
        await cluster.until(lambda status: status.jobs[0].workers[0].state == "left")
        left = (await cluster.job()).history
        later = (await cluster.until(lambda status: status.jobs[0].history.loss.ago > 0.2)).jobs[0].history
        assert later.loss.values == left.loss.values  # it ends where the work did
        assert len(left.recent_loss.values) == len(left.recent_speed.values)
        assert left.recent_loss.every == QUICK.heartbeat


async def test_a_job_that_is_restored_goes_on_with_its_curves() -> None:
    async with running_cluster(failure=QUICK) as cluster, connect(cluster.address) as client:
        client.report.loss = 0.5
        await cluster.until(lambda status: 0.5 in status.jobs[0].history.loss.values)
        coordinator = cluster.servers[0]._coordinator
        assert coordinator is not None
        coordinator.take(dict(coordinator._jobs))
        assert 0.5 in (await cluster.job()).history.loss.values
        coordinator.take({})
        assert coordinator._histories == {}
