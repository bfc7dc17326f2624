from pathlib import Path

import numpy as np
import pytest

from benchmarks.models_cases import ACCURACY, CASES, RMSE, Case
from benchmarks.models_data import load
from benchmarks.models_references import alternating_least_squares, factorization_machine
from benchmarks.models_table import Outcome, markdown_table, text_table
from benchmarks.models_trial import job_settings
from psworker.data import Batch, open_source
from psworker.job import load_job, optimizer_of
from psworker.models import KINDS, FactorizationClassifier, build_model
from tests.psworker.models.alone import trained

LOGISTIC = next(case for case in CASES if case.kind == "logistic")


def outcome(case: Case, reference: float, *ours: float) -> Outcome:
    return Outcome(case, reference, *ours)


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
    assert markdown_table(found).splitlines()[2].endswith("| 0.8000 | 0.9000 | 0.7960 | +0.50% |")


def test_every_kind_is_compared_and_none_by_a_job_that_cannot_be() -> None:
    assert {case.kind for case in CASES} == set(KINDS)
    for case in CASES:
        data = load("wine")
        job = load_job(None, job_settings("x", case, data, Path("x.csv"), 0))
        optimizer_of(job.optimizer)
        classes = None if case.kind in ("mf", "linear") else 2
        build_model(job.model, features=0 if case.hashed else 4, classes=classes, seed=0)


@pytest.mark.parametrize("name", ["wine", "diabetes", "phishing", "values", "ratings"])
def test_files_have_the_rows(name: str, tmp_path: Path) -> None:
    data = load(name)
    train, test = data.write(tmp_path)
    assert len(train.read_text().splitlines()) == len(data.y) + 1
    settings = job_settings("x", LOGISTIC, data, test, 0)
    source = open_source(load_job(None, settings).data, seed=0, holdout=0.0)
    chunks = [source.read(chunk, "train") for chunk in range(source.chunks)]
    np.testing.assert_allclose(np.concatenate([chunk.y for chunk in chunks]), data.y_test, rtol=1e-6)
    if not data.categorical:
        np.testing.assert_allclose(np.vstack([chunk.x for chunk in chunks]), data.x_test, rtol=1e-6)
    assert ACCURACY.of(data.y_test, data.y_test) == 1.0


def test_alternating_least_squares_finds_what_the_ratings_are_made_of() -> None:
    data = load("ratings")
    error = RMSE.of(data.y_test, alternating_least_squares(3, 0.05, 0.1, rounds=15)(data))
    assert 0.5 < error < 0.6  # the noise is 0.5
    assert data.y_test.std() > 0.9


def test_the_written_out_machine_has_the_models_optimum() -> None:
    data = load("phishing")
    theirs = factorization_machine(2, 0.05, 0.1)(data)
    model = FactorizationClassifier(data.x.shape[1], 2, 2, 0.05, 0.1)
    train = Batch(data.x.astype(np.float32), data.y.astype(np.int64))
    job = load_job(None, ["optimizer.name=adam", "optimizer.lr=0.01"])
    _, parameters = trained(model, train, optimizer_of(job.optimizer), epochs=40)
    ours = model.predict(parameters, Batch(data.x_test.astype(np.float32), train.y[:0]))
    assert (ours == theirs).mean() > 0.98
