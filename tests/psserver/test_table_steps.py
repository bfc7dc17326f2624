"""Tables in synchronous steps, with delay compensation, admission and expiry, against NumPy."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import PSError
from protocol.messages import Set
from protocol.optimizers import DCSGD, SGD, Adagrad, Add
from psworker import SparseGradient
from psworker.asking import change
from psworker.client import Client, connect
from tests.cluster import holds, put_out, running_cluster, workers
from tests.psserver.test_metrics import samples

Array: TypeAlias = npt.NDArray[Any]

DIM = 3
DENSE = 40_000  # in two blocks where there are shards for it
KEYS = np.array([0, 1, 2, 1 << 63, (1 << 64) - 1, *range(100, 130)], np.uint64)
FEW = KEYS[:2]  # not on all shards
NAMES = ("emb", "other", "w")


@dataclass(frozen=True)
class Pushed:
    """What one push carries: gradients of rows, repeated keys and all, and of a dense tensor."""

    weight: float
    gradients: dict[str, Any] = field(default_factory=dict)


@dataclass
class Oracle:
    """The same job in one process. The rows of ``emb`` have Adagrad, of ``other`` SGD, and ``w`` has SGD."""

    emb: Array = field(default_factory=lambda: np.zeros((KEYS.size, DIM)))
    squares: Array = field(default_factory=lambda: np.full((KEYS.size, DIM), 0.1))
    other: Array = field(default_factory=lambda: np.zeros((KEYS.size, DIM)))
    w: Array = field(default_factory=lambda: np.zeros(DENSE))

    def step(self, pushes: Sequence[Pushed]) -> None:
        emb = self._mean(pushes, "emb")
        self.squares += emb**2
        self.emb -= 0.1 * emb / (np.sqrt(self.squares) + 1e-10)
        self.other -= 0.5 * self._mean(pushes, "other")
        self.w -= 0.5 * self._mean(pushes, "w")

    def _mean(self, pushes: Sequence[Pushed], name: str) -> Array:
        total: Array = np.zeros_like(getattr(self, name))
        weights = 0.0
        for push in pushes:
            if name in push.gradients:
                total += push.weight * spread(push.gradients[name])
                weights += push.weight
        return total / weights if weights else total

    def values(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in NAMES}


def spread(gradient: Any) -> Array:
    """The gradients of all of ``KEYS``; a dense one as it is."""
    if not isinstance(gradient, SparseGradient):
        return np.asarray(gradient, np.float64)
    found = np.zeros((KEYS.size, DIM))
    places = {int(key): place for place, key in enumerate(KEYS)}
    np.add.at(found, [places[int(key)] for key in np.asarray(gradient.keys)], np.asarray(gradient.values))
    return found


async def make(client: Client, adagrad: float = 0.1) -> None:
    await client.create_sparse("emb", DIM, Adagrad(lr=adagrad, initial=0.1, eps=1e-10))
    await client.create_sparse("other", DIM, SGD(0.5))
    await client.create("w", np.zeros(DENSE, np.float32), SGD(0.5))


def rows_of(rng: np.random.Generator, keys: Array) -> SparseGradient:
    return SparseGradient(keys, rng.normal(size=(keys.size, DIM)).astype(np.float32))


def drawn(rng: np.random.Generator) -> Pushed:
    """A push of some of the tensors: many rows, few rows or none, with repeated keys."""
    gradients: dict[str, Any] = {}
    for name in ("emb", "other"):
        if rng.random() < 0.7:
            keys = [KEYS, FEW, KEYS[:0]][rng.integers(3)]
            keys = rng.choice(keys, rng.integers(1, 50)) if keys.size else keys
            gradients[name] = rows_of(rng, keys)
    if rng.random() < 0.5:
        gradients["w"] = rng.normal(size=DENSE).astype(np.float32)
    return Pushed(float(rng.integers(1, 100)), gradients)


WANTED: Mapping[str, Any] = {"emb": KEYS, "other": KEYS, "w": None}


async def ended(client: Client, pushes: Sequence[Pushed]) -> dict[str, Array]:
    """Push all of it, the last with the end of the step."""
    for one in pushes[:-1]:
        await client.push(one.gradients, weight=one.weight)
    last = pushes[-1]
    return await client.push_pull(last.gradients, WANTED, weight=last.weight)


def assert_close(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("seed", range(3))
async def test_a_step_is_the_weighted_mean_of_all_that_was_pushed(shards: int, seed: int) -> None:
    """Rows that one worker alone has, no rows on a shard, several pushes in a step, or nothing at all."""
    rng = np.random.default_rng(seed)
    steps = [[[drawn(rng) for _ in range(rng.integers(1, 4))] for _ in range(3)] for _ in range(5)]
    oracle = Oracle()
    async with running_cluster(shards) as cluster, workers(cluster.address, 3, staleness=0) as clients:
        await make(clients[0])
        for step in steps:
            found = await asyncio.gather(
                *(ended(client, pushes) for client, pushes in zip(clients, step, strict=True))
            )
            oracle.step([push for pushes in step for push in pushes])
            for one in found:
                assert_close(one, oracle.values())


async def test_what_a_worker_has_pushed_into_a_step_that_it_does_not_end_counts_on_no_shard() -> None:
    rng = np.random.default_rng(5)
    pushes = [[Pushed(3.0, {"emb": rows_of(rng, KEYS), "other": rows_of(rng, KEYS)})] for _ in range(3)]
    oracle = Oracle()
    async with running_cluster(3) as cluster, workers(cluster.address, 3, staleness=0) as (a, b, gone):
        await make(a)
        await gone.push(pushes[2][0].gradients, weight=pushes[2][0].weight)
        waiting = [
            asyncio.ensure_future(ended(client, p)) for client, p in zip((a, b), pushes[:2], strict=True)
        ]
        await put_out(cluster, gone)
        found = await asyncio.gather(*waiting)
        oracle.step([push for one in pushes[:2] for push in one])
        for one in found:
            assert_close(one, oracle.values())
        with suppress(PSError):
            await gone.pull("w")


@pytest.mark.parametrize("shards", [1, 3])
async def test_shares_of_a_step_that_is_kept_no_longer_are_applied_one_by_one(shards: int) -> None:
    rng = np.random.default_rng(7)
    first, second, third = (rows_of(rng, keys) for keys in (KEYS, FEW, KEYS[5:]))
    async with running_cluster(shards) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        table = await a.create_sparse("emb", DIM, SGD(1.0))
        await a.push({"emb": first}, weight=2.0)
        await b.push({"emb": second}, weight=5.0)
        waiting = asyncio.ensure_future(a.push_pull({"emb": third}, {"emb": KEYS}, weight=6.0))
        await cluster.until(lambda status: any(job.waits for job in status.jobs))
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await waiting
        await b.push_pull({"emb": second}, {"emb": KEYS})
        # The share of a worker is the mean of what it has pushed; b's second push came when none was kept.
        expected = (2 * spread(first) + 6 * spread(third)) / 8 + 2 * spread(second)
        found = await table.pull(KEYS)
        np.testing.assert_allclose(found, -expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 3])
async def test_deltas_are_summed_whatever_their_weights(shards: int) -> None:
    rng = np.random.default_rng(9)
    rows = [rows_of(rng, keys) for keys in (KEYS, FEW, KEYS[5:])]
    dense = [rng.normal(size=DENSE) for _ in rows]
    counts = [np.array([1, 2], np.int64), np.array([3, -4], np.int64), np.array([1 << 60, 5], np.int64)]
    names = {"emb": KEYS, "w": None, "n": None}
    async with running_cluster(shards) as cluster, workers(cluster.address, 3, staleness=0) as clients:
        await clients[0].create_sparse("emb", DIM, Add())
        await clients[0].create("w", np.zeros(DENSE), Add())
        await clients[0].create("n", np.zeros(2, np.int64), Add())
        for step in (1, 2):
            for client, delta in zip(clients, dense, strict=True):
                await client.push({"w": delta}, weight=7.0)  # several pushes in a step are added, too
            found = await asyncio.gather(
                *(
                    client.push_pull({"emb": rows[i], "w": dense[i], "n": counts[i]}, names, weight=1.0 + i)
                    for i, client in enumerate(clients)
                )
            )
            for one in found:
                expected = step * sum(map(spread, rows))
                np.testing.assert_allclose(one["emb"], expected, rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(one["w"], 2 * step * sum(dense), rtol=1e-12, atol=1e-12)
                np.testing.assert_array_equal(one["n"], step * sum(counts))


async def test_shares_of_deltas_are_summed_when_steps_are_kept_no_longer() -> None:
    async with running_cluster(2) as cluster, workers(cluster.address, 2, staleness=0) as (a, b):
        await a.create("n", np.zeros(2, np.int64), Add())
        await a.push({"n": [1, 10]}, weight=2.0)
        await b.push({"n": [100, 1000]}, weight=5.0)
        waiting = asyncio.ensure_future(a.push_pull({"n": [2, 20]}, weight=6.0))
        await cluster.until(lambda status: any(job.waits for job in status.jobs))
        await change(*cluster.endpoint, Set(staleness=math.inf))
        await waiting
        np.testing.assert_array_equal((await b.push_pull({"n": [0, 0]}))["n"], [103, 1030])


@pytest.mark.parametrize("shards", [1, 2])
async def test_delay_is_compensated_by_what_each_worker_had_read(shards: int) -> None:
    """p <- p - lr (g + lam g g (p - q)), q being what this worker had read last."""
    rng = np.random.default_rng(11)
    lr, lam = 0.1, 0.7
    rows, dense = np.zeros((KEYS.size, DIM)), np.zeros(DENSE)
    read: list[tuple[Array, Array]] = [(rows, dense), (rows, dense)]
    async with running_cluster(shards) as cluster, workers(cluster.address, 2) as clients:
        await clients[0].create_sparse("emb", DIM, DCSGD(lr=lr, lam=lam))
        await clients[0].create("w", np.zeros(DENSE, np.float32), DCSGD(lr=lr, lam=lam))
        for client in clients:
            await client.pull({"emb": KEYS, "w": None})
        for worker in [0, 1, 1, 0, 0, 1, 0, 1]:
            order = rng.permutation(KEYS.size)
            some = order[: rng.integers(1, KEYS.size)]
            g, d = rng.normal(size=(some.size, DIM)), rng.normal(size=DENSE)
            q, e = read[worker]
            rows = rows.copy()
            rows[some] -= lr * (g + lam * g * g * (rows[some] - q[some]))
            dense = dense - lr * (d + lam * d * d * (dense - e))
            gradients: dict[str, Any] = {
                "emb": SparseGradient(KEYS[some], g.astype(np.float32)),
                "w": d.astype(np.float32),
            }
            if rng.random() < 0.5:
                await clients[worker].push(gradients)
            else:
                found = await clients[worker].push_pull(gradients, {"emb": KEYS[order], "w": None})
                read[worker] = rows, dense
                np.testing.assert_allclose(found["emb"], rows[order], rtol=1e-4, atol=1e-5)
        found = await clients[0].pull({"emb": KEYS, "w": None})
        np.testing.assert_allclose(found["emb"], rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["w"], dense, rtol=1e-4, atol=1e-5)


# --- admission, expiry, capacity


async def test_keys_get_rows_when_they_have_been_in_enough_pushes() -> None:
    async with running_cluster() as cluster, connect(cluster.address, "job") as client:
        table = await client.create_sparse("emb", DIM, Add(), admit_after=3)
        ones = np.ones((2, DIM), np.float32)
        for _ in range(2):
            assert not (await table.push_pull(KEYS[[0, 0]], ones)).any()  # twice in one push is once
        found = samples(cluster.servers[0])
        assert found["psserver_sparse_rows", "job", "emb"] == 0
        assert found["psserver_sparse_refused_keys_total", "job"] == 2
        assert (await table.push_pull(KEYS[:2], ones) == [[1], [0]]).all()
        found = samples(cluster.servers[0])
        assert found["psserver_sparse_rows", "job", "emb"] == 1
        assert found["psserver_sparse_refused_keys_total", "job"] == 3


async def test_rows_that_are_neither_pushed_nor_pulled_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_cluster() as cluster, connect(cluster.address, "job") as client:
        shard, now = cluster.servers[0]._shard, 1000.0
        monkeypatch.setattr(shard, "_clock", lambda: now)
        monkeypatch.setattr(shard._answers, "_clock", lambda: now)
        table = await client.create_sparse("emb", DIM, Add(), expire_after=60.0)
        ones = np.ones((3, DIM), np.float32)
        await table.push(KEYS[:3], ones)
        now += 50.0
        await table.push(KEYS[:1], ones[:1])
        await table.pull(KEYS[1:2])
        now += 50.0
        shard.drop_rows()
        await holds(lambda: shard.load().rows == 2)
        assert (await table.pull(KEYS[:3]) == [[2], [1], [0]]).all()
        found = samples(cluster.servers[0])
        assert found["psserver_sparse_rows", "job", "emb"] == 2
        assert found["psserver_sparse_dropped_rows_total", "job"] == 1
        now += 61.0
        shard.drop_rows()
        await holds(lambda: shard.load().rows == 0)
        assert not (await table.pull(KEYS[:3])).any()
        assert samples(cluster.servers[0])["psserver_sparse_dropped_rows_total", "job"] == 3


async def test_rows_beyond_the_capacity_of_all_shards_are_dropped() -> None:
    async with running_cluster(2) as cluster, connect(cluster.address, "job") as client:
        table = await client.create_sparse("emb", DIM, Add(), capacity=200)
        keys = np.arange(1000, dtype=np.uint64)
        ones = np.ones((1000, DIM), np.float32)
        await table.push(keys, ones)
        await table.push(keys[:50], ones[:50])
        for server in cluster.servers:
            server._shard.drop_rows()
        await holds(lambda: all(server._shard.load().rows <= 100 for server in cluster.servers))
        rows = await table.pull(keys)
        assert (rows[:50] == 2).all()
        assert 180 <= np.count_nonzero(rows[:, 0]) <= 200
        dropped = sum(samples(one)["psserver_sparse_dropped_rows_total", "job"] for one in cluster.servers)
        assert dropped == 1000 - np.count_nonzero(rows[:, 0])
