from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models_alone import trained_alone
from benchmarks.models_cases import ACCURACY, CASES, R2, RMSE, Case
from benchmarks.models_choice import Choice, combinations, read_choice, write_choice
from benchmarks.models_choosing import chosen
from benchmarks.models_data import Data, load
from benchmarks.models_references import alternating_least_squares, factorization_machine
from benchmarks.models_table import Outcome, markdown_table, text_table
from benchmarks.models_trial import job_settings
from protocol.optimizers import SGD
from psworker.data import Batch, open_source
from psworker.job import load_job, optimizer_of
from psworker.models import KINDS, FactorizationClassifier, LinearRegression, build_model
from tests.psworker.models.alone import trained

LOGISTIC = next(case for case in CASES if case.kind == "logistic")


def outcome(case: Case, reference: float, *ours: float) -> Outcome:
    return Outcome(case, Choice({"l2": 0.01}, {}, {"optimizer.lr": 0.1}), reference, *ours)


def test_the_worse_of_both_runs_counts_and_better_is_not_off() -> None:
    assert outcome(LOGISTIC, 0.8, 0.9, 0.796).worse == pytest.approx(0.005)
    assert not outcome(LOGISTIC, 0.8, 0.9, 0.796).is_off
    assert outcome(LOGISTIC, 0.8, 0.79, 0.9).is_off
    assert not outcome(LOGISTIC, 0.8, 0.9, 0.9).is_off
    assert outcome(LOGISTIC, 0.8, float("nan"), 0.9).is_off
    less = next(case for case in CASES if case.measure is RMSE)
    assert outcome(less, 2.0, 1.0, 2.1).worse == pytest.approx(0.05)
    assert not outcome(less, 2.0, 1.0, 2.0).is_off


def test_the_tables_have_a_row_a_model() -> None:
    found = [outcome(LOGISTIC, 0.8, 0.9, 0.796)]
    assert text_table(found).splitlines()[1].split()[-4:] == ["0.8000", "0.9000", "0.7960", "+0.50%"]
    assert "| LogisticRegression | l2 0.01 | lr 0.1 | accuracy |" in markdown_table(found)
    assert markdown_table(found).splitlines()[2].endswith("| 0.8000 | 0.9000 | 0.7960 | +0.50% |")


def test_every_kind_is_compared_with_what_was_chosen_by_a_job_that_can_be() -> None:
    assert {case.kind for case in CASES} == set(KINDS)
    data = load("wine")
    for case in CASES:
        choice = read_choice(case)
        assert choice.both in combinations(case.both)
        assert choice.theirs in combinations(case.theirs)
        assert choice.ours in combinations(case.ours)
        job = load_job(None, job_settings("x", case, choice, data, Path("x.csv"), 0))
        optimizer_of(job.optimizer)
        classes = None if case.kind in ("mf", "linear") else 2
        build_model(job.model, features=0 if case.hashed else 4, classes=classes, seed=0)


@pytest.mark.parametrize("name", ["wine", "diabetes", "phishing", "values", "pixels", "ratings"])
def test_files_have_the_rows(name: str, tmp_path: Path) -> None:
    data = load(name)
    train, test = data.write(tmp_path)
    assert len(train.read_text().splitlines()) == len(data.y) + 1
    settings = job_settings("x", LOGISTIC, Choice(), data, test, 0)
    source = open_source(load_job(None, settings).data, seed=0, holdout=0.0)
    chunks = [source.read(chunk, "train") for chunk in range(source.chunks)]
    np.testing.assert_allclose(np.concatenate([chunk.y for chunk in chunks]), data.y_test, rtol=1e-6)
    if not data.categorical:
        np.testing.assert_allclose(np.vstack([chunk.x for chunk in chunks]), data.x_test, rtol=1e-6)
    assert ACCURACY.of(data.y_test, data.y_test) == 1.0


def test_alternating_least_squares_finds_what_the_ratings_are_made_of() -> None:
    data = load("ratings")
    error = RMSE.of(data.y_test, alternating_least_squares(3, 0.1, rounds=15)(data, {"l2": 0.05}))
    assert 0.43 < error < 0.5  # the noise is 0.5 of a deviation of 1.17
    assert data.y_test.std() > 0.9


def test_the_written_out_machine_has_the_models_optimum() -> None:
    data = load("phishing")
    theirs = factorization_machine(2, 0.1)(data, {"l2": 0.05})
    model = FactorizationClassifier(data.x.shape[1], 2, 2, 0.05, 0.1)
    train = Batch(data.x.astype(np.float32), data.y.astype(np.int64))
    job = load_job(None, ["optimizer.name=adam", "optimizer.lr=0.01"])
    _, parameters = trained(model, train, optimizer_of(job.optimizer), epochs=40)
    ours = model.predict(parameters, Batch(data.x_test.astype(np.float32), train.y[:0]))
    assert (ours == theirs).mean() > 0.98


def test_validation_rows_are_training_rows() -> None:
    for name in ("wine", "ratings"):
        data = load(name)
        validation = data.validation()
        rows = {tuple(row) for row in data.x}
        assert {tuple(row) for row in np.vstack([validation.x, validation.x_test])} <= rows
        assert len(validation.y) + len(validation.y_test) == len(data.y)


def test_what_is_chosen_is_the_best_of_all_and_kept(tmp_path: Path) -> None:
    data = load("diabetes").validation()
    tried = {"optimizer.lr": (1e-4, 0.01, 1e9)}  # too slow, right, and what diverges

    def of(data: Data, settings: Mapping[str, float]) -> Any:
        return data.y_test * (settings["l2"] == 0.2) * (settings["only"] == 1)

    case = Case(
        "ridge",
        "diabetes",
        R2,
        "",
        of,
        both={"l2": (0.1, 0.2)},
        theirs={"only": (0.0, 1.0)},
        ours=tried,
        epochs=20,
    )
    found = chosen(case, data)
    assert found == Choice({"l2": 0.2}, {"only": 1.0}, {"optimizer.lr": 0.01})
    path = tmp_path / "chosen.json"
    with pytest.raises(ValueError, match="has no settings for ridge on diabetes"):
        read_choice(case, path)
    write_choice(LOGISTIC, Choice(), path)
    write_choice(case, found, path)
    assert read_choice(case, path) == found
    with pytest.raises(ValueError, match="choose them with --choose"):
        read_choice(replace(case, ours={}), path)


def test_late_gradients_are_of_the_parameters_before() -> None:
    batch = Batch(np.ones((4, 1), np.float32), np.ones(4, np.float32))
    model = LinearRegression(1)
    how = {"epochs": 1, "size": 1, "workers": 1}
    prompt = trained_alone(model, SGD(lr=0.1), batch, late=0, **how)
    late = trained_alone(model, SGD(lr=0.1), batch, late=3, **how)
    assert late["w"] == pytest.approx(0.4)  # four times the first gradient
    assert prompt["w"] == pytest.approx(0.5 * (1 - 0.8**4))
    together = trained_alone(model, SGD(lr=0.1), batch, late=0, epochs=1, size=1, workers=4)
    assert together["w"] == pytest.approx(0.1)
