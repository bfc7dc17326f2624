"""Train one model on a cluster of real processes, and see what it predicts of rows that nobody trained on."""

import asyncio
import json
import math
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.models_cases import Case
from benchmarks.models_choice import Choice
from benchmarks.models_data import Data
from psctl import LocalCluster
from psctl.child import Child, stop_all
from psworker import connect
from psworker.data import Batch, Source, open_source
from psworker.job import Job, load_job, optimizer_of
from psworker.models import KMeans, Model, PredictingModel, build_model
from psworker.served import ServedModel

SERVERS, WORKERS = 2, 2
_CHUNKS = 4
_WITHIN = 900.0  # seconds; for a machine that has much else to do
_LOOK_EVERY = 0.02  # seconds
_STOP_WITHIN = 5.0  # seconds

Array = npt.NDArray[Any]


def ours(
    cluster: LocalCluster, case: Case, choice: Choice, data: Data, files: tuple[Path, Path]
) -> tuple[float, float]:
    """Return the measure of the test rows after training synchronously, and without any bound.

    Raises ProcessFailed where a worker fails, TimeoutError where they do not end in time.
    """
    synchronous, asynchronous = (
        case.measure.of(data.y_test, _trained(cluster, case, choice, data, files, staleness))
        for staleness in (0.0, math.inf)
    )
    return synchronous, asynchronous


def reference(case: Case, choice: Choice, data: Data, train: Path) -> float:
    """Return the measure of the test rows by what the case is compared with."""
    if case.kind != "kmeans":
        return case.measure.of(data.y_test, case.reference(data, {**choice.both, **choice.theirs}))
    from sklearn.cluster import KMeans

    centres = _first_centres(case, data, train)
    theirs = KMeans(len(centres), init=centres, n_init=1).fit(data.x)
    return case.measure.of(data.y_test, np.square(theirs.transform(data.x_test).min(axis=1)))


def _trained(
    cluster: LocalCluster,
    case: Case,
    choice: Choice,
    data: Data,
    files: tuple[Path, Path],
    staleness: float,
) -> Array:
    """Train with two workers, and return what is predicted of the test rows.

    Of k-means that is the squared distance of each row to its centre.
    """
    job_name = f"models-{secrets.token_hex(4)}"
    settings = job_settings(job_name, case, choice, data, files[0], staleness)
    with ExitStack() as stack:
        workers = [_start(cluster.address, f"{job_name}-{number}", settings) for number in range(WORKERS)]
        stack.callback(stop_all, workers, _STOP_WITHIN)
        _wait(cluster, workers)
    job = load_job(None, settings)
    return asyncio.run(_predicted(cluster.address, job, files[1]))


def _first_centres(case: Case, data: Data, train: Path) -> Array:
    """Return where the workers' k-means begins."""
    source, model = _opened(load_job(None, job_settings("start", case, Choice(), data, train, 0)), str(train))
    assert isinstance(model, KMeans)
    first = model.prepared(source.read(0, "train")).first
    assert first is not None
    return first


def job_settings(
    name: str, case: Case, choice: Choice, data: Data, train: Path, staleness: float
) -> tuple[str, ...]:
    """Return the job as `section.key=value`.

    Synchronous workers have chunks of their own, in an order that the seed says, so that it does not matter
    who is faster. Asynchronous ones lease them: the slower one would end alone, on its own rows.
    """
    partition = "leases" if math.isinf(staleness) else "round-robin"
    chunk_rows = -(-len(data.y) // _CHUNKS)
    epochs = int(choice.ours.get("train.epochs", case.epochs))
    steps = epochs * (_CHUNKS // WORKERS) * -(-chunk_rows // case.batch_size)  # of each worker
    falling = ('schedule="cosine"', f"schedule-steps={steps}") if case.falls else ()
    return (
        f"job.name={name}", "job.seed=0", f"model.kind={case.kind}",
        *(f"model.{one}" for one in case.settings),
        *(f"model.{name}={value}" for name, value in choice.both.items()),
        f"data.source={json.dumps(str(train))}", f"data.chunk-rows={chunk_rows}",
        f"data.classes={json.dumps([str(number) for number in range(data.classes or 0)])}",
        f"data.categorical={json.dumps(data.columns if data.categorical else [])}",
        f"data.hashed={json.dumps(case.hashed)}", f"data.partition={partition}",
        f"train.workers={WORKERS}", f"train.batch-size={case.batch_size}", f"train.epochs={epochs}",
        f'train.staleness={"inf" if math.isinf(staleness) else int(staleness)}',
        *(f"optimizer.{one}" for one in (*case.optimizer, *falling)),
        *(f"{name}={value}" for name, value in choice.ours.items() if name != "train.epochs"),
        "eval.every=never", "eval.holdout=0",
    )  # fmt: skip


def _start(address: str, name: str, settings: Sequence[str]) -> Child:
    flags = [flag for one in settings for flag in ("--set", one)]
    return Child(
        name,
        (
            sys.executable, "-m", "psworker", "--server", address, "--name", name, "--metrics-port", "0",
            "--stop-with-stdin", *flags,
        ),
    )  # fmt: skip


def _wait(cluster: LocalCluster, workers: Sequence[Child]) -> None:
    deadline = time.monotonic() + _WITHIN
    while any(worker.returncode is None for worker in workers):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{workers[0].name} did not end within {_WITHIN:g} s")
        cluster.poll()
        time.sleep(_LOOK_EVERY)
    for worker in workers:
        if worker.returncode:
            raise worker.failure()


def _opened(job: Job, path: str) -> tuple[Source, Model]:
    source = open_source(replace(job.data, source=path), seed=job.seed, holdout=0.0)
    model = build_model(job.model, features=source.features, classes=source.classes, seed=job.seed)
    return source, model


async def _predicted(address: str, job: Job, test: Path) -> Array:
    source, model = _opened(job, str(test))
    assert isinstance(model, PredictingModel)
    found = []
    async with connect(address, job.name, observe=True) as client:
        served = ServedModel(client, model, optimizer_of(job.optimizer), hashed=source.hashed)
        for chunk in range(source.chunks):
            batch = source.read(chunk, "train")
            if len(batch):
                found.append(_outcome(model, await served.pull(batch.keys), batch))
    return np.concatenate(found)


def _outcome(model: PredictingModel, parameters: dict[str, Array], batch: Batch) -> Array:
    predicted = model.predict(parameters, batch)
    if isinstance(model, KMeans):
        return np.asarray(np.square(batch.x - model.centres(parameters)[predicted]).sum(axis=1))
    return predicted
