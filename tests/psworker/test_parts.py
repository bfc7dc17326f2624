from pathlib import Path

from psworker.job import job_from_json, load_job
from psworker.parts import part_of


async def columns_told(path: Path, *overrides: str) -> tuple[str, ...]:
    job = load_job(None, (f'data.source="{path}"', "data.target=y", "model.kind=linear", *overrides))
    part = await part_of(job, 1.0)
    return job_from_json(part.plan.text).data.columns


async def test_the_cluster_is_told_the_columns_that_the_job_leaves_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("b,y,city,a\n1,2,Rome,3\n4,5,Oslo,6\n")
    assert await columns_told(path, 'data.categorical=["city"]') == ("b", "a", "city")
    assert await columns_told(path, 'data.columns=["a"]') == ("a",)


async def test_where_there_are_no_names_nothing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train.libsvm"
    path.write_text("1 1:2 3:4\n0 2:1\n")
    assert await columns_told(path) == ()
