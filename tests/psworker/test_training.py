import asyncio
import math
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import Fenced, NotFinite, PSError
from protocol.messages import Done, Plan, Set
from protocol.optimizers import SGD
from protocol.status import Evaluation, Progress
from psserver.membership import FailureSettings
from psworker.asking import change, fetch_status
from psworker.client import Client, connect
from psworker.data import Batch, Source
from psworker.data.split import Split
from psworker.errors import DataError, ModelError, TrainingDiverged
from psworker.job import TrainSettings
from psworker.metrics import WorkerMetrics
from psworker.training import Trainer
from tests.cluster import EAGER, Cluster, DurableCluster, durable_cluster, put_out, running_cluster
from tests.faults.conditions import WAYS
from tests.faults.proxy import Proxy
from tests.faults.servers import proxied_cluster

Array = npt.NDArray[Any]

CHUNKS, ROWS, BATCH = 5, 10, 4
HELD_OUT = 5  # each fifth row
PARTS = 3
LR = 0.25
EVERYBODY = frozenset(range(CHUNKS * ROWS))
HELD = frozenset(row for row in EVERYBODY if row % HELD_OUT == 0)


@dataclass
class Rows:
    """A source whose rows are their own numbers; chunks in ``broken`` cannot be read."""

    broken: bool = False
    features: int = 2
    classes: int | None = None
    chunks: int = CHUNKS
    hashed: bool = False
    wants_survey: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)

    def skipped_in(self, chunk: int, split: Split, part: int | None = None) -> Mapping[str, int]:
        return {}

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        if self.broken:
            raise DataError("rows", 7, "is broken")
        rows = np.arange(chunk * ROWS, (chunk + 1) * ROWS)
        rows = rows[(rows % HELD_OUT == 0) == (split == "holdout")]
        if part is not None:
            rows = rows[rows % PARTS == part]
        x = np.stack([rows, np.ones(len(rows))], axis=1).astype(np.float32)
        return Batch(x, rows.astype(np.float32))

    def statistics(self, chunk: int) -> dict[str, npt.NDArray[np.float64]]:
        return {}

    def informed(self, totals: Mapping[str, Array]) -> Self:
        return self


@dataclass(frozen=True)
class Call:
    """One call of ``gradients``: at which step, on which parameters and rows."""

    clock: int
    parameters: Array
    rows: tuple[int, ...]


def slope(parameters: Array, rows: Sequence[int]) -> Array:
    """The gradient of a quadratic that depends on parameters and rows."""
    found: Array = parameters.astype(np.float64) - np.array([np.mean(rows) / 10.0, 1.0])
    return found


@dataclass
class Recorder:
    """A model that notes what it is given."""

    client: Client
    before: Callable[[int], None] = lambda _: None  # called with the number of calls so far
    calls: list[Call] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)

    def parameters(self) -> dict[str, Array]:
        return {"w": np.zeros(2, np.float32)}

    def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
        self.before(len(self.calls))
        rows = tuple(int(row) for row in batch.y)
        self.calls.append(Call(self.client.clock, parameters["w"].copy(), rows))
        return {"w": slope(parameters["w"], rows).astype(np.float32)}, float(np.mean(rows))

    def evaluate(self, parameters: Mapping[str, Array], batch: Batch) -> dict[str, float]:
        self.evaluated += [int(row) for row in batch.y]
        return {"loss": float(np.mean(batch.y)), "squares": float(np.mean(batch.y**2))}


class Gradients:
    """A model that cannot evaluate."""

    def __init__(self, client: Client) -> None:
        self._recorder = Recorder(client)
        self.parameters = self._recorder.parameters
        self.gradients = self._recorder.gradients


def plan(epochs: int = 2, every: int = 1) -> Plan:
    return Plan("text", CHUNKS, epochs, every, 0)


@asynccontextmanager
async def joined(cluster: Cluster, name: str, plan_: Plan, **settings: Any) -> AsyncIterator[Client]:
    async with connect(cluster.address, name=name, plan=plan_, **settings) as client:
        yield client


def trainer(
    client: Client,
    model: Any,
    source: Source | None = None,
    metrics: WorkerMetrics | None = None,
    **settings: Any,
) -> Trainer:
    train = TrainSettings(**{"batch_size": BATCH} | settings)
    return Trainer(client, model, source or Rows(), train, seed=0, metrics=metrics or WorkerMetrics())


async def work(
    cluster: Cluster,
    name: str,
    plan_: Plan,
    *,
    source: Rows | None = None,
    before: Callable[[int], None] = lambda _: None,
    **settings: Any,
) -> Recorder:
    async with joined(cluster, name, plan_, **settings) as client:
        model = Recorder(client, before)
        await trainer(client, model, source).run(SGD(LR))
        return model


async def progress(cluster: Cluster) -> Progress:
    found = (await cluster.job()).progress
    assert found is not None
    return found


def rows_seen(models: Sequence[Recorder]) -> Counter[int]:
    return Counter(row for model in models for call in model.calls for row in call.rows)


BOTH = pytest.mark.parametrize("staleness", [0.0, math.inf])
ANY = pytest.mark.parametrize("staleness", [0.0, 1.0, math.inf])


@ANY
async def test_three_workers_see_each_row_of_each_epoch_once(staleness: float) -> None:
    async with running_cluster(2) as cluster:
        settings: dict[str, Any] = {"workers": 3, "staleness": staleness}
        models = await asyncio.gather(*(work(cluster, name, plan(epochs=3), **settings) for name in "abc"))
        assert rows_seen(models) == Counter(dict.fromkeys(EVERYBODY - HELD, 3))
        assert Counter(row for model in models for row in model.evaluated) == Counter(dict.fromkeys(HELD, 3))
        done = await progress(cluster)
        assert (done.phase, done.chunks_done, done.train_examples) == (
            "finished",
            15,
            3 * len(EVERYBODY - HELD),
        )
        assert {worker.state for worker in (await cluster.job()).workers} == {"left"}


@BOTH
async def test_rows_of_a_part_are_seen_by_one_worker(staleness: float) -> None:
    async with running_cluster() as cluster:
        settings: dict[str, Any] = {"workers": PARTS, "staleness": staleness}
        cut = Plan("text", CHUNKS, 3, 2, 0, "hash:user", PARTS)
        models = await asyncio.gather(*(work(cluster, name, cut, **settings) for name in "abc"))
        assert rows_seen(models) == Counter(dict.fromkeys(EVERYBODY - HELD, 3))
        assert Counter(row for model in models for row in model.evaluated) == Counter(dict.fromkeys(HELD, 2))
        parts = [{row % PARTS for row in rows_seen([model])} for model in models]
        assert sorted(parts, key=min) == [{part} for part in range(PARTS)]
        done = await progress(cluster)
        assert (done.phase, done.chunks_done) == ("finished", CHUNKS * PARTS * 3)
        assert done.train_examples == 3 * len(EVERYBODY - HELD)


@BOTH
async def test_evaluations_are_means_over_all_held_out_rows(staleness: float) -> None:
    async with running_cluster() as cluster:
        settings: dict[str, Any] = {"workers": 2, "staleness": staleness}
        await asyncio.gather(*(work(cluster, name, plan(epochs=3, every=2), **settings) for name in "ab"))
        evaluations = (await progress(cluster)).evaluations
        assert [evaluation.epoch for evaluation in evaluations] == [2, 3]
        for evaluation in evaluations:
            assert_mean(evaluation, "loss", np.mean(list(HELD)))
            assert_mean(evaluation, "squares", np.mean(np.square(list(HELD))))


def assert_mean(evaluation: Evaluation, name: str, expected: Any) -> None:
    (mean,) = (mean.value for mean in evaluation.means if mean.name == name)
    assert evaluation.examples == len(HELD)
    assert mean == pytest.approx(float(expected))


async def test_synchronous_training_is_one_process_on_the_same_batches() -> None:
    """Guarantee 6; in it, that each gradient is computed on the parameters after all steps before."""
    async with running_cluster(2) as cluster:
        settings: dict[str, Any] = {"workers": 3, "staleness": 0.0}
        models = await asyncio.gather(*(work(cluster, name, plan(epochs=3), **settings) for name in "abc"))
        async with connect(cluster.address, observe=True) as observer:
            final = await observer.pull("w")
    assert_one_process(models, final)


async def test_synchronous_training_under_cuts_is_one_process_too() -> None:
    async with proxied_cluster(2) as proxied:
        cluster = Cluster(proxied.servers, proxied.address)
        loop, rng = asyncio.get_running_loop(), random.Random(5)

        def cut(calls: int) -> None:
            proxy = rng.choice(proxied.proxies)
            loop.call_soon_threadsafe(proxy.cut_after, rng.randint(1, 300), rng.choice(WAYS))

        settings: dict[str, Any] = {"workers": 3, "staleness": 0.0, "before": cut}
        models = await asyncio.gather(*(work(cluster, name, plan(epochs=3), **settings) for name in "abc"))
        assert rows_seen(models) == Counter(dict.fromkeys(EVERYBODY - HELD, 3))
        async with connect(proxied.direct, observe=True) as observer:
            final = await observer.pull("w")
        assert sum(proxy.seen.cuts for proxy in proxied.proxies) > 10
    assert_one_process(models, final)


def assert_one_process(models: Sequence[Recorder], final: Array) -> None:
    """All was as if one process had taken the union of each step's mini-batches."""
    steps: dict[int, list[Call]] = {}
    for model in models:
        clocks = [call.clock for call in model.calls]
        assert clocks == sorted(set(clocks))  # one mini-batch a step
        for call in model.calls:
            steps.setdefault(call.clock, []).append(call)
    parameters = np.zeros(2)
    for clock in sorted(steps):
        for call in steps[clock]:
            np.testing.assert_allclose(call.parameters, parameters, rtol=1e-5, atol=1e-6)
        gradients = [slope(parameters, call.rows) for call in steps[clock]]
        weights = [len(call.rows) for call in steps[clock]]
        parameters = parameters - LR * np.average(gradients, axis=0, weights=weights)
    np.testing.assert_allclose(final, parameters, rtol=1e-5, atol=1e-6)


@BOTH
async def test_a_run_is_repeatable(staleness: float) -> None:
    async def once() -> list[Call]:
        async with running_cluster() as cluster:
            return (await work(cluster, "a", plan(), staleness=staleness)).calls

    first, again = await once(), await once()
    assert [call.rows for call in first] == [call.rows for call in again]
    if staleness == 0:
        np.testing.assert_array_equal([c.parameters for c in first], [c.parameters for c in again])


# --- one worker fails, the others finish


class BrokenModelError(Exception):
    pass


def fail_at(number: int) -> Callable[[int], None]:
    def before(calls: int) -> None:
        if calls == number:
            raise BrokenModelError

    return before


@BOTH
@pytest.mark.parametrize("number", [0, 1, 3])
async def test_the_work_of_a_model_that_raises_is_done_by_others(staleness: float, number: int) -> None:
    async with running_cluster(2) as cluster:
        settings: dict[str, Any] = {"workers": 3, "staleness": staleness}
        bad, *good = await asyncio.gather(
            work(cluster, "bad", plan(), before=fail_at(number), **settings),
            *(work(cluster, name, plan(), **settings) for name in "ab"),
            return_exceptions=True,
        )
        assert isinstance(bad, ModelError)
        assert isinstance(bad.__cause__, BrokenModelError)
        await assert_finished_without(cluster, "bad", good)


async def assert_finished_without(cluster: Cluster, name: str, good: Sequence[Any]) -> None:
    """Each chunk is counted once: what the one that failed was in the middle of, others have done."""
    assert all(isinstance(model, Recorder) for model in good)
    done = await progress(cluster)
    assert (done.phase, done.chunks_done, done.train_examples) == ("finished", 10, 2 * len(EVERYBODY - HELD))
    assert {worker.name: worker.state for worker in (await cluster.job()).workers}[name] == "left"


@BOTH
async def test_data_that_cannot_be_read_comes_out_and_others_do_the_work(staleness: float) -> None:
    async with running_cluster() as cluster:
        settings: dict[str, Any] = {"workers": 2, "staleness": staleness}
        source = Rows()

        def break_it(calls: int) -> None:
            source.broken = calls >= 1

        bad, good = await asyncio.gather(
            work(cluster, "bad", plan(), source=source, before=break_it, **settings),
            work(cluster, "good", plan(), **settings),
            return_exceptions=True,
        )
        assert isinstance(good, Recorder)
        if not isinstance(bad, Recorder):  # unless the good one was so fast that no chunk was left to read
            assert isinstance(bad, DataError)
            assert "rows, line 7: is broken" in str(bad)
        await assert_finished_without(cluster, "bad", [good])


async def test_data_that_cannot_be_read_at_all() -> None:
    async with running_cluster() as cluster:
        with pytest.raises(DataError):
            await work(cluster, "a", plan(), source=Rows(broken=True))
        assert (await progress(cluster)).chunks_leased == 0


@BOTH
async def test_stopping_in_the_middle_of_a_chunk_leaves_the_rest_to_others(staleness: float) -> None:
    async with running_cluster() as cluster:
        settings: dict[str, Any] = {"workers": 2, "staleness": staleness}

        async def stop_early() -> Recorder:
            async with joined(cluster, "early", plan(), **settings) as client:
                model = Recorder(client)
                mine = trainer(client, model)
                model.before = lambda calls: mine.stop()
                await mine.run(SGD(LR))
                return model

        early, good = await asyncio.gather(stop_early(), work(cluster, "good", plan(), **settings))
        assert len(early.calls) == 1
        await assert_finished_without(cluster, "early", [good])
        assert set(rows_seen([good])) == EVERYBODY - HELD


async def test_stopping_before_the_beginning() -> None:
    async with running_cluster() as cluster, joined(cluster, "a", plan()) as client:
        model = Recorder(client)
        mine = trainer(client, model)
        mine.stop()
        await mine.run(SGD(LR))
        assert model.calls == []


async def test_parameters_that_explode_are_an_error() -> None:
    async with running_cluster() as cluster, joined(cluster, "a", plan(epochs=500, every=0)) as client:
        with pytest.raises(TrainingDiverged) as caught:
            await trainer(client, Recorder(client)).run(SGD(1e30))
        assert isinstance(caught.value.__cause__, NotFinite)


@BOTH
async def test_a_server_that_goes_is_an_error_and_no_hang(staleness: float) -> None:
    async with running_cluster(2) as cluster:
        reached, goes_on = threading.Event(), threading.Event()

        def wait(calls: int) -> None:
            if calls == 2:
                reached.set()
                goes_on.wait()

        settings: dict[str, Any] = {"staleness": staleness, "reconnect_for": 0.1}
        task = asyncio.create_task(work(cluster, "a", plan(), before=wait, **settings))
        await asyncio.to_thread(reached.wait)
        for server in cluster.servers:
            await server.stop()
        goes_on.set()
        with pytest.raises(PSError):
            await task


# --- workers that are out


def put_out_at(cluster: Cluster, client: Client, *calls: int) -> Callable[[int], None]:
    """Put the worker out before it computes these gradients; to be called in its thread."""
    loop = asyncio.get_running_loop()

    def before(number: int) -> None:
        if number in calls:
            asyncio.run_coroutine_threadsafe(put_out(cluster, client), loop).result(20)

    return before


async def work_and_be_put_out(cluster: Cluster, name: str, *calls: int, **settings: Any) -> Recorder:
    async with joined(cluster, name, plan(), **settings) as client:
        model = Recorder(client, put_out_at(cluster, client, *calls))
        await trainer(client, model).run(SGD(LR))
        return model


async def assert_no_gap(cluster: Cluster, incarnations: dict[str, int]) -> None:
    """Every chunk of every epoch is counted once, though it was begun more than once."""
    done = await progress(cluster)
    assert (done.phase, done.chunks_done, done.train_examples) == ("finished", 10, 2 * len(EVERYBODY - HELD))
    assert [evaluation.examples for evaluation in done.evaluations] == [len(HELD)] * 2
    assert {w.name: w.incarnation for w in (await cluster.job()).workers} == incarnations


@ANY
@pytest.mark.parametrize("calls", [(0,), (1,), (3,), (2, 4, 7)])
async def test_a_worker_that_is_out_joins_again_and_goes_on(staleness: float, calls: tuple[int, ...]) -> None:
    async with running_cluster(2) as cluster:
        model = await work_and_be_put_out(cluster, "a", *calls, staleness=staleness)
        assert set(rows_seen([model])) == EVERYBODY - HELD
        assert min(rows_seen([model]).values()) >= 2
        await assert_no_gap(cluster, {"a": 1 + len(calls)})


@ANY
async def test_others_do_the_chunks_of_a_worker_that_is_out(staleness: float) -> None:
    async with running_cluster(2) as cluster:
        settings: dict[str, Any] = {"workers": 2, "staleness": staleness}
        out, good = await asyncio.gather(
            work_and_be_put_out(cluster, "out", 1, **settings), work(cluster, "good", plan(), **settings)
        )
        assert min(rows_seen([out, good]).values()) >= 2
        await assert_no_gap(cluster, {"out": 2, "good": 1})


async def test_a_worker_that_is_out_before_it_has_begun() -> None:
    async with running_cluster(2) as cluster, joined(cluster, "a", plan()) as client:
        await put_out(cluster, client)
        await trainer(client, Recorder(client)).run(SGD(LR))
        await assert_no_gap(cluster, {"a": 2})


@ANY
async def test_a_worker_that_was_silent_finds_itself_out_and_goes_on(staleness: float) -> None:
    """It computes on while the network is away; nothing that its former self began is counted twice."""
    async with running_cluster(2, failure=EAGER) as cluster, Proxy(cluster.address) as proxy:
        silent, heard = threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def before(calls: int) -> None:
            if calls == 1:
                loop.call_soon_threadsafe(proxy.stall)
                silent.set()
                assert heard.wait(20)

        behind = Cluster(cluster.servers, proxy.address)
        working = asyncio.create_task(work(behind, "a", plan(), before=before, staleness=staleness))
        await asyncio.to_thread(silent.wait, 20)
        await cluster.until(lambda status: status.jobs[0].workers[0].state == "dead")
        proxy.heal()
        heard.set()
        await working
        await assert_no_gap(cluster, {"a": 2})


# --- chunks of which others have done a part


@dataclass
class Counting:
    """A model whose parameters count, with a learning rate of 1, how often each row was applied."""

    before: Callable[[int], None] = lambda _: None  # called with the number of calls so far
    calls: int = 0

    def parameters(self) -> dict[str, Array]:
        return {"w": np.zeros(CHUNKS * ROWS, np.float32)}

    def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
        self.before(self.calls)
        self.calls += 1
        gradient = np.zeros(CHUNKS * ROWS, np.float32)
        gradient[batch.y.astype(int)] = -1.0
        return {"w": gradient}, 0.0

    def evaluate(self, parameters: Mapping[str, Array], batch: Batch) -> dict[str, float]:
        return {"loss": 0.0}


async def count_and_be_put_out(cluster: Cluster, name: str, *calls: int, **settings: Any) -> None:
    async with joined(cluster, name, plan(), **settings) as client:
        await trainer(client, Counting(put_out_at(cluster, client, *calls))).run(SGD(1.0))


async def assert_each_row_was_applied_once_an_epoch(cluster: Cluster) -> None:
    async with connect(cluster.address, observe=True) as observer:
        applied = await observer.pull("w")
    np.testing.assert_array_equal(applied, [2.0 * (row not in HELD) for row in range(CHUNKS * ROWS)])


@ANY
@pytest.mark.parametrize("calls", [(), (1,), (2, 5, 8), (1, 4, 7, 10, 13)])
async def test_what_was_applied_of_a_chunk_is_not_applied_again(
    staleness: float, calls: tuple[int, ...]
) -> None:
    """A worker is put out in the middle of chunks; what it has pushed by then is applied or not."""
    async with running_cluster() as cluster:
        await count_and_be_put_out(cluster, "a", *calls, staleness=staleness)
        await assert_each_row_was_applied_once_an_epoch(cluster)
        await assert_no_gap(cluster, {"a": 1 + len(calls)})


@pytest.mark.parametrize("staleness", [1.0, math.inf])
async def test_nor_by_another(staleness: float) -> None:
    async with running_cluster() as cluster:
        settings: dict[str, Any] = {"workers": 2, "staleness": staleness}
        await asyncio.gather(
            count_and_be_put_out(cluster, "out", 1, **settings),
            count_and_be_put_out(cluster, "good", **settings),
        )
        await assert_each_row_was_applied_once_an_epoch(cluster)
        await assert_no_gap(cluster, {"out": 2, "good": 1})


@ANY
async def test_whoever_goes_on_with_a_chunk_computes_the_rest_of_it(staleness: float) -> None:
    one_chunk = Plan("text", 1, 1, 0, 0)
    settings: dict[str, Any] = {"staleness": staleness}
    async with running_cluster() as cluster:
        whole = await work(cluster, "whole", one_chunk, **settings)
    async with running_cluster() as cluster:
        async with joined(cluster, "first", one_chunk, **settings) as first:
            await first.create("w", np.zeros(2, np.float32), SGD(LR))
            leased = await first.lease(block=False)
            await first.push_pull({"w": np.zeros(2, np.float32)}, done=first.done(leased, 1))
        second = await work(cluster, "second", one_chunk, **settings)
        done = await progress(cluster)
    assert len(whole.calls) == 2
    assert [call.rows for call in second.calls] == [call.rows for call in whole.calls[1:]]
    assert (done.phase, done.train_examples) == ("finished", sum(len(call.rows) for call in whole.calls))
    assert done.train_loss == pytest.approx(np.mean(second.calls[0].rows))  # of what it saw


async def test_a_chunk_of_which_all_is_done_is_only_reported() -> None:
    one_chunk = Plan("text", 1, 1, 0, 0)
    async with running_cluster() as cluster:
        async with joined(cluster, "first", one_chunk) as first:
            await first.create("w", np.zeros(2, np.float32), SGD(LR))
            leased = await first.lease(block=False)
            await first.push({"w": np.zeros(2, np.float32)}, done=first.done(leased, 2))
        second = await work(cluster, "second", one_chunk)
        done = await progress(cluster)
    assert second.calls == []
    assert (done.phase, done.train_examples, done.train_loss) == ("finished", 8, None)


async def test_how_far_a_chunk_is_can_only_be_said_by_who_has_leased_it() -> None:
    async with running_cluster() as cluster, joined(cluster, "a", plan()) as client:
        leases = [await client.lease(block=False) for _ in range(2)]
        assert [client.done(leased, 3) for leased in leases] == [Done(1, 3), Done(2, 3)]
        await client.finish(leases[0], 1, {})
        assert client.done(leases[0], 4) is None
        later = await client.lease(block=False)
        assert client.done(later, 1) == Done(4, 1)  # the report had a number, too
        await put_out(cluster, client)
        with pytest.raises(Fenced):
            await client.lease(block=False)
        await client.rejoin()
        assert client.done(later, 1) is None


# --- the dial


@pytest.mark.parametrize("shards", [1, 2])
async def test_the_dial_may_be_turned_while_workers_work(shards: int) -> None:
    async with running_cluster(shards, failure=FailureSettings(heartbeat=0.05)) as cluster:
        loop = asyncio.get_running_loop()
        dial = {2: 0.0, 6: math.inf, 9: 2.0, 12: 0.0, 15: math.inf, 18: 0.0}

        def turn(calls: int) -> None:
            if calls in dial:
                turning = change(*cluster.endpoint, Set("default", dial[calls]))
                asyncio.run_coroutine_threadsafe(turning, loop).result(20)

        models = await asyncio.gather(
            work(cluster, "a", plan(epochs=6), before=turn, workers=2),
            work(cluster, "b", plan(epochs=6), workers=2),
        )
        assert rows_seen(models) == Counter(dict.fromkeys(EVERYBODY - HELD, 6))
        done = await progress(cluster)
        assert (done.phase, done.chunks_done) == ("finished", 6 * CHUNKS)


@pytest.mark.parametrize("staleness", [0.0, 1.0])
async def test_who_waits_for_work_when_steps_begin_to_count_holds_nobody_up(staleness: float) -> None:
    """It waits for a chunk that another does, who now waits for its step."""
    one_chunk = Plan("text", 1, 2, 1, 0)
    async with running_cluster(failure=FailureSettings(heartbeat=0.1)) as cluster:

        async def turn() -> None:
            await cluster.until(lambda status: any(wait.what == "chunks" for wait in status.jobs[0].waits))
            await change(*cluster.endpoint, Set("default", staleness))

        loop = asyncio.get_running_loop()
        turns = iter([turn])  # once, by whoever has the first chunk

        def before(calls: int) -> None:
            for turn_ in turns:
                asyncio.run_coroutine_threadsafe(turn_(), loop).result(20)

        async with asyncio.timeout(20):
            await asyncio.gather(
                *(work(cluster, name, one_chunk, before=before, workers=2) for name in ("a", "b"))
            )
        assert (await progress(cluster)).phase == "finished"


# --- what overlaps


async def test_asynchronous_pushes_overlap_with_the_next_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch t+1 is computed while the push of batch t has no answer yet."""
    async with running_cluster() as cluster, joined(cluster, "a", plan(epochs=1, every=0)) as client:
        loop = asyncio.get_running_loop()
        pushing, release = threading.Event(), asyncio.Event()
        push_pull = client.push_pull

        async def held(*args: Any, **kwargs: Any) -> Any:
            pushing.set()
            await release.wait()
            return await push_pull(*args, **kwargs)

        overlapped = []

        def before(calls: int) -> None:
            if calls == 1:
                pushing.wait()  # of the batch before
                overlapped.append(not release.is_set())
                loop.call_soon_threadsafe(release.set)

        monkeypatch.setattr(client, "push_pull", held)
        model = Recorder(client, before)
        async with asyncio.timeout(20):  # without the overlap each would wait for the other
            await trainer(client, model).run(SGD(LR))
        assert overlapped == [True]
        # The second was computed on what the first was: its push was not answered. The third has both.
        first, second, third = (call.parameters for call in model.calls[:3])
        assert (first == second).all()
        assert (third != second).any()


async def test_the_next_chunk_is_read_while_this_one_is_trained_on() -> None:
    async with (
        running_cluster() as cluster,
        joined(cluster, "a", plan(epochs=1, every=0), staleness=0) as client,
    ):
        read: list[int] = []
        second_read = threading.Event()

        class Telling(Rows):
            def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
                read.append(chunk)
                if len(read) == 2:
                    second_read.set()
                return super().read(chunk, split, part)

        def before(calls: int) -> None:
            if calls == 1:  # in the middle of the first chunk
                assert second_read.wait(20)

        model = Recorder(client, before)
        await trainer(client, model, Telling()).run(SGD(LR))
        assert sorted(read) == list(range(CHUNKS))


# --- edges


@BOTH
async def test_a_model_that_cannot_evaluate_trains_all_the_same(staleness: float) -> None:
    async with running_cluster() as cluster, joined(cluster, "a", plan(), staleness=staleness) as client:
        await trainer(client, Gradients(client)).run(SGD(LR))
        done = await progress(cluster)
        assert done.phase == "finished"
        assert [(e.examples, e.means) for e in done.evaluations] == [(0, ()), (0, ())]


class OnlyHeldOut(Rows):
    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        batch = super().read(chunk, split, part)
        return batch.take(np.arange(0)) if split == "train" else batch


async def test_chunks_without_rows_to_train_on() -> None:
    async with running_cluster() as cluster:
        model = await work(cluster, "a", plan(epochs=1), source=OnlyHeldOut())
        assert model.calls == []
        assert set(model.evaluated) == HELD
        done = await progress(cluster)
        assert (done.train_examples, done.train_loss) == (0, None)


async def test_latecomers_to_a_finished_job_end_at_once() -> None:
    async with running_cluster() as cluster:
        for staleness, name in ((0.0, "late"), (0.0, "a")):
            model = await work(cluster, name, plan(), staleness=staleness, workers=1)
            assert bool(model.calls) == (name == "late")


async def test_what_was_done_is_counted() -> None:
    metrics = WorkerMetrics()
    async with running_cluster() as cluster, joined(cluster, "a", plan(epochs=1)) as client:
        model = Recorder(client)
        await trainer(client, model, metrics=metrics).run(SGD(LR))
        assert client.report.examples == len(EVERYBODY - HELD)
        assert client.report.loss == pytest.approx(np.mean(model.calls[-1].rows))
        assert client.clock == len(model.calls)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("psworker_examples_total") == len(EVERYBODY - HELD)
    assert value("psworker_steps_total") == len(model.calls) == CHUNKS * 2
    assert value("psworker_loss") == client.report.loss
    assert value("psworker_step_seconds_count", phase="compute") == len(model.calls)
    assert value("psworker_step_seconds_count", phase="push") == len(model.calls)
    assert value("psworker_step_seconds_count", phase="data") == 2 * CHUNKS + 1
    assert value("psworker_step_seconds_count", phase="pull") == 1 + CHUNKS


class Diverging(Recorder):
    """A model whose loss and gradient are no numbers."""

    def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
        return {"w": np.full(2, math.nan, np.float32)}, math.nan


@BOTH
@pytest.mark.filterwarnings("ignore:invalid value encountered")
async def test_a_loss_that_is_no_number_is_told_though_its_gradient_is_refused(staleness: float) -> None:
    metrics = WorkerMetrics()
    async with (
        running_cluster() as cluster,
        joined(cluster, "a", plan(), staleness=staleness, workers=1) as client,
    ):
        with pytest.raises(TrainingDiverged, match=r"step 0 \(loss nan\): the loss is nan"):
            await trainer(client, Diverging(client), metrics=metrics).run(SGD(LR))
    loss = metrics.registry.get_sample_value("psworker_loss")
    assert loss is not None
    assert math.isnan(loss)


# --- divergence


class Climbing:
    """A quadratic: a step with a learning rate above 2 leads further away from its lowest point."""

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.before = before  # called with the number of calls so far
        self.calls = 0

    def parameters(self) -> dict[str, Array]:
        return {"w": np.ones(2, np.float32)}

    def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
        self.before(self.calls)
        self.calls += 1
        return {"w": parameters["w"].copy()}, float(np.mean(parameters["w"] ** 2))


def checkpoint_at(cluster: DurableCluster, number: int) -> Callable[[int], None]:
    loop = asyncio.get_running_loop()

    def before(calls: int) -> None:
        if calls == number:
            asyncio.run_coroutine_threadsafe(cluster.checkpoint(), loop).result(20)

    return before


@pytest.mark.parametrize(("staleness", "shards", "rate"), [(0.0, 2, 0.25), (math.inf, 1, 0.125)])
@pytest.mark.filterwarnings("ignore:overflow encountered")
async def test_a_job_that_diverges_goes_back_and_on_at_a_lower_rate(
    tmp_path: Path, staleness: float, shards: int, rate: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The rate that is low enough is below 2; on gradients that are a step old, below 1."""
    many = plan(epochs=60, every=0)
    async with durable_cluster(tmp_path, shards) as cluster:
        async with connect(cluster.address, name="a", plan=many, staleness=staleness) as client:
            model = Climbing(checkpoint_at(cluster, 3))
            await trainer(client, model, on_divergence="lower-rate").run(SGD(6.0))
            assert client.rate == rate
        async with connect(cluster.address, observe=True) as observer:
            final = await observer.pull("w")
        status = await fetch_status(*cluster.endpoint)
    assert np.abs(final).max() < 1e-6
    progress = status.jobs[0].progress
    assert progress is not None
    assert (progress.phase, progress.train_examples) == ("finished", 60 * len(EVERYBODY - HELD))
    lines = [record.message for record in caplog.records if getattr(record, "event", "") == "work.diverged"]
    assert [line.rpartition(" ")[2] for line in lines] == ["0.5", "0.25", "0.125"][: len(lines)]
    assert lines[-1].endswith(f"goes on with its learning rate times {rate}")


@pytest.mark.parametrize(("staleness", "shards", "rate"), [(0.0, 1, 0.25), (math.inf, 2, 0.125)])
async def test_there_is_always_something_to_go_back_to(
    tmp_path: Path, staleness: float, shards: int, rate: float
) -> None:
    async with (
        durable_cluster(tmp_path, shards) as cluster,
        connect(cluster.address, plan=plan(epochs=60, every=0), staleness=staleness) as client,
    ):
        await trainer(client, Climbing(), on_divergence="lower-rate").run(SGD(6.0))
        (job,) = (await fetch_status(*cluster.endpoint)).jobs
        assert (client.rate, job.rate) == (rate, rate)
        assert [one.rate for one in job.returns] == [0.5, 0.25, 0.125][: len(job.returns)]
        assert job.returns[0].checkpoint == 1
        assert job.returns[0].loss > 1
        assert np.abs(await client.pull("w")).max() < 1e-6


async def test_without_a_checkpoint_it_ends_and_says_what_was_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_cluster() as cluster, joined(cluster, "a", plan(epochs=60, every=0)) as client:
        with pytest.raises(TrainingDiverged, match=r"it does not go back.*--checkpoint-dir"):
            await trainer(client, Climbing(), on_divergence="lower-rate").run(SGD(6.0))
    assert sum("there is no checkpoint that" in record.getMessage() for record in caplog.records) == 1


async def test_a_job_that_climbs_ends_before_it_overflows() -> None:
    """Single examples are given longer, so that there are enough of them in a step here."""
    async with running_cluster() as cluster, joined(cluster, "a", plan(epochs=100, every=0)) as client:
        with pytest.raises(
            TrainingDiverged, match=r"the mean loss has risen to .*, and its best was"
        ) as caught:
            await trainer(client, Climbing(), batch_size=50).run(SGD(2.02))
        assert caught.value.loss is not None
        assert 5.0 < caught.value.loss < 1e6


@BOTH
@pytest.mark.parametrize("number", [0, 3, 99])
async def test_nothing_is_left_behind(staleness: float, number: int) -> None:
    """Neither tasks nor threads, whether the model fails or not."""
    async with running_cluster() as cluster, joined(cluster, "a", plan(), staleness=staleness) as client:
        tasks = asyncio.all_tasks()
        result = trainer(client, Recorder(client, fail_at(number))).run(SGD(LR))
        (end,) = await asyncio.gather(result, return_exceptions=True)
        assert isinstance(end, ModelError) == (number < 99)
        assert asyncio.all_tasks() == tasks
    for thread in threading.enumerate():
        if thread.name.startswith(("data", "compute")):
            thread.join(20)
            assert not thread.is_alive()
