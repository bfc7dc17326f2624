"""Predictions with a job's model while others train it.

async with connect("127.0.0.1:7070", "clicks", observe=True) as ps:
    predictor = await Predictor.of(ps)
    classes = await predictor.predict(rows)

An observer is no worker: nobody waits for it, whatever the job's staleness. All that has to be known is on
the servers, the parameters, the job and what a survey has found; what was trained on is not read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import JobMismatch, UnknownJob, UnknownTensor
from protocol.optimizers import SGD
from protocol.tables import Keys
from psworker.client import Client
from psworker.data import Batch
from psworker.data.survey import Adjustment, survey_of
from psworker.errors import JobError
from psworker.job import Job, difference, job_from_json, job_to_json
from psworker.models import Model, build_model
from psworker.models.calls import predictions_of, probabilities_of
from psworker.models.model import PredictingModel, ProbableModel
from psworker.served import ServedModel
from psworker.surveying import SURVEY, totals_of
from psworker.sync import SyncClient
from psworker.unlabelled import Piece, Trained, read_unlabelled

__all__ = ["Predictor", "SyncPredictor"]

Array = npt.NDArray[Any]
T = TypeVar("T")

_ASK_AGAIN: Final = "ask again when its workers have begun (psctl status shows them)"
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
            UnknownJob: the job was made without a job file, so nobody knows its model; or it has no
                parameters yet.
            JobError: the model is a class of one's own; or rows are scaled or filled by a survey of the
                training data, and the servers have none.
            JobMismatch: the job has another model, or makes other features of the data, than its file says.
            DataError: what the survey has found cannot be used: no row, or a column without numbers.
            PSError: as ``Client.pull``.
        """
        job = _job_of(client) if job is None else _agreed(client, job)
        await _check_begun(client)
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

    def read(self, places: str | Iterable[str], form: str | None = None) -> Iterator[Piece]:
        """Read rows to predict, whose labels need not be there, piece by piece.

        Arguments and errors are those of ``psworker.unlabelled.read_unlabelled``.
        """
        data, stream = self.job.data, self.job.stream
        if stream is not None:
            usual, fields = stream.format, stream.fields
        else:
            usual, fields = "libsvm" if data.kind == "libsvm" else "csv", ()
        return read_unlabelled(Trained(data, usual, fields, self._adjustment), places, form)

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
        return Batch(self._adjusted(x), np.zeros(len(x), np.float32))

    def _adjusted(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        missing = self.job.data.missing
        if missing == "zero":
            x = np.where(np.isnan(x), np.float32(0), x)
        if missing in ("error", "skip") and np.isnan(x).any():
            row = int(np.isnan(x).any(1).argmax())
            raise JobError(
                f'row {row} has no number (NaN); fill it in, or train with [data] missing = "mean"'
            )
        if self._adjustment is None:
            return x
        width = self._adjustment.width
        if width not in (None, x.shape[1]):
            raise JobError(
                f"the rows are of shape {x.shape}; expected (n, {width}), as the job was trained on"
            )
        return self._adjustment.numbers(x)

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
            return self._model, await self._pull(self._served, batch.keys)
        now = asyncio.get_running_loop().time()
        if now - self._pulled >= self._max_age:
            pulled = await self._pull(self._served)
            _check_shapes(features, self._model.parameters(), pulled)
            self._parameters, self._pulled = pulled, now
        return self._model, self._parameters

    async def _pull(self, served: ServedModel, keys: Keys | None = None) -> dict[str, Array]:
        try:
            return await served.pull(keys)
        except UnknownTensor as error:
            reason = (
                f"it has not all parameters of [model] {self.job.model.kind}: {error.message}; {_ASK_AGAIN}"
            )
            raise UnknownJob(reason, field="job", value=self.job.name) from error

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

    Where the data is may differ: it is not read.
    """
    if client.plan is None:
        return job
    theirs = job_from_json(client.plan.text)
    data = replace(
        job.data,
        source=theirs.data.source,
        columns=job.data.columns or theirs.data.columns,
        dimensions=job.data.dimensions or theirs.data.dimensions,
    )
    same = replace(theirs, model=job.model, data=data)
    if same != theirs:
        what = difference(job_to_json(same), client.plan.text)
        raise JobMismatch(f"the file is not of the cluster's job: {what}", field="job", value=job.name)
    return replace(job, data=data)


async def _check_begun(client: Client) -> None:
    """Raise UnknownJob where there is no model yet."""
    names = set(await client.tensors())
    if all(name.startswith(SURVEY) for name in names):
        doing = "they look at the data first, and are at it" if names else "no worker has made them"
        reason = f"its model has no parameters yet: {doing}; {_ASK_AGAIN}"
        raise UnknownJob(reason, field="job", value=client.job)


async def _adjustment_of(client: Client, job: Job) -> Adjustment | None:
    """Return how rows are scaled and filled, as the survey has found; None: they are not."""
    data = replace(job.data, class_weights="none")  # which are for learning
    if data.scale == "none" and data.missing != "mean":
        return None
    totals = await totals_of(client)
    found = len(totals.get("count", ()))
    names = tuple(name for name in data.columns if name not in (*data.categorical, *data.text)) or None
    if names is not None and len(names) != found and found:
        raise JobError(
            f"[data] has {len(names)} columns of numbers, and the survey of the job's data found {found}; "
            "list the columns that it was trained on"
        )
    survey = survey_of(data, f"the survey of job {job.name}", names, found)
    return replace(survey.adjustment(totals), weights=None)


class SyncPredictor:
    """``Predictor`` without ``await``, for a client of ``psworker.sync.connect``.

    Args:
        client: of the job.
        job: as its file says; None: as the cluster says.
        max_age: seconds that parameters are used.
    """

    def __init__(self, client: SyncClient, job: Job | None = None, *, max_age: float = 1.0) -> None:
        self._loop = client._loop
        self._predictor = self._loop.run(Predictor.of(client._client, job, max_age=max_age))

    @property
    def job(self) -> Job:
        """What is trained."""
        return self._predictor.job

    def predict(self, rows: npt.ArrayLike | Batch) -> Array:
        """Return (n,) class indices, int64, or numbers, float32, of (n, features) rows."""
        return self._loop.run(self._predictor.predict(rows))

    def probabilities(self, rows: npt.ArrayLike | Batch) -> Array:
        """Return (n, classes) probabilities."""
        return self._loop.run(self._predictor.probabilities(rows))

    def read(self, places: str | Iterable[str], form: str | None = None) -> Iterator[Piece]:
        """Read rows to predict, piece by piece; see ``Predictor.read``."""
        return self._predictor.read(places, form)

    def refresh(self) -> None:
        """Have the next call pull the parameters, whatever their age."""
        self._predictor.refresh()
