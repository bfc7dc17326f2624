import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.messages import Plan, Set
from protocol.optimizers import SGD, Add
from psworker.asking import change
from psworker.client import Client, connect
from psworker.data import Batch
from psworker.data.bad_rows import BadRows
from psworker.data.rows import Position
from psworker.errors import DataError
from psworker.job import DataSettings, StreamSettings
from psworker.metrics import WorkerMetrics
from psworker.models import LogisticRegression
from psworker.online.records import Record
from psworker.online.rows import Rows
from psworker.online.trainer import StreamTrainer
from tests.cluster import EAGER, durable_cluster, put_out, running_cluster

Array = npt.NDArray[Any]

SETTINGS = StreamSettings(
    ("-",), fields=("x", "y"), max_wait=0.0, cooldown=200, raised_for=300, report_every=100
)
DATA = DataSettings(source="stream", format="csv", target="y")
SOME = 100


class Counting:
    """Adds up rows, and their numbers; the loss is the mean of y."""

    optimizer = Add()

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before

    def parameters(self) -> dict[str, Array]:
        return {"rows": np.zeros(1), "sum": np.zeros(1)}

    def gradients(self, parameters: Mapping[str, Array], batch: Batch) -> tuple[dict[str, Array], float]:
        self._before()
        x = batch.x[:, 0].astype(np.float64)
        return {"rows": np.full(1, float(len(x))), "sum": x.sum(keepdims=True)}, float(np.mean(batch.y))


@dataclass
class Lists:
    """Streams of lines in memory, read some ``at_once``; ``ends``: else they wait for more."""

    partitions_of: list[list[str]]
    ends: bool = True
    at_once: int = 10
    opened: list[tuple[int, int]] = field(default_factory=list)
    partitions: int = field(init=False)

    def __post_init__(self) -> None:
        self.partitions = len(self.partitions_of)

    async def open(self, partition: int, skip: int) -> "Listed":
        self.opened.append((partition, skip))
        return Listed(self.partitions_of[partition], skip, self.ends, self.at_once)

    async def close(self) -> None: ...


class Listed:
    def __init__(self, lines: list[str], skip: int, ends: bool, at_once: int) -> None:
        self.header: str | None = None
        self._lines = lines
        self._next = skip
        self._ends = ends
        self._at_once = at_once

    async def read(self) -> Sequence[Record]:
        if self._next == len(self._lines):
            if not self._ends:
                await asyncio.Event().wait()
            return []
        first, self._next = self._next, min(self._next + self._at_once, len(self._lines))
        return [Record(self._lines[n].encode(), n + 1) for n in range(first, self._next)]

    def position(self, record: Record) -> Position:
        return Position(f"list, place {record.offset}")

    def done(self, offset: int) -> None: ...

    async def close(self) -> None: ...


def numbers(count: int, first: int = 0) -> list[str]:
    return [f"{number},0" for number in range(first, first + count)]


@asynccontextmanager
async def joined(
    address: str, streams: Lists, raised_rate: float = 1.0, **settings: Any
) -> AsyncIterator[Client]:
    plan = Plan("text", streams.partitions, 1, 0, 0, stream=True, raised_rate=raised_rate)
    async with connect(address, plan=plan, **settings) as client:
        yield client


def trainer(
    client: Client,
    model: Any,
    streams: Lists,
    settings: StreamSettings = SETTINGS,
    *,
    metrics: WorkerMetrics | None = None,
    share: int = 1,
    data: DataSettings = DATA,
    bad_rows: BadRows | None = None,
) -> StreamTrainer:
    return StreamTrainer(
        client,
        model,
        streams,
        Rows(data, "test", fields=settings.fields),
        bad_rows or BadRows(data, endless=True),
        settings,
        batch_size=streams.at_once if streams.at_once > 10 else 8,
        share=share,
        seed=0,
        metrics=metrics or WorkerMetrics(),
    )


def rates(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the coordinator has said that the job's rate is, whenever it was changed."""
    told = [record for record in caplog.records if record.__dict__.get("event") == "job.changed"]
    return [record.getMessage().rsplit(" ", 1)[1] for record in told]


async def counted(client: Client) -> list[float]:
    pulled = await client.pull(["rows", "sum"])
    return [float(pulled["rows"][0]), float(pulled["sum"][0])]


async def test_a_stream_that_ends_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psworker.online.trainer._MORE_EVERY", 3600.0)  # a look for more is not waited for
    streams, metrics = Lists([numbers(SOME)]), WorkerMetrics()
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        await trainer(client, Counting(), streams, metrics=metrics).run(SGD())
        assert await counted(client) == [SOME, sum(range(SOME))]
        progress = (await cluster.job()).progress
        assert progress is not None
        assert progress.phase == "finished"
        assert progress.train_examples == SOME
    assert metrics.registry.get_sample_value("psworker_examples_total") == SOME


@pytest.mark.parametrize("shards", [1, 2])
async def test_all_partitions_are_read_by_as_few_as_there_are(shards: int) -> None:
    streams = Lists([numbers(30, 100 * one) for one in range(5)])
    async with running_cluster(shards) as cluster, joined(cluster.address, streams) as client:
        await trainer(client, Counting(), streams, share=5).run(SGD())
        assert await counted(client) == [150, sum(100 * one * 30 + sum(range(30)) for one in range(5))]
    assert sorted(streams.opened) == [(one, 0) for one in range(5)]


async def test_what_cannot_be_read_is_named_by_its_place() -> None:
    streams = Lists([[*numbers(20), "", "x,0", *numbers(20)]])
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        with pytest.raises(DataError, match=r'list, place 22, column "x": "x" is not a number'):
            await trainer(client, Counting(), streams).run(SGD())
        assert await counted(client) == [16, sum(range(16))]


async def test_what_is_left_out_of_all_partitions_is_counted() -> None:
    data = replace(DATA, on_error="skip")
    bad_rows = BadRows(data, endless=True)
    streams = Lists([["x,0", "1,0", "y,0", "1"], ["2,0", "z,0"]])
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        await trainer(client, Counting(), streams, share=2, data=data, bad_rows=bad_rows).run(SGD())
        assert await counted(client) == [2, 3]
    assert bad_rows.counts == {"number": 3, "fields": 1}


async def test_two_workers_share_the_partitions() -> None:
    streams = Lists([numbers(SOME, 1000 * one) for one in range(4)])
    async with (
        running_cluster() as cluster,
        joined(cluster.address, streams, name="a") as a,
        joined(cluster.address, streams, name="b") as b,
    ):
        await asyncio.gather(*(trainer(one, Counting(), streams, share=2).run(SGD()) for one in (a, b)))
        assert (await counted(a))[0] == 4 * SOME
        assert a.report.examples == b.report.examples == 2 * SOME


async def test_who_is_stopped_leaves_the_rest_to_the_next() -> None:
    streams = Lists([numbers(SOME)], ends=False)
    async with running_cluster() as cluster:
        async with joined(cluster.address, streams, name="a") as client:
            begun = asyncio.Event()
            loop = asyncio.get_running_loop()

            def before() -> None:
                loop.call_soon_threadsafe(begun.set)

            first = trainer(client, Counting(before), streams)
            running = asyncio.create_task(first.run(SGD()))
            await begun.wait()
            first.stop()
            await running
            rows, _ = await counted(client)
            assert 0 < rows < SOME
        async with joined(cluster.address, streams, name="b") as client:
            streams.ends = True
            await trainer(client, Counting(), streams).run(SGD())
            assert await counted(client) == [SOME, sum(range(SOME))]
    assert streams.opened == [(0, 0), (0, rows)]


async def test_a_worker_that_was_taken_for_dead_goes_on_where_it_was() -> None:
    streams = Lists([numbers(SOME), numbers(SOME, SOME)])
    async with running_cluster(failure=EAGER) as cluster, joined(cluster.address, streams) as client:
        loop = asyncio.get_running_loop()
        calls = 0

        def before() -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                asyncio.run_coroutine_threadsafe(put_out(cluster, client), loop).result()

        await trainer(client, Counting(before), streams, share=2).run(SGD())
        assert await counted(client) == [2 * SOME, sum(range(2 * SOME))]
    assert len(streams.opened) > 2


@pytest.mark.parametrize("mode", ["log", "snapshot"])
async def test_servers_that_are_killed_take_nothing_away(tmp_path: Path, mode: Any) -> None:
    streams = Lists([numbers(SOME)])
    async with durable_cluster(tmp_path, 1, mode) as cluster:
        loop = asyncio.get_running_loop()
        calls = 0

        async def crash() -> None:
            await cluster.checkpoint()
            await cluster.kill(0)
            await cluster.start(0)

        def before() -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                asyncio.run_coroutine_threadsafe(crash(), loop).result()

        async with joined(cluster.address, streams) as client:
            await trainer(client, Counting(before), streams).run(SGD())
            assert await counted(client) == [SOME, sum(range(SOME))]


async def test_a_line_that_is_none_ends_the_work() -> None:
    streams = Lists([["1,0", "x,0"]])
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        with pytest.raises(DataError, match='"x" is not a number'):
            await trainer(client, Counting(), streams).run(SGD())


async def test_old_sums_decay_with_each_example() -> None:
    streams = Lists([["1,0"] * 24])
    settings = replace(SETTINGS, decay=0.9)
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        await trainer(client, Counting(), streams, settings).run(SGD())
        kept = 0.9**8
        assert (await counted(client))[0] == pytest.approx(8 * (1 + kept + kept**2))


async def test_predictions_are_scored_before_they_are_learnt_from(caplog: pytest.LogCaptureFixture) -> None:
    streams, metrics = Lists([["1,1"] * 8 + ["1,0"] * 100]), WorkerMetrics()
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        with caplog.at_level(logging.INFO):
            await trainer(client, LogisticRegression(1), streams, metrics=metrics).run(SGD(lr=100.0))
        assert client.report.loss is not None
    # Nothing is known of the first 8, then all is taken for 1 until 8 of the others were seen.
    (report,) = [record for record in caplog.records if record.__dict__.get("event") == "stream.report"]
    assert "has learnt from 104 examples" in report.getMessage()
    for over in ("whole", "window", "faded"):
        assert metrics.registry.get_sample_value(
            "psworker_prequential", {"measure": "accuracy", "over": over}
        ) == pytest.approx(metrics.prequential[over]["accuracy"])
    whole = metrics.prequential["whole"]["accuracy"]
    assert whole == pytest.approx((104 - 16) / 104)


def flipping(*stretches: tuple[int, int]) -> list[str]:
    """Rows of x = 1 or -1, whose label is 1 for one of them, and for the other after a flip."""
    rng = np.random.default_rng(0)
    found = []
    for count, sign in stretches:
        found += [f"{x},{int(x * sign > 0)}" for x in rng.choice([-1, 1], count)]
    return found


DRIFTING = flipping((1000, 1), (1000, -1))


def drifts(metrics: WorkerMetrics) -> float | None:
    return metrics.registry.get_sample_value("psworker_drifts_total")


@pytest.mark.parametrize("drift", ["adwin", "page-hinkley"])
async def test_a_drift_is_reported_once(drift: str, caplog: pytest.LogCaptureFixture) -> None:
    streams, metrics = Lists([DRIFTING], at_once=50), WorkerMetrics()
    settings = replace(SETTINGS, drift=drift)
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        with caplog.at_level(logging.WARNING):
            await trainer(client, LogisticRegression(1), streams, settings, metrics=metrics).run(SGD(lr=0.1))
    assert drifts(metrics) == 1
    (found,) = [record for record in caplog.records if record.__dict__.get("event") == "drift.detected"]
    assert 1000 < found.__dict__["examples"] < 1200


async def test_without_a_drift_there_is_none() -> None:
    streams, metrics = Lists([flipping((2000, 1))], at_once=50), WorkerMetrics()
    settings = replace(SETTINGS, drift="adwin")
    async with running_cluster() as cluster, joined(cluster.address, streams) as client:
        await trainer(client, LogisticRegression(1), streams, settings, metrics=metrics).run(SGD(lr=0.1))
    assert drifts(metrics) == 0


async def test_the_rate_is_raised_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    streams = Lists([DRIFTING], at_once=50)
    settings = replace(SETTINGS, drift="adwin", on_drift="raise-rate")
    async with running_cluster() as cluster, joined(cluster.address, streams, raised_rate=7.0) as client:
        with caplog.at_level(logging.INFO, "psserver.coordinator"):
            await trainer(client, LogisticRegression(1), streams, settings).run(SGD(lr=0.1))
    assert rates(caplog) == ["7", "1"]


async def test_a_rate_that_somebody_else_has_set_is_left_alone() -> None:
    streams = Lists([DRIFTING], at_once=50)
    settings = replace(SETTINGS, drift="adwin", on_drift="raise-rate")
    async with running_cluster() as cluster, joined(cluster.address, streams, raised_rate=7.0) as client:

        async def drift(known: int, real: Callable[[int], Coroutine[Any, Any, bool]] = client.drift) -> bool:
            acts = await real(known)
            await change(*cluster.endpoint, Set(rate=0.5))
            return acts

        client.drift = drift  # type: ignore[method-assign]
        await trainer(client, LogisticRegression(1), streams, settings).run(SGD(lr=0.1))
        assert (await cluster.job()).rate == 0.5


@pytest.mark.parametrize("on_drift", ["raise-rate", "restart"])
async def test_of_two_workers_one_acts_on_a_drift(on_drift: str, caplog: pytest.LogCaptureFixture) -> None:
    streams = Lists([flipping((1500, 1), (1500, -1)) for _ in range(2)], at_once=50)
    settings = replace(SETTINGS, drift="adwin", on_drift=on_drift, cooldown=500)
    metrics = [WorkerMetrics(), WorkerMetrics()]
    async with (
        running_cluster() as cluster,
        joined(cluster.address, streams, raised_rate=7.0, name="a") as a,
        joined(cluster.address, streams, raised_rate=7.0, name="b") as b,
    ):
        both = asyncio.Barrier(2)

        def together(
            real: Callable[[int], Coroutine[Any, Any, bool]],
        ) -> Callable[[int], Coroutine[Any, Any, bool]]:
            async def drift(known: int) -> bool:
                assert known == 0, "who was not the first has heard of it, and does not watch for a while"
                await both.wait()  # neither has heard of the other's
                return await real(known)

            return drift

        learners = []
        for one, counts in zip((a, b), metrics, strict=True):
            one.drift = together(one.drift)  # type: ignore[assignment,method-assign]
            learners.append(trainer(one, LogisticRegression(1), streams, settings, metrics=counts))
        with caplog.at_level(logging.INFO, "psserver.coordinator"):
            await asyncio.gather(*(one.run(SGD(lr=0.1)) for one in learners))
        assert (await cluster.job()).drifts == a.drifts == b.drifts == 1
    assert sum(drifts(one) or 0 for one in metrics) == 1
    assert rates(caplog)[:1] == ["7"]
    assert set(rates(caplog)[1:]) <= {"1"}


@pytest.mark.parametrize("shards", [1, 2])
async def test_the_model_begins_anew(shards: int) -> None:
    streams, metrics = Lists([flipping((2000, 1), (2000, -1))], at_once=50), WorkerMetrics()
    settings = replace(SETTINGS, drift="adwin", on_drift="restart", window=500)
    async with running_cluster(shards) as cluster, joined(cluster.address, streams) as client:
        model = LogisticRegression(1)
        await trainer(client, model, streams, settings, metrics=metrics).run(SGD(lr=0.02))
        # So slow that w, which was above 0 for 2,000 examples, would be there still.
        assert (await client.pull("w"))[0] < 0
    assert drifts(metrics) == 1
    assert metrics.prequential["window"]["accuracy"] > 0.95


async def test_each_of_several_partitions_is_held_by_one() -> None:
    streams = Lists([numbers(SOME)] * 2, ends=False)
    async with (
        running_cluster() as cluster,
        joined(cluster.address, streams, name="a") as a,
        joined(cluster.address, streams, name="b") as b,
    ):
        learners = [trainer(one, Counting(), streams) for one in (a, b)]
        running = [asyncio.create_task(one.run(SGD())) for one in learners]
        await cluster.until(lambda status: sum(one.leases for one in status.jobs[0].workers) == 2)
        assert [one.leases for one in (await cluster.job()).workers] == [1, 1]
        for one in learners:
            one.stop()
        await asyncio.gather(*running)
