"""Training on hashed features; what is the same for dense ones is in ``test_training``."""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from protocol.messages import Set
from protocol.optimizers import SGD
from protocol.tables import Initial, Uniform
from psserver.membership import FailureSettings
from psworker.asking import change
from psworker.client import Client, connect
from psworker.data import Batch
from psworker.models import LogisticRegression
from tests.cluster import Cluster, put_out, running_cluster
from tests.psworker.learning import (
    CHUNKS,
    FEATURES,
    HELD,
    KEYS,
    TRAINED,
    Array,
    Sparse,
    plan,
    table,
    trainer,
)

ANY = pytest.mark.parametrize("staleness", [0.0, 1.0, math.inf])


async def run(cluster: Cluster, model: Any, source: Sparse, *, name: str = "a", **settings: Any) -> None:
    own = {key: settings.pop(key) for key in ("accumulate", "local_steps", "shuffle") if key in settings}
    async with connect(cluster.address, name=name, plan=plan(), **settings) as client:
        await trainer(client, model, source, **own).run(SGD(0.5))


async def learned(source: Sparse, shards: int = 2, **settings: Any) -> tuple[Array, list[dict[str, float]]]:
    """The weights of all features after training, and the means of the evaluations."""
    async with running_cluster(shards) as cluster:
        await run(cluster, LogisticRegression(source.features, 2), source, staleness=0, **settings)
        async with connect(cluster.address, observe=True) as observer:
            found = await observer.pull({"w": KEYS} if source.hashed else ["w"])
        progress = (await cluster.job()).progress
    assert progress is not None
    means = [{mean.name: mean.value for mean in one.means} for one in progress.evaluations]
    assert [one.examples for one in progress.evaluations] == [HELD] * 2
    return found["w"].reshape(-1), means


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"local_steps": 2}, {"shuffle": "window:3"}])
async def test_hashed_features_are_trained_as_dense_ones(weighted: bool, settings: dict[str, Any]) -> None:
    hashed, hashed_means = await learned(Sparse(weighted=weighted), **settings)
    dense, dense_means = await learned(Sparse(hashed=False, weighted=weighted), **settings)
    assert np.abs(dense).max() > 0.1
    np.testing.assert_allclose(hashed, dense, rtol=1e-4, atol=1e-6)
    for found, expected in zip(hashed_means, dense_means, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def begins_with(keys: Array) -> Array:
    """Which of the table's features these are."""
    found: Array = np.searchsorted(np.sort(KEYS), keys)
    return found


@dataclass
class Named:
    """A model whose rows stay what they began with, which tells them apart, and that counts its rows."""

    client: Client | None = None
    dial: Mapping[int, float] = field(default_factory=dict)
    cluster: Cluster | None = None
    seen: list[tuple[Array, Array]] = field(default_factory=list)  # keys and rows
    per_feature: tuple[str, ...] = ("w",)
    initial: Mapping[str, Initial] = field(default_factory=lambda: {"w": Uniform(1.0)})
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def parameters(self) -> dict[str, Array]:
        return {"w": np.zeros((0, 3), np.float32), "b": np.zeros(1, np.float32)}

    def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
        calls = len(self.seen)
        if calls in self.dial and self.cluster is not None:
            turning = change(*self.cluster.endpoint, Set("default", self.dial[calls]))
            asyncio.run_coroutine_threadsafe(turning, self.loop).result(20)
        assert batch.keys is not None
        self.seen.append((batch.keys, parameters["w"].copy()))
        return {"w": np.zeros_like(parameters["w"]), "b": -np.ones(1, np.float32)}, 1.0

    def check(self, initial: Array) -> None:
        for keys, rows in self.seen:
            np.testing.assert_array_equal(rows, initial[begins_with(keys)])


async def initial_rows(cluster: Cluster) -> Array:
    async with connect(cluster.address, observe=True) as observer:
        found: Array = (await observer.pull({"w": np.sort(KEYS)}))["w"]
    return found


@ANY
@pytest.mark.parametrize("shards", [1, 3])
async def test_each_step_has_the_rows_of_its_own_keys(staleness: float, shards: int) -> None:
    async with running_cluster(shards) as cluster:
        models = [Named(), Named()]
        await asyncio.gather(
            *(
                run(cluster, model, Sparse(), name=name, staleness=staleness, workers=2)
                for model, name in zip(models, "ab", strict=True)
            )
        )
        initial = await initial_rows(cluster)
    assert len(np.unique(initial)) == FEATURES * 3
    assert sum(len(model.seen) for model in models) == 2 * sum(
        math.ceil(len(Sparse().rows(chunk, "train")) / 2) for chunk in range(CHUNKS)
    )
    for model in models:
        model.check(initial)


async def test_it_has_them_while_the_dial_is_turned() -> None:
    async with running_cluster(2, failure=FailureSettings(heartbeat=0.05)) as cluster:
        dial = {2: 0.0, 5: math.inf, 8: 1.0, 11: math.inf, 14: 0.0, 17: math.inf}
        model = Named(dial=dial, cluster=cluster)
        await run(cluster, model, Sparse(), staleness=math.inf)
        model.check(await initial_rows(cluster))
    assert len(model.seen) > 17


@ANY
async def test_a_step_is_one_round_trip(staleness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls are for the beginnings of chunks, one or, where two steps are under way, two, and evaluations."""
    calls: Counter[str] = Counter()
    for method in ("pull", "push_pull"):
        original = getattr(Client, method)

        def counted(self: Client, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            calls[original.__name__] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Client, method, counted)
    async with running_cluster() as cluster:
        model = Named()
        await run(cluster, model, Sparse(), staleness=staleness)
    starts = 2 if staleness == math.inf else 1
    assert calls["push_pull"] == len(model.seen)
    assert calls["pull"] == 2 * CHUNKS * starts  # this model does not evaluate


@ANY
async def test_of_hashed_features_each_row_is_applied_once_too(staleness: float) -> None:
    class Counting(Named):
        def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
            if len(self.seen) in (1, 6):
                out = put_out(cluster, client)
                asyncio.run_coroutine_threadsafe(out, self.loop).result(20)
            self.seen.append((KEYS, KEYS))
            occurrences = (batch.x > 0).sum(axis=0).astype(np.float32)
            return {"w": -np.repeat(occurrences, 3).reshape(-1, 3), "b": np.zeros(1, np.float32)}, 1.0

    async with running_cluster() as cluster:
        async with connect(cluster.address, name="a", plan=plan(), staleness=staleness) as client:
            await trainer(client, Counting(initial={}), Sparse()).run(SGD(1.0))
            assert client.joined is not None
            assert client.joined.incarnation == 3
        async with connect(cluster.address, observe=True) as observer:
            applied = (await observer.pull({"w": KEYS}))["w"]
        progress = (await cluster.job()).progress
    assert progress is not None
    assert progress.train_examples == 2 * TRAINED
    x, _ = table()
    trained = np.array([row for chunk in range(CHUNKS) for row in Sparse().rows(chunk, "train")])
    expected = 2 * (x[trained] > 0).sum(axis=0)
    np.testing.assert_array_equal(applied, np.repeat(expected, 3).reshape(-1, 3))


async def test_a_chunk_is_evaluated_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the rows of a chunk's features need not be had at once; the means are the same."""
    _, expected = await learned(Sparse(weighted=True), shards=1)
    monkeypatch.setattr("psworker.training._EVALUATED", 2)
    _, found = await learned(Sparse(weighted=True), shards=1)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@ANY
@pytest.mark.parametrize("seconds", [0.0, 0.01])
async def test_single_examples_take_no_thread_unless_they_take_long(
    staleness: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a gradient takes is told by a clock of the test's own."""
    clock = [0.0]
    monkeypatch.setattr("psworker.steps.time.perf_counter", lambda: clock[0])
    threads: list[str] = []

    class Telling(Named):
        def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
            threads.append(threading.current_thread().name)
            clock[0] += seconds
            return super().gradients(parameters, batch)

    async with running_cluster() as cluster:
        async with connect(cluster.address, name="a", plan=plan(), staleness=staleness) as client:
            model = Telling()
            await trainer(client, model, Sparse(), batch_size=1).run(SGD(0.5))
        model.check(await initial_rows(cluster))
        progress = (await cluster.job()).progress
    assert progress is not None
    assert progress.train_examples == len(threads) == 2 * TRAINED
    in_a_thread = [name.startswith("compute") for name in threads]
    assert in_a_thread == ([True] * len(threads) if seconds else [True] + [False] * (len(threads) - 1))


async def test_the_loss_is_a_mean_by_weight() -> None:
    class Lossy(Named):
        def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
            assert batch.weight is not None
            gradients, _ = super().gradients(parameters, batch)
            return gradients, float(np.average(batch.weight, weights=batch.weight))

    source = Sparse(weighted=True, chunks=1)
    async with running_cluster() as cluster:
        async with connect(cluster.address, name="a", plan=plan(1, chunks=1)) as client:
            await trainer(client, Lossy(), source).run(SGD(0.5))
        progress = (await cluster.job()).progress
    weights = source.read(0, "train").weight
    assert progress is not None
    assert weights is not None
    assert progress.train_loss == pytest.approx(float(np.average(weights, weights=weights)))
