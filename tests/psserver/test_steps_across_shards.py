"""Synchronous steps of a whole cluster: whose gradients are in them, whoever dies or comes late."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.connection import Answer, Connection
from protocol.errors import Fenced
from protocol.messages import Ping, Set
from protocol.optimizers import SGD
from protocol.status import ClusterStatus, Wait
from psserver.membership import FailureSettings
from psserver.server import Server
from psworker.asking import change
from psworker.client import Client, connect
from tests.cluster import PATIENT, Cluster, running_cluster, workers
from tests.psserver.by_hand import ByHand, worker_by_hand

Array = npt.NDArray[Any]

SIZE = 2000
WEIGHTS = (2.0, 5.0, 11.0)  # no share of a sum of these is the double of another share of the same one

SOON = FailureSettings(heartbeat=0.05, dead_after=0.3)


def slot(number: int, value: float = 1.0) -> Array:
    gradient = np.zeros(SIZE, np.float32)
    gradient[number] = value
    return gradient


async def make_one_on_each_shard(client: Client, shards: int) -> list[str]:
    """Make a tensor on each shard; return their names by shard."""
    for number in range(shards):
        await client.create(f"on{number}", np.zeros(SIZE, np.float32), SGD(1.0))
    infos = (await client.tensors()).values()
    found = {block.shard: info.name for info in infos for block in info.blocks}
    return [found[shard] for shard in range(shards)]


async def values_of(client: Client, names: Sequence[str], count: int) -> list[list[float]]:
    """What was subtracted from the first slots of each tensor, once no other is touched."""
    pulled = await client.pull(names)
    assert not any(values[count:].any() for values in pulled.values())
    return [(-pulled[name][:count]).tolist() for name in names]


def retrieve(answer: Answer) -> None:
    """Nobody awaits this answer."""
    if not answer.cancelled():
        answer.exception()


def is_waited_for(*names: str) -> Callable[[ClusterStatus], bool]:
    """Whether somebody waits, for nobody but these."""
    return lambda status: any(set(wait.waiting_for) == set(names) for wait in all_waits(status))


def all_waits(status: ClusterStatus) -> Iterable[Wait]:
    return (wait for job in status.jobs for wait in job.waits)


def state_of(status: ClusterStatus, name: str) -> str:
    (found,) = [worker.state for job in status.jobs for worker in job.workers if worker.name == name]
    return found


async def until_out_on_all(cluster: Cluster, worker: ByHand) -> None:
    """Return when every shard has heard that a worker is out."""
    shards = [server._shard for server in cluster.servers]
    number = worker.joined.worker
    await cluster.until(lambda _: all(number not in s.jobs["default"].clocks.members for s in shards))


def uplink_of(shard: Server) -> Connection:
    uplink = shard._uplink
    assert uplink is not None
    assert uplink._connection is not None
    return uplink._connection


@asynccontextmanager
async def clients_and_worker(
    cluster: Cluster, clients: int, **settings: Any
) -> AsyncIterator[tuple[list[Client], ByHand]]:
    """The workers that a job starts with: clients c0, c1, ... and "hand", that does what it is told."""
    address, count = cluster.address, clients + 1
    async with AsyncExitStack() as stack:
        joining = [
            stack.enter_async_context(connect(address, name=f"c{number}", workers=count, **settings))
            for number in range(clients)
        ]
        by_hand = stack.enter_async_context(worker_by_hand(address, "hand", workers=count, **settings))
        waiting = asyncio.ensure_future(by_hand)  # all are let in together
        joined = await asyncio.gather(*joining)
        yield joined, await waiting


# --- turning the dial while workers push


class Pushers:
    """Three clients that push slots, each its own, as fast as they can."""

    def __init__(self, clients: Sequence[Client], names: Sequence[str]) -> None:
        self.done = [0] * len(clients)
        self._names = names
        self._stop = False
        self._moved = asyncio.Event()
        self._clients = clients
        self._tasks = [asyncio.create_task(self._push(*one)) for one in enumerate(clients)]

    async def _push(self, number: int, client: Client) -> None:
        while not self._stop:
            gradient = slot(len(self.done) * self.done[number] + number)
            await client.push_pull(dict.fromkeys(self._names, gradient), weight=WEIGHTS[number])
            self.done[number] += 1
            self._moved.set()

    async def go_on(self, pushes: int) -> None:
        """Return when each has pushed so often from now on."""
        goal = [done + pushes for done in self.done]
        while any(done < wanted for done, wanted in zip(self.done, goal, strict=True)):
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            await asyncio.wait([moved, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()
            assert not any(task.done() for task in self._tasks), self._tasks

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    def check(self, values: Sequence[Sequence[float]]) -> None:
        """Each push counted once, alone or in the mean of a step, on every shard; nothing else did."""
        for found in values:
            for number, done in enumerate(self.done):
                slots = found[number :: len(self.done)]
                right = np.array(sorted(_shares(number)))
                off = np.abs(np.array(slots[:done])[:, None] - right[None, :]).min(axis=1)
                assert (off < 1e-6).all(), (number, [slots[int(i)] for i in np.flatnonzero(off >= 1e-6)])
                assert not any(slots[done:])


def _shares(number: int) -> set[float]:
    """What a worker's slot may be after the mean of any step that it is in."""
    mine = WEIGHTS[number]
    others = [weight for other, weight in enumerate(WEIGHTS) if other != number]
    some = itertools.chain.from_iterable(itertools.combinations(others, count) for count in range(3))
    return {mine / (mine + sum(weights)) for weights in some}


TURNS = [1.0, 0.0, math.inf, 0.0, 3.0, math.inf, 1.0, 2.0, 0.0, 0.0, math.inf, 3.0, 0.0]


@pytest.mark.parametrize("pushes", [0, 2])
@pytest.mark.parametrize(("shards", "cut"), [(1, False), (3, False), (2, True), (3, True)])
async def test_turning_the_dial_while_workers_push_loses_and_doubles_nothing(
    shards: int, cut: bool, pushes: int
) -> None:
    async with (
        running_cluster(shards, failure=FailureSettings(0.05, 30.0)) as cluster,
        workers(cluster.address, 3, staleness=0) as clients,
    ):
        names = await make_one_on_each_shard(clients[0], shards)
        pushers = Pushers(clients, names)
        await pushers.go_on(2)
        for turn, staleness in enumerate(TURNS):
            if cut:
                uplink_of(cluster.servers[1 + turn % (shards - 1)]).abort()
            await change(*cluster.endpoint, Set(staleness=staleness))
            await pushers.go_on(pushes)
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await pushers.stop()
        pushers.check(await values_of(clients[0], names, 3 * max(pushers.done)))


@pytest.mark.parametrize("before", [1.0, math.inf])
async def test_workers_that_do_not_know_yet_that_steps_are_kept_end_them_on_every_shard(
    before: float,
) -> None:
    """No heartbeat tells them, and all that they push is on one of the shards."""
    async with (
        running_cluster(3, failure=PATIENT) as cluster,
        workers(cluster.address, 3, staleness=before) as clients,
    ):
        names = await make_one_on_each_shard(clients[0], 3)
        pushers = Pushers(clients, names[1:2])
        await pushers.go_on(2)
        await change(*cluster.endpoint, Set(staleness=0.0))
        await pushers.go_on(5)
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await pushers.stop()
        pushers.check(await values_of(clients[0], names[1:2], 3 * max(pushers.done)))


@pytest.mark.parametrize("turns", [[0.0], [0.0, math.inf], [0.0, math.inf, 0.0], [2.0, 0.0, 1.0, 0.0]])
@pytest.mark.parametrize("before", [0.0, 1.0, math.inf])
async def test_a_shard_that_is_away_while_the_dial_is_turned_takes_part_when_it_is_back(
    turns: list[float], before: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running_cluster(2, failure=FailureSettings(0.05, 30.0)) as cluster,
        workers(cluster.address, 3, staleness=before) as clients,
    ):
        names = await make_one_on_each_shard(clients[0], 2)
        pushers = Pushers(clients, names)
        await pushers.go_on(2)
        shard, back = cluster.servers[1], asyncio.Event()
        hold_back_uplink(shard, back, monkeypatch)
        uplink_of(shard).abort()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        changes = []
        for staleness in turns:
            changes.append(
                asyncio.create_task(change(*cluster.endpoint, Set(staleness=staleness), within=60))
            )
            await cluster.until(lambda s, wanted=staleness: s.jobs[0].staleness == wanted)  # type: ignore[misc]
        back.set()
        await asyncio.gather(*changes)
        await pushers.go_on(3)
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await pushers.stop()
        pushers.check(await values_of(clients[0], names, 3 * max(pushers.done)))


def hold_back_uplink(shard: Server, back: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shard reach its coordinator only once ``back`` is set."""
    uplink = shard._uplink
    assert uplink is not None
    dial = uplink._dial

    async def dial_when_back() -> Connection:
        await back.wait()
        return await dial()

    monkeypatch.setattr(uplink, "_dial", dial_when_back)


# --- who comes and goes


async def test_late_workers_take_part_from_the_open_step_on() -> None:
    async with (
        running_cluster(2) as cluster,
        workers(cluster.address, 2, staleness=0) as (a, b),
    ):
        names = await make_one_on_each_shard(a, 2)
        for step in range(2):
            await asyncio.gather(*(ps.push_pull(dict.fromkeys(names, slot(step))) for ps in (a, b)))
        early = asyncio.create_task(a.push_pull(dict.fromkeys(names, slot(2, 3.0))))
        await cluster.until(is_waited_for("w1"))
        async with AsyncExitStack() as stack:
            joining = [connect(cluster.address, name=f"late{n}", staleness=0, workers=2) for n in range(2)]
            late = await asyncio.gather(*(stack.enter_async_context(one) for one in joining))
            assert [ps.clock for ps in late] == [2, 2]
            for ps in late:
                np.testing.assert_array_equal((await ps.pull(names))[names[1]][:3], [-1, -1, 0])
            rest = [ps.push_pull(dict.fromkeys(names, slot(2))) for ps in (b, *late)]
            await asyncio.gather(early, *rest)
            assert await values_of(a, names, 3) == [[1, 1, 1.5]] * 2
            assert [ps.clock for ps in (a, b, *late)] == [3] * 4
        await asyncio.gather(*(ps.push_pull(dict.fromkeys(names, slot(3))) for ps in (a, b)))
        assert await values_of(a, names, 4) == [[1, 1, 1.5, 1]] * 2


@pytest.mark.parametrize("staleness", [1, 5])
async def test_late_workers_begin_with_the_furthest_and_hold_nobody_up(staleness: int) -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, name="a", staleness=staleness) as a:
        for _ in range(50):
            await a.step()
        async with AsyncExitStack() as stack:
            joining = [connect(cluster.address, name=f"late{number}") for number in range(3)]
            late = await asyncio.gather(*(stack.enter_async_context(one) for one in joining))
            assert [ps.clock for ps in late] == [50] * 3
            for _ in range(staleness):
                await a.step()
            last = asyncio.create_task(a.step())
            await cluster.until(is_waited_for("late0", "late1", "late2"))
            assert not last.done()
            await asyncio.gather(*(ps.step() for ps in late))
            await last


@pytest.mark.parametrize("reached", [[0], [1], [0, 1]])
async def test_a_worker_that_dies_is_in_a_step_on_all_shards_or_on_none(reached: list[int]) -> None:
    async with (
        running_cluster(2, failure=SOON) as cluster,
        clients_and_worker(cluster, 2, staleness=0) as ((a, b), hand),
    ):
        names = await make_one_on_each_shard(a, 2)
        for shard in reached:
            hand.end(shard, 1, 0, **{names[shard]: slot(2)}).add_done_callback(retrieve)
            await hand.connections[shard].request(Ping())  # by its answer, the gradient is there
        early = asyncio.create_task(a.push_pull(dict.fromkeys(names, slot(0))))
        await cluster.until(is_waited_for("c1") if reached == [0, 1] else is_waited_for("c1", "hand"))
        for connection in hand.connections:
            connection.abort()
        await cluster.until(lambda status: state_of(status, "hand") == "dead")
        await asyncio.gather(early, b.push_pull(dict.fromkeys(names, slot(1))))
        expected = [1 / 3] * 3 if reached == [0, 1] else [0.5, 0.5, 0]
        for found in await values_of(a, names, 3):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        await asyncio.gather(*(ps.push_pull(dict.fromkeys(names, slot(3))) for ps in (a, b)))
        assert [found[3] for found in await values_of(a, names, 4)] == [1, 1]


@pytest.mark.parametrize("staleness", [0, 1, math.inf])
async def test_the_dead_are_fenced_on_every_shard_and_the_others_go_on(staleness: float) -> None:
    """Nothing of a worker that was declared dead is applied any more, though it wakes up (guarantee 8)."""
    async with (
        running_cluster(3, failure=SOON) as cluster,
        clients_and_worker(cluster, 1, staleness=staleness) as ((a,), hand),
    ):
        names = await make_one_on_each_shard(a, 3)
        await cluster.until(lambda status: state_of(status, "hand") == "dead")  # it sends no heartbeat
        await until_out_on_all(cluster, hand)
        for shard, name in enumerate(names):
            for answer in (hand.push(shard, 1, 0, **{name: slot(0)}), hand.end(shard, 2, 0)):
                with pytest.raises(Fenced) as caught:
                    await answer
                assert (caught.value.field, caught.value.value) == ("worker", str(hand.joined.worker))
        with pytest.raises(Fenced):
            await hand.beat()
        for number in (1, 2, 3):
            await a.push_pull(dict.fromkeys(names, slot(number)))
        assert await values_of(a, names, 4) == [[0, 1, 1, 1]] * 3
        async with worker_by_hand(cluster.address, "hand") as again:
            assert again.joined.incarnation == 2
            assert again.joined.worker == hand.joined.worker
            with pytest.raises(Fenced):
                await hand.push(1, 1, 0, **{names[1]: slot(0)})
            clock = again.joined.clock
            await again.push(1, 1, clock, **{names[1]: slot(0)})


@pytest.mark.parametrize("staleness", [0, 1])
async def test_who_keeps_others_waiting_for_too_long_is_dead_though_its_heart_beats(staleness: int) -> None:
    failure = FailureSettings(heartbeat=0.05, dead_after=30.0, hung_after=0.2)
    async with (
        running_cluster(2, failure=failure) as cluster,
        workers(cluster.address, 2, staleness=staleness) as (a, b),
    ):
        names = await make_one_on_each_shard(a, 2)
        for _ in range(3):
            await a.push_pull(dict.fromkeys(names, slot(0)))
        assert state_of(await cluster.status(), "w1") == "dead"
        with pytest.raises(Fenced):
            await b.push_pull(dict.fromkeys(names, slot(1)))
        await b.pull(names)  # it joins again
        assert b.joined is not None
        assert b.joined.incarnation == 2
        await asyncio.gather(*(ps.push_pull(dict.fromkeys(names, slot(2))) for ps in (a, b)))
        for found in await values_of(a, names, 3):
            assert found[:2] == [3, 0]


# --- the first n of m


async def test_a_step_goes_on_without_the_slowest_whose_gradient_is_dropped_on_all_shards() -> None:
    async with (
        running_cluster(2, failure=PATIENT) as cluster,
        clients_and_worker(cluster, 2, staleness=0, backup_workers=1) as ((a, b), hand),
    ):
        names = await make_one_on_each_shard(a, 2)
        hand.end(1, 1, 0, **{names[1]: slot(9)}).add_done_callback(retrieve)  # on one of them in time
        await hand.connections[1].request(Ping())
        for step in range(3):
            await asyncio.gather(*(ps.push_pull(dict.fromkeys(names, slot(step))) for ps in (a, b)))
        reply, _ = await hand.end(0, 1, 0, **{names[0]: slot(9)})
        assert reply.clock == 3
        assert await values_of(a, names, 3) == [[1, 1, 1]] * 2
        assert (await cluster.job()).dropped == 1
        ends = [hand.end(shard, 2, 3, **{names[shard]: slot(3, 3.0)}) for shard in range(2)]
        early = asyncio.create_task(a.push_pull(dict.fromkeys(names, slot(3, 1.0))))
        for reply, _ in await asyncio.gather(*ends):
            assert reply.clock is None
        await early
        assert [found[3] for found in await values_of(a, names, 4)] == [2, 2]


async def test_workers_without_work_are_neither_counted_nor_waited_for() -> None:
    async with (
        running_cluster(2, failure=PATIENT) as cluster,
        workers(cluster.address, 4, staleness=0, backup_workers=1) as (a, b, *idle),
    ):
        names = await make_one_on_each_shard(a, 2)
        resting = [asyncio.create_task(ps.step()) for ps in idle]
        await cluster.until(is_waited_for("w0", "w1"))
        await asyncio.gather(
            a.push_pull(dict.fromkeys(names, slot(0))), *resting
        )  # b is the one that is left
        late = await b.push_pull(dict.fromkeys(names, slot(1)))
        assert b.clock == 1
        np.testing.assert_array_equal(late[names[0]][:2], [-1, 0])
        assert await values_of(a, names, 2) == [[1, 0]] * 2


async def test_the_one_that_has_the_last_work_is_not_outvoted_by_those_that_have_none() -> None:
    async with (
        running_cluster(2, failure=PATIENT) as cluster,
        workers(cluster.address, 3, staleness=0, backup_workers=2) as (a, *idle),
    ):
        names = await make_one_on_each_shard(a, 2)
        for step in range(3):
            resting = [asyncio.create_task(ps.step()) for ps in idle]
            await cluster.until(is_waited_for("w0"))
            assert not any(one.done() for one in resting)
            await asyncio.gather(a.push_pull(dict.fromkeys(names, slot(step))), *resting)
        assert await values_of(a, names, 3) == [[1, 1, 1]] * 2
        assert (await cluster.job()).dropped == 0


async def test_backup_workers_may_be_set_while_somebody_waits() -> None:
    async with (
        running_cluster(2, failure=PATIENT) as cluster,
        workers(cluster.address, 2, staleness=0) as (a, b),
    ):
        names = await make_one_on_each_shard(a, 2)
        waiting = asyncio.create_task(a.push_pull(dict.fromkeys(names, slot(0))))
        await cluster.until(is_waited_for("w1"))
        await change(*cluster.endpoint, Set(backup_workers=1))
        await waiting
        await b.push_pull(dict.fromkeys(names, slot(1)))
        assert (a.clock, b.clock) == (1, 1)
        assert await values_of(a, names, 2) == [[1, 0]] * 2


# --- shards whose link to the coordinator breaks


@pytest.mark.parametrize("shards", [2, 3])
async def test_a_link_that_is_cut_in_the_midst_of_steps_loses_nothing(shards: int) -> None:
    async with (
        running_cluster(shards, failure=FailureSettings(0.05, 30.0)) as cluster,
        workers(cluster.address, 3, staleness=0) as clients,
    ):
        names = await make_one_on_each_shard(clients[0], shards)
        pushers = Pushers(clients, names)
        for number in range(12):
            await pushers.go_on(1 + number % 3)
            uplink_of(cluster.servers[1 + number % (shards - 1)]).abort()
            if number % 4 == 0:
                await cluster.until(lambda s: all(shard.state == "ready" for shard in s.shards))
        await pushers.go_on(3)
        in_step = 3 * min(pushers.done)  # slots; those of the time until the change is everywhere may differ
        await change(*cluster.endpoint, Set(staleness=1.0))
        await pushers.stop()
        found = await values_of(clients[0], names, 3 * max(pushers.done))
        pushers.check(found)
        for values in found:  # the same mean on all shards, but for rounding: they may add in another order
            np.testing.assert_allclose(values[:in_step], found[0][:in_step], rtol=0, atol=1e-6)


async def test_a_step_that_was_decided_while_a_shard_was_away_is_told_to_it_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dead worker is in the step on the shard that knew of the decision: so it is on the other."""
    async with (
        running_cluster(2, failure=FailureSettings(0.05, 30.0)) as cluster,
        clients_and_worker(cluster, 1, staleness=0) as ((a,), hand),
    ):
        names = await make_one_on_each_shard(a, 2)
        step = asyncio.create_task(a.push_pull(dict.fromkeys(names, slot(0))))
        await cluster.until(is_waited_for("hand"))
        shard, back = cluster.servers[1], asyncio.Event()
        hand.end(1, 1, 0, **{names[1]: slot(1)}).add_done_callback(retrieve)
        await until_reported(cluster, hand, shard=1)
        hold_back_uplink(shard, back, monkeypatch)
        uplink_of(shard).abort()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        await hand.end(0, 1, 0, **{names[0]: slot(1)})  # which makes it complete on shard 0
        for connection in hand.connections:
            connection.abort()
        await cluster.until(lambda status: state_of(status, "hand") == "dead")
        assert not step.done()
        back.set()
        await step
        assert await values_of(a, names, 2) == [[0.5, 0.5]] * 2


async def test_nobody_is_blamed_for_a_shard_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = FailureSettings(heartbeat=0.05, dead_after=30.0, hung_after=0.5)
    async with (
        running_cluster(2, failure=failure) as cluster,
        workers(cluster.address, 2, staleness=0) as clients,
    ):
        names = await make_one_on_each_shard(clients[0], 2)
        shard, back = cluster.servers[1], asyncio.Event()
        hold_back_uplink(shard, back, monkeypatch)
        uplink_of(shard).abort()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        steps = [asyncio.create_task(ps.push_pull(dict.fromkeys(names, slot(0)))) for ps in clients]
        await cluster.until(lambda status: any(wait.seconds > 0.8 for wait in all_waits(status)))
        back.set()
        await asyncio.gather(*steps)
        assert await values_of(clients[0], names, 1) == [[1]] * 2
        assert {worker.incarnation for worker in (await cluster.job()).workers} == {1}


async def until_reported(cluster: Cluster, worker: ByHand, shard: int) -> None:
    """Return when the coordinator has heard from a shard that a worker has ended the step there."""
    coordinator = cluster.servers[0]._coordinator
    assert coordinator is not None
    decisions = coordinator._jobs["default"].decisions
    await cluster.until(lambda _: worker.joined.worker in decisions._reports[shard].ended)


# --- who waits for whom


async def test_waits_name_whom_on_which_shard_and_end() -> None:
    async with (
        running_cluster(2, failure=FailureSettings(0.05, 30.0)) as cluster,
        workers(cluster.address, 3, staleness=1) as (a, b, c),
    ):
        await asyncio.gather(*(ps.step() for ps in (a, b, c)))
        await asyncio.gather(a.step(), b.step())
        waiting = [asyncio.create_task(ps.step()) for ps in (a, b)]
        status = await cluster.until(lambda s: {wait.shard for wait in all_waits(s)} == {0, 1})
        for wait in all_waits(status):
            assert (wait.job, wait.what, wait.waiting_for) == ("default", "step 1", ("w2",))
            assert wait.seconds >= 0
        await cluster.until(lambda s: {wait.waiting for wait in all_waits(s)} == {2})
        assert [worker.lag for worker in status.jobs[0].workers] == [0, 0, 2]
        await c.step()
        await asyncio.gather(*waiting)
        await cluster.until(lambda s: not list(all_waits(s)))
        waiting = [asyncio.create_task(ps.step()) for ps in (a, b)]
        await cluster.until(is_waited_for("w2"))
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await asyncio.gather(*waiting)
        await cluster.until(lambda s: not list(all_waits(s)))
