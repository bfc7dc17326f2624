"""Choose the settings of a case on validation rows, which are training rows; the test rows are not read."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from benchmarks.models_alone import LATE, trained_alone
from benchmarks.models_cases import Case, Measure
from benchmarks.models_choice import Choice, Settings, combinations
from benchmarks.models_data import Data, Numbers
from benchmarks.models_references import columns_of
from benchmarks.models_trial import WORKERS, job_settings
from psworker.data import Batch
from psworker.job import load_job, optimizer_of
from psworker.models import EvaluatedModel, OwnRule, PredictingModel, build_model


def chosen(case: Case, data: Data) -> Choice:
    """Return the best of all that there is to try; the test rows of `data` are to be validation rows.

    What both have, and what the reference has alone, is what is best for the reference on these rows. Then
    ours is trained with that in this process, in synchronous steps and with gradients that are late, and the
    worse of both counts; hashed features are dense columns. What counts is the measure of these rows, but of
    a convex model the objective on the rows that it is trained on: the reference is where that is lowest, and
    a rate that is better because it has not come to rest would be so by chance. Of equals the first is taken.
    """

    def of_reference(tried: Settings) -> float:
        return _cost(case.measure, case.measure.of(data.y_test, case.reference(data, tried)))

    best = _least(combinations({**case.both, **case.theirs}), of_reference)
    choice = Choice({name: best[name] for name in case.both}, {name: best[name] for name in case.theirs})
    x, x_test = columns_of(data)
    train, test = _batch(x, data.y, data), _batch(x_test, data.y_test, data)

    def of_ours(tried: Settings) -> float:
        return max(_trial(case, replace(choice, ours=tried), data, train, test, late) for late in (0, LATE))

    return replace(choice, ours=_least(combinations(case.ours), of_ours))


def _batch(x: Numbers, y: Numbers, data: Data) -> Batch:
    features = x.astype(np.float32)
    labels = y.astype(np.float32) if data.classes is None else y.astype(np.int64)
    return Batch(csr_array(features) if data.categorical else features, labels)


def _trial(case: Case, choice: Choice, data: Data, train: Batch, test: Batch, late: int) -> float:
    """Return what counts, less being better; infinity where training diverges."""
    staleness = math.inf if late else 0.0
    job = load_job(None, job_settings("choice", case, choice, data, Path("train.csv"), staleness))
    model = build_model(job.model, features=train.x.shape[1], classes=data.classes, seed=job.seed)
    assert isinstance(model, PredictingModel)
    assert isinstance(model, EvaluatedModel)
    optimizer = model.optimizer if isinstance(model, OwnRule) else optimizer_of(job.optimizer)
    how = {"epochs": job.train.epochs, "size": job.train.batch_size, "workers": WORKERS, "late": late}
    with np.errstate(over="ignore", invalid="ignore"):
        parameters = trained_alone(model, optimizer, train, **how)
        if not all(np.isfinite(value).all() for value in parameters.values()):
            return math.inf
        if case.convex:
            return model.evaluate(parameters, train)["loss"]
        return _cost(case.measure, case.measure.of(data.y_test, model.predict(parameters, test)))


def _cost(measure: Measure, value: float) -> float:
    return -value if measure.more_is_better else value


def _least(tries: Iterable[Settings], cost: Callable[[Settings], float]) -> Settings:
    every = list(tries)
    return min(every, key=cost) if len(every) > 1 else every[0]
