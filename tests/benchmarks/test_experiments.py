import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.experiments.command import DOCS, EXPERIMENTS, as_json, measured_part
from benchmarks.experiments.digits import write_digits
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.trials import Setting, Trial, run
from benchmarks.measured_page import with_figures
from psworker.job import load_job

SOME, OTHERS = list(EXPERIMENTS.values())[:2], list(EXPERIMENTS.values())[2:]
EVERY = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))


def results_of(experiment: Experiment) -> Mapping[Setting, list[Trial]]:
    """Made-up figures: of the n-th setting a loss of 1/n, n examples a second."""
    found = {}
    for number, setting in enumerate(experiment.settings, 1):
        curves = {
            "loss": ((1.0, 1.0), (2.0, 0.5), (3.0, 1 / number)),
            "accuracy": ((1.0, 0.5), (2.0, 0.7), (3.0, 1 - 1 / (number + 1))),
        }
        split = {"data": 1.0, "pull": 0.0, "compute": 2.0, "push": 1.0}
        found[setting] = [Trial(seed, 10.0, 10 * number, curves, split) for seed in range(2)]
    return found


@EVERY
def test_its_settings_are_jobs_that_differ(experiment: Experiment) -> None:
    jobs = [
        (load_job(None, ('data.source="digits.csv"', *one.overrides)), one.workers)
        for one in experiment.settings
    ]
    assert len({(repr(job), workers) for job, workers in jobs}) == len(jobs) == len(experiment.settings)
    assert len({one.label for one in experiment.settings}) == len(jobs)


@EVERY
def test_its_table_has_a_cell_for_each_heading_and_what_was_measured(experiment: Experiment) -> None:
    heading, *lines = experiment.table(results_of(experiment))
    assert {len(line) for line in lines} == {len(heading)}
    assert "1.000" in json.dumps(lines) or "0.500" in json.dumps(lines)


@EVERY
def test_its_page_has_marks_and_a_reading_of_what_was_measured(experiment: Experiment) -> None:
    page = (DOCS / f"{experiment.name}.md").read_text(encoding="utf-8")
    measured = measured_part(experiment, results_of(experiment))
    assert measured in with_figures(page, measured)
    assert f"experiments {experiment.name} --docs" in page
    assert f"]({experiment.name}.svg)" in page
    assert len(page.partition("## What one sees")[2]) > 200
    assert (
        f"| [{experiment.name}]({experiment.name}.md) | {experiment.question} |"
        in (DOCS / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "experiment", [*SOME, *(pytest.param(one, marks=pytest.mark.long) for one in OTHERS)]
)
def test_its_picture_is_the_same_for_the_same_figures(experiment: Experiment, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.experiments.picture import save

    for name in ("one.svg", "two.svg"):
        save(experiment, results_of(experiment), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@EVERY
def test_json_has_every_training(experiment: Experiment) -> None:
    document = json.loads(json.dumps(as_json(experiment, results_of(experiment))))
    assert len(document["settings"]) == len(experiment.settings)
    assert document["settings"][0]["trials"][1]["seed"] == 1


@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_digits_are_written_in_the_order_that_is_wanted(order: str, tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.csv", order)  # type: ignore[arg-type]
    with (tmp_path / "digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = [int(row["label"]) for row in rows]
    assert len(rows) == 1797
    assert (labels == sorted(labels)) == (order == "sorted")
    assert {int(row["hand"]) for row in rows} == set(range(20))


def test_a_training_says_how_it_went(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.csv", "shuffled")
    (first, *_) = EXPERIMENTS["together"].settings
    short = Setting("short", (*first.overrides, "train.epochs=2"), workers=2)
    trial = run(short, tmp_path / "digits.csv", seed=3)
    assert [epoch for epoch, _ in trial.curves["accuracy"]] == [1.0, 2.0]
    assert trial.last("accuracy") > 0.5
    assert trial.examples > 2 * 1300
    assert trial.examples_per_second > 0


def test_docs_without_matplotlib_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["experiments", "--docs"]) == 2
    assert "asyncps[plots]" in capsys.readouterr().err


def test_an_experiment_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["experiments", "bathc-rate"])
    assert 'no experiment "bathc-rate"; there are batch-rate' in capsys.readouterr().err
