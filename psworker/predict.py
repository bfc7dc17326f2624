"""Predictions with a job's model while others train it.

async with connect("127.0.0.1:7070", "clicks", observe=True) as ps:
    predictor = await Predictor.of(ps)
    classes = await predictor.predict(rows)

An observer is no worker: nobody waits for it, whatever the job's staleness.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import JobMismatch, UnknownJob
from protocol.optimizers import SGD
from psworker.client import Client
from psworker.data import Batch, open_source
from psworker.data.survey import Adjustment
from psworker.data.tabular import TabularSource
from psworker.errors import JobError
from psworker.job import Job, difference, job_from_json, job_to_json
from psworker.models import Model, build_model
from psworker.models.calls import predictions_of, probabilities_of
from psworker.models.model import PredictingModel, ProbableModel
from psworker.online.rows import Rows
from psworker.served import ServedModel
from psworker.surveying import totals_of

__all__ = ["Predictor"]

Array = npt.NDArray[Any]
T = TypeVar("T")

_DIGITS: Final = 10  # classes of the demo's data, which are known without loading it


class Predictor:
    """A job's model, whose parameters are pulled again when they are older than ``max_age``.

    Made by ``Predictor.of``.

    Attributes:
        job: what is trained.
    """

    def __init__(self, client: Client, job: Job, adjustment: Adjustment | None, max_age: float) -> None:
        self.job = job
        self._client = client
        self._adjustment = adjustment
        self._max_age = max_age
        self._features: int | None = None
        self._served: ServedModel | None = None
        self._model: Model | None = None
        self._parameters: Mapping[str, Array] = {}
        self._pulled = -math.inf
        self._beginning = asyncio.Lock()

    @classmethod
    async def of(cls, client: Client, job: Job | None = None, *, max_age: float = 1.0) -> Predictor:
        """Return the model of a client's job.

        Args:
            client: of the job, as an observer or a worker.
            job: as its file says; needed where the model is a class of one's own. None: as the cluster says.
            max_age: seconds that parameters are used; 0: those of each call are pulled for it.

        Raises:
            UnknownJob: the job was made without a job file, so nobody knows its model.
            JobError: the model is a class of one's own.
            JobMismatch: the job has another model, or makes other features of the data, than its file says.
            DataError: rows are scaled as the training data asks, and that cannot be read here.
            PSError: as ``Client.pull``.
        """
        job = _job_of(client) if job is None else _agreed(client, job)
        return cls(client, job, await _adjustment_of(client, job), max_age)

    async def predict(self, rows: npt.ArrayLike | Batch) -> Array:
        """Return (n,) class indices, int64, or numbers, float32, of (n, features) rows.

        Rows are as the data has them, with the features in the order of the job's columns: they are scaled
        here, if the job says so. A ``Batch`` is taken as it is, its labels are not looked at; hashed features
        need one, with keys.

        Raises:
            JobError: the model cannot predict, or is not of so many features.
            PSError: as ``Client.pull``.
        """
        return await self._computed(rows, _predicted)

    async def probabilities(self, rows: npt.ArrayLike | Batch) -> Array:
        """Return (n, classes) probabilities; arguments and errors are those of ``predict``."""
        return await self._computed(rows, _probable)

    def refresh(self) -> None:
        """Have the next call pull the parameters, whatever their age."""
        self._pulled = -math.inf

    def rows(
        self, *, json: bool = False, fields: tuple[str, ...] = (), columns: tuple[str, ...] = ()
    ) -> Rows:
        """Return what makes batches of lines, which need no label; ``columns``, where the job lists none."""
        data = self.job.data
        if not data.columns and not data.categorical and not data.text:
            data = replace(data, columns=columns)
        return Rows(replace(data, class_weights="none"), "the input", json, fields)

    @property
    def adjustment(self) -> Adjustment | None:
        """What is done with numbers of rows before the model sees them, as a survey has said."""
        return self._adjustment

    async def _computed(
        self, rows: npt.ArrayLike | Batch, compute: Callable[[Model, Mapping[str, Array], Batch], Array]
    ) -> Array:
        batch = rows if isinstance(rows, Batch) else self._batch(rows)
        async with self._beginning:
            model, parameters = await self._ready(batch)
        return await asyncio.to_thread(compute, model, parameters, batch)

    def _batch(self, rows: npt.ArrayLike) -> Batch:
        try:
            x = np.ascontiguousarray(rows, np.float32)
        except ValueError as error:
            raise JobError(f"the rows are not numbers: {error}") from error
        wanted = len(self.job.data.columns)
        if x.ndim != 2 or (wanted and not self._made_of_texts and x.shape[1] != wanted):
            columns = f": {', '.join(self.job.data.columns)}" if wanted else ""
            raise JobError(f"the rows are of shape {x.shape}; expected (n, features){columns}")
        if self._adjustment is not None:
            x = self._adjustment.numbers(x)
        return Batch(x, np.zeros(len(x), np.float32))

    @property
    def _made_of_texts(self) -> bool:
        return bool(self.job.data.categorical or self.job.data.text)

    async def _ready(self, batch: Batch) -> tuple[Model, Mapping[str, Array]]:
        """Return the model, and its parameters for a batch."""
        features = 0 if batch.keys is not None else batch.x.shape[1]
        if self._served is None or features != self._features:
            self._begin(features)
        assert self._served is not None  # noqa: S101 (it has begun)
        assert self._model is not None  # noqa: S101
        if batch.keys is not None:
            return self._model, await self._served.pull(batch.keys)
        now = asyncio.get_running_loop().time()
        if now - self._pulled >= self._max_age:
            pulled = await self._served.pull()
            _check_shapes(features, self._model.parameters(), pulled)
            self._parameters, self._pulled = pulled, now
        return self._model, self._parameters

    def _begin(self, features: int) -> None:
        data = self.job.data
        classes = len(data.classes) or (_DIGITS if data.source == "digits" else None)
        self._model = build_model(self.job.model, features=features, classes=classes, seed=self.job.seed)
        self._served = ServedModel(self._client, self._model, SGD(), hashed=not features)
        self._features, self._pulled = features, -math.inf


def _check_shapes(features: int, expected: Mapping[str, Array], pulled: Mapping[str, Array]) -> None:
    for name, value in pulled.items():
        if value.shape != expected[name].shape:
            raise JobError(
                f"the rows have {features} features, for which {name!r} would be of shape "
                f"{expected[name].shape}; the job's is of shape {value.shape}: "
                "give each column that it was trained on"
            )


def _predicted(model: Model, parameters: Mapping[str, Array], batch: Batch) -> Array:
    if not isinstance(model, PredictingModel):
        raise JobError(f"[model] {type(model).__name__} has no method predict")
    return predictions_of(model, parameters, batch)


def _probable(model: Model, parameters: Mapping[str, Array], batch: Batch) -> Array:
    if not isinstance(model, ProbableModel):
        raise JobError(f"[model] {type(model).__name__} has no method probabilities; leave them out")
    return probabilities_of(model, parameters, batch)


def _job_of(client: Client) -> Job:
    if client.plan is None:
        raise UnknownJob(
            "the job was made without a job file, so its model is not known: give the job",
            field="job",
            value=client.job,
        )
    job = job_from_json(client.plan.text)
    if ":" in job.model.kind:  # code is run because its operator says so, never because a server does
        raise JobError(
            f'[model] kind = "{job.model.kind}" is what the cluster says; a class of one\'s own is only '
            "taken from a job file: give it"
        )
    return job


def _agreed(client: Client, job: Job) -> Job:
    """Return the job of a file, with the columns that the cluster's was trained on.

    Where the data is may differ: it is read for its scale only.
    """
    if client.plan is None:
        return job
    theirs = job_from_json(client.plan.text)
    data = replace(job.data, source=theirs.data.source, columns=job.data.columns or theirs.data.columns)
    same = replace(theirs, model=job.model, data=data)
    if same != theirs:
        what = difference(job_to_json(same), client.plan.text)
        raise JobMismatch(f"the file is not of the cluster's job: {what}", field="job", value=job.name)
    return replace(job, data=replace(data, source=job.data.source))


async def _adjustment_of(client: Client, job: Job) -> Adjustment | None:
    """Return how rows are scaled and filled, as survey and training data say; None: they are not."""
    if job.data.scale == "none" and job.data.missing != "mean":
        return None
    source = await asyncio.to_thread(
        open_source, job.data, seed=job.seed, holdout=job.eval.held_out, parts=job.parts
    )
    informed = source.informed(await totals_of(client))
    if not isinstance(informed, TabularSource) or informed.adjustment is None:
        return None
    return replace(informed.adjustment, weights=None)  # which are for learning
