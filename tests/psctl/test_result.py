import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from protocol.errors import UnknownJob
from protocol.json_text import json_text
from protocol.status import ClusterStatus, Evaluation, Mean
from psctl.result import result_of, result_table
from psworker.job import load_job

MakeStatus = Callable[..., ClusterStatus]
JOB = load_job(None, ())


def test_the_json_has_exactly_the_promised_keys(make_status: MakeStatus) -> None:
    text = json_text(result_of(make_status(), JOB))
    assert "\n" not in text
    assert json.loads(text) == {
        "job": "digits",
        "model": "softmax",
        "servers": 1,
        "workers": 2,
        "examples": 4500,
        "steps": 31,
        "seconds": 6.0,
        "loss": 0.6,
        "metrics": {"accuracy": 0.75},
        "checkpoint": None,
        "died": 0,
        "stopped": "",
        "skipped": {},
        "returns": [],
        "rate": 1.0,
        "warnings": [],
    }


def test_a_job_that_was_stopped_early_says_why(make_status: MakeStatus) -> None:
    status = make_status()
    (job,) = status.jobs
    assert job.progress is not None
    early = replace(job.progress, epoch=7, stopped="loss has not improved in 3 evaluations")
    result = result_of(replace(status, jobs=(replace(job, progress=early),)), JOB)
    assert result.stopped == "after epoch 7: loss has not improved in 3 evaluations"
    shown = io.StringIO()
    Console(file=shown, width=100).print(result_table(result))
    assert result.stopped in shown.getvalue()


def test_without_an_evaluation_the_loss_is_that_of_training(make_status: MakeStatus) -> None:
    result = result_of(make_status(evaluations=()), JOB)
    assert result.loss == 0.5
    assert result.metrics == {}


def test_an_evaluation_without_a_loss(make_status: MakeStatus) -> None:
    result = result_of(make_status(evaluations=(Evaluation(1, 5, (Mean("mse", 2.0),)),)), JOB)
    assert result.loss == 0.5
    assert result.metrics == {"mse": 2.0}


def test_numbers_that_json_has_not(make_status: MakeStatus) -> None:
    means = (Mean("loss", math.nan), Mean("up", math.inf), Mean("down", -math.inf))
    text = json_text(result_of(make_status(evaluations=(Evaluation(1, 5, means),)), JOB))
    result = json.loads(text, parse_constant=pytest.fail)
    assert result["loss"] is None
    assert result["metrics"] == {"up": "inf", "down": "-inf"}


def test_a_job_that_the_cluster_does_not_know(make_status: MakeStatus) -> None:
    status = make_status()
    with pytest.raises(UnknownJob, match="digits"):
        result_of(replace(status, jobs=()), JOB)
    with pytest.raises(UnknownJob):
        result_of(replace(status, jobs=(replace(status.jobs[0], progress=None),)), JOB)


def test_the_table_names_every_figure(make_status: MakeStatus) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    with console.capture() as captured:
        console.print(result_table(result_of(make_status(), JOB)))
    text = captured.get()
    assert "died" not in text
    assert "checkpoint" not in text
    for fact in (
        "digits (softmax)",
        "1 server, 2 workers",
        "4,500 (750/s)",
        "31",
        "6.0 s",
        "0.6000",
        "0.7500",
    ):
        assert fact in text


def test_workers_that_died_are_counted(make_status: MakeStatus) -> None:
    status = make_status(names=("a", "b", "c"))
    job = status.jobs[0]
    workers = (replace(job.workers[0], state="dead"), *job.workers[1:])
    result = result_of(replace(status, jobs=(replace(job, workers=workers),)), JOB)
    assert (result.workers, result.died) == (3, 1)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    with console.capture() as captured:
        console.print(result_table(result))
    assert "1 server, 3 workers (1 died)" in captured.get()


def test_what_went_wrong_on_the_way_is_in_table_and_json(troubled: ClusterStatus) -> None:
    result = result_of(troubled, JOB, lambda: "numbers of column 3 are large")
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as captured:
        console.print(result_table(result))
    for fact in (
        "1,312 (12 fields, 1,300 number)",
        "2 times, last from loss nan in step 1,200 to checkpoint 3",
        "x 0.25",
    ):
        assert fact in captured.get()
    found = json.loads(json_text(result), parse_constant=pytest.fail)
    assert found["skipped"] == {"fields": 12, "number": 1300}
    assert found["returns"] == [
        {"step": 40, "loss": 1e30, "checkpoint": 1, "timeline": 2, "rate": 0.5},
        {"step": 1200, "loss": None, "checkpoint": 3, "timeline": 3, "rate": 0.25},
    ]
    assert found["rate"] == 0.25
    assert found["warnings"][0].startswith("r2 is -468")
    assert found["warnings"][1] == "numbers of column 3 are large"
