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
from psworker.data import Batch
from psworker.errors import DataError, JobError
from psworker.job import DataSettings, Job, ModelSettings, job_to_json
from psworker.predict import Predictor
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


async def test_what_a_survey_has_found_is_applied(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\n" + "0,0,0\n2,20,1\n" * 4)
    data = DataSettings(source=str(tmp_path / "train.csv"), scale="standard")
    job = replace(JOB, data=data, eval=replace(JOB.eval, holdout=0.0))
    async with running_cluster() as cluster, trained(cluster, job) as worker:
        from psworker.data import open_source

        for name, value in open_source(data, seed=0, holdout=0.0).statistics(0).items():
            await worker.create(f"survey.{name}", value, Add())
        predictor = await Predictor.of(worker)
        # a is 1 and b is 10 in the mean, which is where w (1, -1) changes its mind
        assert (await predictor.predict([[1.2, 10.0], [1.0, 12.0], [2.0, 10.1]])).tolist() == [1, 0, 1]
        (tmp_path / "train.csv").unlink()
        with pytest.raises(DataError):
            await Predictor.of(worker)


def test_without_await() -> None:
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
            predictor = sync.SyncPredictor(ps)
            assert predictor.predict(ROWS).tolist() == [1, 0]
            assert predictor.probabilities(ROWS).shape == (2, 2)
            predictor.refresh()
            assert predictor.predict(ROWS).tolist() == [1, 0]
        loop.call_soon_threadsafe(ended.set)
        training.result()
