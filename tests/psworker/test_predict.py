import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import JobMismatch, UnknownJob
from protocol.messages import Plan
from protocol.optimizers import SGD, Add
from psworker import sync
from psworker.client import Client, connect
from psworker.data import Batch, open_source
from psworker.errors import JobError
from psworker.job import DataSettings, Job, ModelSettings, job_to_json
from psworker.predict import Predictor, SyncPredictor, _adjustment_of
from tests.cluster import Cluster, cluster_in_thread, running_cluster

JOB = Job(ModelSettings("logistic"), name="default", data=DataSettings(columns=("a", "b"), source="none.csv"))
ROWS = [[3.0, 1.0], [1.0, 3.0]]


@asynccontextmanager
async def trained(cluster: Cluster, job: Job = JOB) -> AsyncIterator[Client]:
    """A worker that has made a logistic regression of w = (1, -1), b = 0."""
    async with connect(cluster.address, plan=Plan(job_to_json(job), 1, 1, 0, 0), staleness=0) as client:
        await client.create("w", np.array([1, -1], np.float32), SGD(lr=1.0))
        await client.create("b", np.zeros(1, np.float32), SGD(lr=1.0))
        yield client


async def test_an_observer_predicts_and_nobody_waits_for_it() -> None:
    async with (
        running_cluster(2) as cluster,
        trained(cluster) as worker,
        connect(cluster.address, "default", observe=True) as ps,
    ):
        predictor = await Predictor.of(ps)
        assert (await predictor.predict(ROWS)).tolist() == [1, 0]
        found = await predictor.probabilities(ROWS)
        assert found.tolist() == [
            pytest.approx([0.1192, 0.8808], abs=1e-4),
            pytest.approx([0.8808, 0.1192], abs=1e-4),
        ]
        await worker.push_pull({"w": np.ones(2, np.float32)})  # staleness is 0, and it returns
        assert [one.name for one in (await cluster.job()).workers] == [worker.name]


async def test_parameters_are_pulled_again_when_they_are_old() -> None:
    async with running_cluster() as cluster, trained(cluster) as worker:
        old, new = await Predictor.of(worker, max_age=3600), await Predictor.of(worker, max_age=0)
        for predictor in (old, new):
            assert (await predictor.predict(ROWS)).tolist() == [1, 0]
        await worker.push_pull({"w": np.array([2, -2], np.float32)})
        assert (await old.predict(ROWS)).tolist() == [1, 0]
        assert (await new.predict(ROWS)).tolist() == [0, 1]
        old.refresh()
        assert (await old.predict(ROWS)).tolist() == [0, 1]


async def test_rows_of_another_number_of_features() -> None:
    async with running_cluster() as cluster, trained(cluster) as worker:
        predictor = await Predictor.of(worker)
        with pytest.raises(JobError, match=r"of shape \(1, 3\); expected \(n, features\): a, b"):
            await predictor.predict([[1.0, 2.0, 3.0]])
        assert (await predictor.predict(ROWS)).tolist() == [1, 0]
        with pytest.raises(JobError, match=r"of shape \(2,\); expected \(n, features\)"):
            await predictor.predict([1, 2])
        with pytest.raises(JobError, match=r"the rows are not numbers: .*'x'"):
            await predictor.predict([["x", "2"]])


async def test_what_the_model_cannot_tell() -> None:
    job = replace(JOB, model=ModelSettings("linear"))
    async with running_cluster() as cluster, trained(cluster, job) as worker:
        predictor = await Predictor.of(worker)
        assert (await predictor.predict(ROWS)).tolist() == [2, -2]
        with pytest.raises(JobError, match="has no method probabilities"):
            await predictor.probabilities(ROWS)


async def test_code_is_not_run_because_a_server_says_so() -> None:
    job = replace(JOB, model=ModelSettings("os:popen"))
    async with running_cluster() as cluster, trained(cluster, job) as worker:
        with pytest.raises(JobError, match='kind = "os:popen" is what the cluster says'):
            await Predictor.of(worker)


async def test_a_job_file_is_of_the_job_that_the_cluster_has() -> None:
    async with running_cluster() as cluster, trained(cluster) as worker:
        unlisted = replace(JOB, data=replace(JOB.data, columns=(), source="elsewhere.csv"))
        predictor = await Predictor.of(worker, unlisted)
        assert predictor.job.data.columns == ("a", "b"), "as the cluster's was trained on"
        assert (await predictor.predict(ROWS)).tolist() == [1, 0]
        scaled = replace(JOB, data=replace(JOB.data, scale="standard"))
        with pytest.raises(JobMismatch, match=r"\[data\] scale is .standard. in one and .none. in the other"):
            await Predictor.of(worker, scaled)


async def test_a_job_file_need_not_say_how_wide_the_rows_are() -> None:
    job = replace(JOB, data=DataSettings(source="train.svm", dimensions=2))
    async with running_cluster() as cluster, trained(cluster, job) as worker:
        predictor = await Predictor.of(worker, replace(JOB, data=DataSettings(source="train.svm")))
        assert predictor.job.data.dimensions == 2
        with pytest.raises(JobMismatch, match="dimensions"):
            await Predictor.of(worker, replace(JOB, data=DataSettings(source="train.svm", dimensions=3)))


async def test_a_job_without_a_file() -> None:
    async with running_cluster() as cluster, connect(cluster.address) as worker:
        with pytest.raises(UnknownJob, match="made without a job file"):
            await Predictor.of(worker)


async def test_hashed_features() -> None:
    data = DataSettings(columns=("a",), hashed=True, source="none.csv")
    job = replace(JOB, data=data)
    keys = np.array([7, 9], np.uint64)
    async with (
        running_cluster() as cluster,
        connect(cluster.address, plan=Plan(job_to_json(job), 1, 1, 0, 0)) as worker,
    ):
        await worker.create_sparse("w", 1, Add())
        await worker.create("b", np.zeros(1, np.float32), Add())
        await worker.table("w").push(keys, np.array([[1], [-1]], np.float32))
        batch = Batch(np.array(ROWS, np.float32), np.zeros(2, np.float32), keys)
        assert (await (await Predictor.of(worker)).predict(batch)).tolist() == [1, 0]


async def test_what_a_survey_has_found_is_applied_without_the_training_data(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\n" + "0,0,0\n2,20,1\n" * 4)
    data = DataSettings(source=str(tmp_path / "train.csv"), columns=("a", "b"), scale="standard")
    job = replace(JOB, data=data, eval=replace(JOB.eval, holdout=0.0))
    statistics = open_source(data, seed=0, holdout=0.0).statistics(0)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "new.csv").write_text("b,a\n10,1.2\n12,1.0\n")
    async with running_cluster() as cluster, trained(cluster, job) as worker:
        for name, value in statistics.items():
            await worker.create(f"survey.{name}", value, Add())
        predictor = await Predictor.of(worker)
        # a is 1 and b is 10 in the mean, which is where w (1, -1) changes its mind
        assert (await predictor.predict([[1.2, 10.0], [1.0, 12.0], [2.0, 10.1]])).tolist() == [1, 0, 1]
        (piece,) = predictor.read(str(tmp_path / "new.csv"))
        assert (await predictor.predict(piece.batch)).tolist() == [1, 0]
        fewer = replace(job, data=replace(data, columns=("a",)))
        with pytest.raises(JobError, match="1 columns of numbers, and the survey of the job's data found 2"):
            await _adjustment_of(worker, fewer)


async def test_columns_without_names_are_scaled_too(tmp_path: Path) -> None:
    (tmp_path / "train.svm").write_text("0 1:0 2:0\n1 1:2 2:20\n" * 4)
    (tmp_path / "new.svm").write_text("1:1.2 2:10\n1:1 2:12\n")
    np.save(tmp_path / "new.npy", [[1.2, 10.0], [1.0, 12.0]])
    data = DataSettings(source=str(tmp_path / "train.svm"), dimensions=2, scale="standard")
    statistics = open_source(data, seed=0, holdout=0.0).statistics(0)
    (tmp_path / "train.svm").unlink()
    async with running_cluster() as cluster, trained(cluster, replace(JOB, data=data)) as worker:
        for name, value in statistics.items():
            await worker.create(f"survey.{name}", value, Add())
        predictor = await Predictor.of(worker)
        for piece in predictor.read([str(tmp_path / "new.svm"), str(tmp_path / "new.npy")]):
            assert (await predictor.predict(piece.batch)).tolist() == [1, 0]
        with pytest.raises(
            JobError, match=r"of shape \(1, 3\); expected \(n, 2\), as the job was trained on"
        ):
            await predictor.predict([[1.0, 2.0, 3.0]])


async def test_a_survey_that_is_not_there() -> None:
    job = replace(JOB, data=replace(JOB.data, missing="mean"))
    async with running_cluster() as cluster, trained(cluster, job) as worker:
        with pytest.raises(JobError, match=r'no tensor "survey.rows" of it: .*; train it again'):
            await Predictor.of(worker)


async def test_a_model_that_nobody_has_begun() -> None:
    plan = Plan(job_to_json(JOB), 1, 1, 0, 0)
    async with running_cluster() as cluster, connect(cluster.address, plan=plan) as worker:
        with pytest.raises(UnknownJob, match=r"no parameters yet: no worker has made them; ask again when"):
            await Predictor.of(worker)
        await worker.create("survey.rows", np.zeros(1), Add())
        with pytest.raises(UnknownJob, match=r"no parameters yet: they look at the data first"):
            await Predictor.of(worker)
        await worker.create("w", np.zeros(2, np.float32))
        predictor = await Predictor.of(worker)
        with pytest.raises(
            UnknownJob, match=r"not all parameters of \[model\] logistic: .*b.*; ask again when"
        ):
            await predictor.predict(ROWS)


async def test_numbers_that_are_missing() -> None:
    rows = [[3.0, 1.0], [np.nan, 3.0]]
    async with running_cluster() as cluster, trained(cluster) as worker:
        with pytest.raises(JobError, match="row 1 has no number"):
            await (await Predictor.of(worker)).predict(rows)
    filled = replace(JOB, data=replace(JOB.data, missing="zero"))
    async with running_cluster() as cluster, trained(cluster, filled) as worker:
        assert (await (await Predictor.of(worker)).predict(rows)).tolist() == [1, 0]


def test_without_await(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("a,b\n3,1\n1,3\n")
    with cluster_in_thread() as cluster:

        async def train() -> None:
            async with trained(cluster.cluster):
                started.set()
                await ended.wait()

        started, ended = asyncio.Event(), asyncio.Event()
        loop = cluster._loop
        training = asyncio.run_coroutine_threadsafe(train(), loop)
        cluster.run(started.wait())
        with sync.connect(cluster.address, "default", observe=True) as ps:
            predictor = SyncPredictor(ps)
            assert predictor.predict(ROWS).tolist() == [1, 0]
            assert predictor.probabilities(ROWS).shape == (2, 2)
            assert predictor.job == JOB
            (piece,) = predictor.read(str(tmp_path / "new.csv"))
            assert predictor.predict(piece.batch).tolist() == [1, 0]
            predictor.refresh()
            assert predictor.predict(ROWS).tolist() == [1, 0]
        loop.call_soon_threadsafe(ended.set)
        training.result()
