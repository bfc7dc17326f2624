"""The keys of [data]: what they take, what they refuse, and that two workers find the same text."""

from typing import Any

import pytest

from psworker.errors import JobError
from psworker.job import DataSettings, job_from_json, job_to_json, load_job
from psworker.job.data import format_of


def data(*changes: str) -> DataSettings:
    return load_job(None, [f"data.{change}" for change in changes]).data


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ('source="a.csv"', "source", "a.csv"),
        ('source=["a.csv", "b-*.csv"]', "source", ("a.csv", "b-*.csv")),
        ('format="libsvm"', "format", "libsvm"),
        ("hash-buckets=16", "hash_buckets", 16),
        ('missing="mean"', "missing", "mean"),
        ('missing-values=["-", ""]', "missing_values", ("-", "")),
        ('on-error="skip"', "on_error", "skip"),
    ],
)
def test_keys_are_read_and_written(change: str, name: str, value: object) -> None:
    assert getattr(data(change), name) == value
    job = load_job(None, [f"data.{change}"])
    assert job_from_json(job_to_json(job)) == job


def test_keys_of_tables_are_read_and_written() -> None:
    changes = [
        'data.source="a.parquet"', 'data.categorical=["city"]', 'data.text=["review"]', "data.hashed=true",
        'data.scale="standard"', 'data.classes=["ham", "spam"]', "data.class-weights={spam=2, ham=0.5}",
    ]  # fmt: skip
    job = load_job(None, changes)
    assert job.data.class_weights == (("ham", 0.5), ("spam", 2.0))
    assert (job.data.categorical, job.data.text, job.data.hashed) == (("city",), ("review",), True)
    assert job_from_json(job_to_json(job)) == job
    balanced = load_job(None, [*changes[:-1], "data.class-weights=balanced"])
    assert balanced.data.class_weights == "balanced"
    assert job_from_json(job_to_json(balanced)) == balanced


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["source=[]"], "source = []; expected"),
        (['source=["a", 3]'], "expected a list of texts"),
        (["format=xml"], '[data] format = "xml"; expected "auto", "csv", "libsvm"'),
        (["hashed=1"], "[data] hashed = 1; expected true or false"),
        (["hash-buckets=0"], "hash-buckets = 0; expected a whole number, at least 1"),
        (["missing=ignore"], 'missing = "ignore"; expected "error", "zero", "mean" or "skip"'),
        (["scale=max"], 'scale = "max"; expected "none", "standard" or "minmax"'),
        (["on-error=ignore"], 'on-error = "ignore"; expected "stop" or "skip"'),
        (["class-weights={a=0}"], "class-weights = {'a': 0}; expected"),
        (["class-weights={}"], "class-weights = {}; expected"),
        (
            ["class-weights=balanced", "source=a.csv"],
            "class-weights needs the labels; list them in [data] classes",
        ),
        (
            ["class-weights={cat=1}", 'classes=["rat"]', "source=a.csv"],
            '[data] class-weights has "cat"; did you mean "rat"?',
        ),
        (['categorical=["c"]', "source=a.svm"], "needs columns with names: CSV or Parquet"),
        (['text=["c"]', "source=a.npz"], "needs columns with names: CSV or Parquet"),
        (['categorical=["label"]', "source=a.csv"], '[data] categorical has the target "label"'),
        (['categorical=["c"]', 'text=["c"]', "source=a.csv"], 'categorical and text both have "c"'),
        (["hashed=true", "scale=standard", "source=a.svm"], "with hashed = true a libsvm file has none"),
        (["hashed=true"], "are for files"),
        (["partition=hash:user", "source=a.parquet"], "needs the columns of a .csv file"),
    ],
)
def test_what_cannot_be_used_is_named(changes: list[str], message: str) -> None:
    with pytest.raises(JobError) as caught:
        data(*changes)
    assert message in str(caught.value)


def test_a_partition_by_a_column_takes_any_csv() -> None:
    for source in ('"a.csv.gz"', '["a.csv", "b.tsv"]', '"s3://bucket/*.CSV"'):
        assert data(f"source={source}", "partition=hash:user").hash_column == "user"
    assert data('source="a.txt"', 'format="csv"', "partition=hash:user").kind == "csv"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.csv", "csv"),
        ("dir.d/A.CSV.GZ", "csv"),
        ("s3://bucket/part-*.parquet", "parquet"),
        ("a.svmlight.xz", "libsvm"),
        ("a.gz", None),
        ("csv", None),
        ("a.npy", "npy"),
    ],
)
def test_the_format_by_the_name(path: str, expected: Any) -> None:
    assert format_of(path) == expected
