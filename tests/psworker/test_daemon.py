import asyncio
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.logs import Speaker
from protocol.errors import (
    BadFrame,
    BadRequest,
    BadTensor,
    ConnectionLost,
    HasDiverged,
    InternalError,
    JobDropped,
    JobMismatch,
    NotAMember,
    NotFinite,
    ShuttingDown,
    SpecMismatch,
    UnknownJob,
    UnknownTensor,
    Unreachable,
    VersionMismatch,
)
from protocol.status import ClusterStatus
from psserver.membership import FailureSettings
from psworker.asking import drop
from psworker.client import connect
from psworker.daemon import WorkerSettings, exit_code, work
from psworker.errors import DataError, JobError, TrainingDiverged
from psworker.job import Job, job_to_json, load_job
from psworker.metrics import WorkerMetrics
from psworker.parts import check
from tests.cluster import Cluster, running_cluster
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

ROWS = 40


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """y = 2 x + 1."""
    path = tmp_path / "line.csv"
    lines = [f"{x},{2 * x + 1}" for x in np.linspace(-1, 1, ROWS)]
    path.write_text("\n".join(["x,y", *lines]) + "\n")
    return path


def job_on(table: Path, *changes: str) -> Job:
    settings = [
        'model.kind="linear"',
        f'data.source="{table}"',
        'data.target="y"',
        "data.chunk-rows=10",
        "train.epochs=40",
        "train.batch-size=5",
        "optimizer.lr=0.2",
    ]
    return load_job(None, [*settings, *changes])


async def run(
    cluster: Cluster, job: Job | None, name: str | None = None, reconnect_for: float = 0.0
) -> WorkerMetrics:
    metrics = WorkerMetrics()
    await work(WorkerSettings(cluster.address, job, name, reconnect_for), metrics, Speaker())
    return metrics


@pytest.mark.parametrize("staleness", ["0", "2", "inf"])
async def test_daemons_whose_job_is_dropped_end(table: Path, staleness: str) -> None:
    endless = job_on(table, f"train.staleness={staleness}", "train.workers=2", "train.epochs=1000000")
    async with running_cluster(2) as cluster:
        both = [asyncio.create_task(run(cluster, endless, name)) for name in ("a", "b")]
        await cluster.until(lambda status: any(job.step > 5 for job in status.jobs))
        await drop(*cluster.endpoint, "digits", force=True)
        for working in both:
            with pytest.raises(JobDropped):
                await working
        assert (await cluster.status()).jobs == ()


@pytest.mark.parametrize("staleness", ["0", "2", "inf"])
async def test_two_daemons_finish_a_job(table: Path, staleness: str) -> None:
    job = job_on(table, f"train.staleness={staleness}", "train.workers=2")
    async with running_cluster(2) as cluster:
        both = await asyncio.gather(run(cluster, job, "a"), run(cluster, job, "b"))
        status = await cluster.job("digits")
        assert status.progress is not None
        assert status.progress.phase == "finished"
        means = {mean.name: mean.value for mean in status.progress.evaluations[-1].means}
        assert means["loss"] < 0.01
        counted = sum(metrics.registry.get_sample_value("psworker_examples_total") or 0 for metrics in both)
        assert counted == status.progress.train_examples
        assert {worker.state for worker in status.workers} == {"left"}
        async with connect(cluster.address, job=None, observe=True) as observer:
            parameters = await observer.pull(list(await observer.tensors()))
        assert sorted(float(value) for array in parameters.values() for value in array.reshape(-1)) == [
            pytest.approx(1.0, abs=0.1),
            pytest.approx(2.0, abs=0.1),
        ]


async def test_the_job_comes_from_the_cluster(table: Path) -> None:
    job = job_on(table, "train.staleness=0", "train.workers=2")
    async with running_cluster() as cluster:
        first = asyncio.create_task(run(cluster, job, "a"))
        await cluster.until(lambda status: bool(status.jobs))
        await run(cluster, None, "b")
        await first
        assert {worker.name for worker in (await cluster.job("digits")).workers} == {"a", "b"}


@pytest.mark.parametrize("staleness", ["0", "2", "inf"])
async def test_a_daemon_may_come_late(table: Path, staleness: str) -> None:
    job = job_on(table, f"train.staleness={staleness}", "train.epochs=1000000")
    async with running_cluster(2, failure=FailureSettings(heartbeat=0.2)) as cluster:
        early = asyncio.create_task(run(cluster, job, "early"))
        await cluster.until(is_under_way)
        late = asyncio.create_task(run(cluster, None, "late"))
        await cluster.until(lambda status: [w.name for w in status.jobs[0].workers] == ["early", "late"])
        status = await cluster.until(
            lambda status: len(status.jobs[0].workers) == 2 and status.jobs[0].workers[1].examples > 0
        )
        for task in (early, late):
            task.cancel()
        await asyncio.gather(early, late, return_exceptions=True)
        first, second = status.jobs[0].workers
        assert second.clock > 0
        assert first.clock - second.clock <= (math.inf if staleness == "inf" else int(staleness) + 1)


async def test_a_step_need_not_wait_for_the_slowest(table: Path) -> None:
    changes = ("train.staleness=0", "train.workers=3", "train.backup-workers=1")
    job = job_on(table, *changes, "eval.holdout=0")
    async with running_cluster(2) as cluster:
        await asyncio.gather(*(run(cluster, job, name) for name in "abc"))
        status = await cluster.job("digits")
        assert status.backup_workers == 1
        assert status.progress is not None
        assert (status.progress.phase, status.progress.train_examples) == ("finished", ROWS * 40)


async def test_connections_may_break(table: Path) -> None:
    """All the examples are counted once all the same, and the metrics tell."""
    job = job_on(table, "train.workers=2", "eval.holdout=0")
    async with running_cluster() as cluster, Proxy(cluster.address) as proxy:
        near = asyncio.create_task(run(cluster, job, "near"))
        far = asyncio.create_task(run(Cluster(cluster.servers, proxy.address), job, "far", 60.0))
        for done in (10, 30, 60, 90):
            await cluster.until(lambda status, done=done: chunks_done(status) > done)  # type: ignore[misc]
            proxy.cut()
        (_, metrics) = await asyncio.gather(near, far)
        progress = (await cluster.job("digits")).progress
        assert progress is not None
        assert (progress.phase, progress.train_examples) == ("finished", ROWS * 40)
        assert 0 < metrics.recovery.reconnects <= proxy.seen.cuts
        found = metrics.registry.get_sample_value("psworker_reconnects_total")
        assert found == metrics.recovery.reconnects


def chunks_done(status: ClusterStatus) -> int:
    progress = status.jobs[0].progress if status.jobs else None
    return progress.chunks_done if progress else 0


def is_under_way(status: ClusterStatus) -> bool:
    return chunks_done(status) > 3


async def test_without_a_job_anywhere() -> None:
    async with running_cluster() as cluster:
        with pytest.raises(UnknownJob):
            await run(cluster, None)
        async with connect(cluster.address):  # a job of somebody's own program
            with pytest.raises(UnknownJob, match="--job"):
                await run(cluster, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.lr=0.5", "[optimizer] lr is 0.5 in one and 0.2 in the other"),
        ("train.epochs=41", "[train] epochs is 41 in one and 2 in the other"),
        ("job.seed=3", "[job] seed is 3 in one and 0 in the other"),
        ("model.l2=0.5", "[model] l2 is 0.5 in one and absent in the other"),
    ],
)
async def test_a_mismatch_names_the_key_that_differs(table: Path, change: str, said: str) -> None:
    async with running_cluster() as cluster:
        await run(cluster, job_on(table, "train.epochs=2"))
        with pytest.raises(JobMismatch) as caught:
            await run(cluster, job_on(table, "train.epochs=2", change))
        assert said in str(caught.value)
        assert exit_code(caught.value) == ExitCode.JOB_MISMATCH


async def test_other_data_is_a_mismatch_that_says_so(table: Path) -> None:
    async with running_cluster() as cluster:
        await run(cluster, job_on(table, "train.epochs=2"))
        with table.open("a") as more:
            more.write("1.000000000,3.000000000\n" * 200)
        with pytest.raises(JobMismatch, match="the job's 5: is it the same file"):
            await run(cluster, job_on(table, "train.epochs=2"))


async def test_nothing_is_evaluated_where_nothing_is_held_out(table: Path) -> None:
    async with running_cluster() as cluster:
        await run(cluster, job_on(table, "train.epochs=2", "eval.holdout=0"))
        progress = (await cluster.job("digits")).progress
        assert progress is not None
        assert progress.evaluations == ()
        assert progress.train_examples == ROWS * 2


async def test_what_is_wrong_with_job_or_data_is_found_before_joining(table: Path) -> None:
    async with running_cluster() as cluster:
        for change, error in (
            ("optimizer.lr=0", JobError),
            ("optimizer.lr=true", JobError),
            ('optimizer.lr="fast"', JobError),
            ("optimizer.momentum=0.9", JobError),
            ('optimizer.name="magic"', JobError),
            ('model.kind="magic"', JobError),
            ('data.source="nowhere.csv"', DataError),
            ('data.target="nothing"', DataError),
        ):
            with pytest.raises(error):
                await run(cluster, job_on(table, change))
        assert (await cluster.status()).jobs == ()


@pytest.fixture
def spoilt(table: Path) -> Path:
    lines = table.read_text().splitlines()
    lines[15] = "what,3"
    table.write_text("\n".join(lines) + "\n")
    return table


async def test_a_bad_row_in_the_middle_is_told_with_its_line(spoilt: Path) -> None:
    async with running_cluster() as cluster:
        with pytest.raises(DataError, match="line 16"):
            await run(cluster, job_on(spoilt, "eval.holdout=0"))
        assert [worker.state for worker in (await cluster.job("digits")).workers] == ["left"]


async def test_parameters_that_explode_are_an_error_of_their_own(table: Path) -> None:
    async with running_cluster() as cluster:
        with pytest.raises(TrainingDiverged) as caught:
            await run(cluster, job_on(table, "optimizer.lr=1e30"))
        assert exit_code(caught.value) == ExitCode.DIVERGED


async def test_a_job_ends_when_its_evaluations_get_no_better(table: Path) -> None:
    async with running_cluster() as cluster:
        await run(cluster, job_on(table, "train.epochs=5000", "train.patience=2", "train.min-delta=0.001"))
        progress = (await cluster.job("digits")).progress
        assert progress is not None
        assert (progress.phase, progress.epoch < 5000) == ("finished", True)
        assert "loss has not improved in 2 evaluations" in progress.stopped


async def test_a_measure_that_nobody_takes_cannot_end_a_job(table: Path) -> None:
    async with running_cluster() as cluster:
        with pytest.raises(JobError, match='monitor = "r3" is not measured; known: loss, mae'):
            await run(cluster, job_on(table, "train.patience=1", "train.monitor=r3", "train.epochs=3"))


@pytest.mark.parametrize("staleness", ["0", "inf"])
async def test_a_job_on_scaled_and_hashed_features(table: Path, staleness: str) -> None:
    """The survey of two workers, and rows that tables have."""
    for data in ('data.scale="standard"', "data.hashed=true"):
        job = job_on(table, data, f"train.staleness={staleness}", "train.workers=2")
        async with running_cluster(2) as cluster:
            await asyncio.gather(run(cluster, job, "a"), run(cluster, job, "b"))
            progress = (await cluster.job("digits")).progress
            assert progress is not None
            means = {mean.name: mean.value for mean in progress.evaluations[-1].means}
            assert means["loss"] < 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (('optimizer.name="adam"', "train.local-steps=2"), 'local-steps needs [optimizer] name = "sgd"'),
        (("optimizer.l2=0.1", "train.local-steps=2"), "lr and nothing else"),
        (('model.kind="linear-exact"', "train.accumulate=2"), "accumulate is a mean of gradients"),
        (('model.kind="linear-exact"', "train.backup-workers=1"), "backup-workers = 1 drops"),
        (('data.scale="standard"', "train.backup-workers=1"), "backup-workers = 1 drops"),
    ],
)
async def test_what_does_not_go_together_is_found_before_joining(
    table: Path, changes: tuple[str, ...], said: str
) -> None:
    job = job_on(table, *changes)
    with pytest.raises(JobError) as caught:
        check(job)
    assert said in str(caught.value)


async def test_cancelling_gives_the_leases_back_and_leaves(table: Path) -> None:
    async with running_cluster() as cluster:
        job = job_on(table, "train.epochs=1000000")
        task = asyncio.create_task(run(cluster, job, "a"))
        await cluster.until(is_under_way)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        status = await cluster.job("digits")
        assert [worker.state for worker in status.workers] == ["left"]
        assert status.progress is not None
        assert status.progress.chunks_leased == 0


async def test_the_order_of_rows_depends_on_the_seed(table: Path) -> None:
    """Two runs of one job are one, bit for bit; another seed is another run."""

    async def final(seed: int) -> list[float]:
        async with running_cluster() as cluster:
            job = job_on(table, f"job.seed={seed}", "train.epochs=2", "train.staleness=0", "eval.holdout=0")
            await run(cluster, job)
            async with connect(cluster.address, job=None, observe=True) as observer:
                parameters = await observer.pull(list(await observer.tensors()))
            return [float(value) for array in parameters.values() for value in array.reshape(-1)]

    first = await final(0)
    assert first == await final(0)
    assert first != await final(1)
    assert not any(math.isnan(value) for value in first)


def test_jobs_that_are_equal_have_equal_texts(table: Path) -> None:
    job = job_on(table)
    assert job_to_json(job) == job_to_json(dataclasses.replace(job))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobError("x"), 2),
        (BadRequest("x"), 2),
        (BadTensor("x"), 2),
        (NotAMember("x"), 2),
        (UnknownTensor("x"), 2),
        (Unreachable("x"), 10),
        (BadFrame("x"), 11),
        (VersionMismatch("x"), 11),
        (JobMismatch("x"), 12),
        (JobDropped("x"), 12),
        (UnknownJob("x"), 12),
        (SpecMismatch("x"), 12),
        (DataError("x", None, "x"), 14),
        (ConnectionLost("x"), 15),
        (ShuttingDown("x"), 15),
        (InternalError("x"), 15),
        (NotFinite("x"), 16),
        (TrainingDiverged(0, None, "x"), 16),
        (HasDiverged("x"), 16),
        (ZeroDivisionError("x"), None),
        (ValueError("x"), None),
    ],
)
def test_exit_codes(error: Exception, code: int | None) -> None:
    assert exit_code(error) == code
