import asyncio
from pathlib import Path

from protocol.daemon.logs import Speaker
from protocol.status import ClusterStatus
from psworker.daemon import WorkerSettings, work
from psworker.job import DataSettings, Job, job_from_json, load_job
from psworker.metrics import WorkerMetrics
from psworker.parts import part_of
from tests.cluster import running_cluster


async def told(job: Job) -> DataSettings:
    """What the cluster hears of the data."""
    part = await part_of(job, 1.0)
    again = await part_of(job_from_json(part.plan.text), 1.0)
    assert again.plan == part.plan, "who has the job from the cluster tells it the same"
    return job_from_json(part.plan.text).data


def on(path: Path, *overrides: str) -> Job:
    return load_job(None, (f'data.source="{path}"', "data.target=y", "model.kind=linear", *overrides))


async def columns_told(path: Path, *overrides: str) -> tuple[str, ...]:
    return (await told(on(path, *overrides))).columns


async def test_the_cluster_is_told_the_columns_that_the_job_leaves_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("b,y,city,a\n1,2,Rome,3\n4,5,Oslo,6\n")
    assert await columns_told(path, 'data.categorical=["city"]') == ("b", "a", "city")
    assert await columns_told(path, 'data.columns=["a"]') == ("a",)


async def test_where_there_are_no_names_the_width_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train.libsvm"
    path.write_text("1 1:2 3:4\n0 2:1\n")
    found = await told(on(path))
    assert (found.columns, found.dimensions) == ((), 3)
    assert (await told(on(path, "data.hashed=true"))).dimensions is None


async def test_the_columns_of_a_stream_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "stream.csv").write_text("")
    (tmp_path / "job.toml").write_text(
        '[model]\nkind = "linear"\n[data]\ntarget = "y"\n'
        f'[stream]\nsource = "tail:{tmp_path}/stream.csv"\nfields = ["b", "y", "a"]\n'
    )
    assert (await told(load_job(tmp_path / "job.toml", ()))).columns == ("b", "a")


JOB = """
[job]
name = "stream"
[model]
kind = "linear"
[data]
columns = ["x"]
target = "y"
on-error = "skip"
[stream]
source = "tail:{path}"
"""


async def test_what_a_stream_leaves_out_is_in_the_metrics_and_the_status(tmp_path: Path) -> None:
    path = tmp_path / "stream.csv"
    path.write_text("x,y\n1,1\nwhat,0\n2,0\n3\n4,1\n")
    (tmp_path / "job.toml").write_text(JOB.format(path=path))
    job, metrics = load_job(tmp_path / "job.toml", ()), WorkerMetrics()

    def told(status: ClusterStatus) -> bool:
        assert not working.done()
        return any(worker.skipped == 2 for one in status.jobs for worker in one.workers)

    async with running_cluster() as cluster:
        settings = WorkerSettings(cluster.address, job, "a", 5.0)
        working = asyncio.create_task(work(settings, metrics, Speaker()))
        await cluster.until(told)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    value = metrics.registry.get_sample_value
    assert value("psworker_skipped_rows_total", {"reason": "number"}) == 1
    assert value("psworker_skipped_rows_total", {"reason": "fields"}) == 1
