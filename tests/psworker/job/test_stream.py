import math
from pathlib import Path
from typing import Any

import pytest

from psworker.errors import JobError
from psworker.job import Job, job_from_json, job_to_json, load_job

JOB = """
[model]
kind = "logistic"
[data]
columns = ["a", "b"]
target = "y"
[stream]
source = "-"
"""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    (tmp_path / "job.toml").write_text(JOB)

    def loaded(*overrides: str) -> Job:
        return load_job(tmp_path / "job.toml", overrides)

    return loaded


def test_the_defaults(load: Any) -> None:
    stream = load().stream
    assert stream.source == ("-",)
    assert (stream.format, stream.max_wait, stream.drift, stream.on_drift) == ("csv", 0.2, "none", "report")
    assert load().train.staleness == math.inf


def test_a_job_without_the_section_has_no_stream() -> None:
    assert load_job(None, ()).stream is None
    assert "stream" not in job_to_json(load_job(None, ()))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("stream.max-wait=1.5s", "stream.drift=adwin", "stream.on-drift=restart"),
        ("stream.max-wait=1h", "stream.cooldown=0", "train.workers=3"),
        ('stream.source=["tail:a.csv", "tail:b.csv"]',),
        ("stream.source=kafka://[::1]:9092/clicks", 'stream.fields=["a", "b", "y"]'),
        ("stream.source=tcp://host:1", "stream.format=json", "stream.replays=true"),
        ("stream.fields=['a', 'b', 'y']", "data.columns=[]"),
    ],
)
def test_the_text_gives_the_job_back(load: Any, overrides: tuple[str, ...]) -> None:
    job = load(*overrides)
    assert job_from_json(job_to_json(job)) == job


@pytest.mark.parametrize(
    "source",
    [
        "", "x", "--", "tail:", "tcp://host", "tcp://host:1/x", "kafka://host:1", "kafka://host:1/a/b",
        "file.csv", '["-", "tail:x"]', '["tail:a", "tail:a"]', "[]", "3",
    ],
)  # fmt: skip
def test_sources_that_are_none(load: Any, source: str) -> None:
    with pytest.raises(JobError, match=r"^\[stream\] source = .*; expected \"-\", \"tcp://host:port\""):
        load(f"stream.source={source}")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format", "xml", '"csv" or "json"'),
        ("max-wait", "5", 'such as "200ms"'),
        ("max-wait", "2h", 'such as "200ms"'),
        ("forget", "0", "above 0, at most 1"),
        ("decay", "1.1", "above 0, at most 1"),
        ("window", "0", "at least 1"),
        ("drift", "true", '"none" or "adwin" or "page-hinkley"'),
        ("drift-confidence", "0.9", "a probability"),
        ("on-drift", "panic", '"report" or "raise-rate" or "restart"'),
        ("raised-rate", "-1", "a number above 0"),
        ("replays", "1", "true or false"),
        ("fields", "a", "a list of texts"),
    ],
)
def test_values_that_are_none(load: Any, key: str, value: str, expected: str) -> None:
    with pytest.raises(JobError) as caught:
        load(f"stream.{key}={value}")
    assert str(caught.value).startswith(f"[stream] {key} = ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["train.epochs", "train.backup-workers", "eval.every", "eval.holdout", "data.source", "data.chunk-rows"],
)
def test_what_means_nothing_to_a_stream(load: Any, name: str) -> None:
    section, key = name.split(".")
    value = {"data.source": "x.csv", "eval.every": "never", "eval.holdout": "0.5"}.get(name, "1")
    with pytest.raises(JobError, match=rf"^\[{section}\] {key} means nothing to a job with a \[stream\]"):
        load(f"{name}={value}")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["train.staleness=0"], "do not wait for each other's streams"),
        (["data.columns=[]"], "a stream's first line comes too late"),
        (["stream.source=kafka://h:1/t"], "Kafka's records no header"),
        (['stream.fields=["a", "b"]'], 'fields has no "y"'),
        (["stream.format=json", 'stream.fields=["a", "y"]'], "take it out where format is json"),
        (["stream.source=tail:x", "stream.replays=true"], "goes on where it was"),
        (["data.scale=standard"], '[data] scale = "standard" needs a look at all the data'),
        (["data.missing=mean"], "needs a look at all the data"),
    ],
)
def test_what_does_not_go_together(load: Any, overrides: list[str], reason: str) -> None:
    with pytest.raises(JobError) as caught:
        load(*overrides)
    assert reason in str(caught.value)


def test_a_section_without_a_source() -> None:
    with pytest.raises(JobError, match=r'^\[stream\] has no key "source"'):
        load_job(None, ["stream.window=3"])
