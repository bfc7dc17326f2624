"""Daemons on data that has to be surveyed, hashed, or left out in part."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from protocol.daemon.logs import Speaker
from protocol.messages import Skipped
from psworker.client import connect
from psworker.daemon import WorkerSettings, work
from psworker.errors import TrainingDiverged
from psworker.job import Job, load_job
from psworker.metrics import WorkerMetrics
from psworker.surveying import SURVEY
from tests.cluster import Cluster, running_cluster
from tests.psworker.data.reading import opened

EFFECTS = {"Rome": 2.0, "Paris": -1.0, "Oslo": 0.5, "": 0.0}


def job_on(source: Path, *changes: str) -> Job:
    settings = [
        "model.kind=linear", f'data.source="{source}"',
        "data.target=y", "data.chunk-rows=10", "train.epochs=30",
        "train.batch-size=5", "train.workers=2", "optimizer.lr=0.1", "eval.every=30 epochs",
    ]  # fmt: skip
    return load_job(None, [*settings, *changes])


async def two_workers(cluster: Cluster, job: Job) -> tuple[WorkerMetrics, WorkerMetrics]:
    one, other = WorkerMetrics(), WorkerMetrics()
    await asyncio.gather(
        work(WorkerSettings(cluster.address, job, "a", 0.0), one, Speaker()),
        work(WorkerSettings(cluster.address, job, "b", 0.0), other, Speaker()),
    )
    return one, other


async def loss_of(cluster: Cluster, job: Job) -> float:
    progress = (await cluster.job(job.name)).progress
    assert progress is not None
    assert progress.phase == "finished"
    return next(mean.value for mean in progress.evaluations[-1].means if mean.name == "loss")


async def test_the_survey_finds_what_one_process_finds_and_training_goes_by_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1000, 50, 60)  # which no rate near 0.1 can be trained on as it is
    rows = [
        f"{'' if row % 9 == 0 else value},{(value - 1000) / 50 if row % 9 else 0}"
        for row, value in enumerate(x)
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["x,y", *rows, ""]))
    job = job_on(path, "data.missing=mean", "data.scale=standard")
    source = opened(
        source=str(path), target="y", chunk_rows=10, holdout=0.2, missing="mean", scale="standard"
    )
    expected = [source.statistics(chunk) for chunk in range(source.chunks)]
    async with running_cluster() as cluster:
        await two_workers(cluster, job)
        async with connect(cluster.address, job=None, observe=True) as observer:
            names = {name for name in await observer.tensors() if name.startswith(SURVEY)}
            totals = await observer.pull(sorted(names))
        assert names == {SURVEY + name for name in expected[0]}
        for name in expected[0]:
            np.testing.assert_allclose(totals[SURVEY + name], sum(one[name] for one in expected), rtol=1e-9)
        assert await loss_of(cluster, job) < 0.02


async def test_hashed_features_are_learnt_in_a_table(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    rows = [f"{city},{effect}" for _ in range(20) for city, effect in EFFECTS.items()]
    for number in range(2):
        (tmp_path / f"part-{number}.csv").write_text("\n".join(["city,y", *rows[number::2], ""]))
    job = job_on(tmp_path / "part-*.csv", 'data.categorical=["city"]', "data.hashed=true")
    async with running_cluster(2) as cluster:
        await two_workers(cluster, job)
        assert await loss_of(cluster, job) < 0.02


async def test_rows_left_out_are_counted_and_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{x},{2 * x}" for x in np.linspace(-1, 1, 40)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["x,y", *rows[:20], "abc,1", "1", *rows[20:], ""]))
    job = job_on(path, "data.on-error=skip", "train.workers=1")
    metrics = WorkerMetrics()
    async with running_cluster() as cluster:
        await work(WorkerSettings(cluster.address, job, "a", 0.0), metrics, Speaker())
        assert await loss_of(cluster, job) < 0.02
    counted = {
        reason: metrics.registry.get_sample_value("psworker_skipped_rows_total", {"reason": reason})
        for reason in ("number", "fields")
    }
    assert counted == {"number": 1, "fields": 1}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 2 rows: 1 of fields, 1 of number" in warnings
    assert sum('a.csv, line 22, column "x": "abc" is not a number' in text for text in warnings) == 1


CUT = ('data.partition="hash:x"', 'data.columns=["x"]')


@pytest.mark.parametrize("more", [(), ("data.scale=standard",), CUT])
async def test_the_cluster_counts_each_row_left_out_once(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Whoever reads it, and however often: two workers, several epochs, a survey, held-out rows."""
    rows = [f"{x},{2 * x}" for x in np.linspace(-1, 1, 40)]
    bad = [*["abc,1"] * 9, *["1"] * 7]
    (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows[:20], *bad, *rows[20:], ""]))
    job = job_on(tmp_path / "a.csv", "data.on-error=skip", "data.chunk-rows=8", "train.epochs=4", *more)
    async with running_cluster(2) as cluster:
        await two_workers(cluster, job)
        progress = (await cluster.job(job.name)).progress
    assert progress is not None
    assert progress.skipped == (Skipped("fields", 7), Skipped("number", 9))


async def test_who_diverges_on_unscaled_columns_is_told_which(tmp_path: Path) -> None:
    rows = [f"{x},{1e4 * x * x},{x}" for x in np.linspace(-1, 1, 200)]
    (tmp_path / "a.csv").write_text("\n".join(["x,big,y", *rows, ""]))
    job = job_on(tmp_path / "a.csv", "train.workers=1")
    async with running_cluster() as cluster:
        with pytest.raises(TrainingDiverged, match=r'numbers of column "big" are about .*scale = "standard"'):
            await work(WorkerSettings(cluster.address, job, "a", 0.0), WorkerMetrics(), Speaker())
