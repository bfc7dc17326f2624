"""Learning from a stream: predict, score, learn, and look whether the world has changed.

Each partition that this worker has leased is read by a task of its own; all share the latest parameters. A
push says how far in the stream it leads, and that counts with it or not at all: whoever goes on with the
partition, after whatever crash, begins with the first example that was not learnt from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy.typing as npt

from protocol.errors import Fenced
from protocol.events import about
from protocol.measures import derived
from protocol.messages import Leased
from protocol.optimizers import SGD, Add, Optimizer
from psworker.client import Client
from psworker.data import Batch
from psworker.data.bad_rows import BadRows
from psworker.job import StreamSettings
from psworker.metrics import WorkerMetrics
from psworker.models import EvaluatedModel, Model
from psworker.models.calls import gradients_of, measures_of, predictions_of
from psworker.models.model import OwnRule, PredictingModel, PreparedModel
from psworker.online.drift import Watch
from psworker.online.gathering import Gathering
from psworker.online.prequential import Over, Prequential
from psworker.online.records import Record, Stream, Streams
from psworker.online.rows import MakeBatch, Rows
from psworker.online.truce import Truce
from psworker.served import ServedModel

__all__ = ["StreamTrainer"]

_log = logging.getLogger(__name__)

_MORE_EVERY: Final = 5.0  # seconds between two looks for partitions that others have left
_TELL_EVERY: Final = 1.0  # seconds between two changes of what the metrics say

Array = npt.NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one mini-batch came to, before it was learnt from."""

    gradients: Mapping[str, Array]
    loss: float
    measures: Mapping[str, float]
    predicted: Array | None


class StreamTrainer:
    """One worker's part in a job that learns from a stream.

    Args:
        client: the connection to the cluster, as a worker of an asynchronous job.
        model: computes gradients.
        streams: where examples come from.
        rows: what makes batches of them.
        bad_rows: counts what is left out.
        settings: of the stream.
        batch_size: rows of a mini-batch at most.
        share: partitions that this worker takes as long as there may be others that want some.
        seed: of the initial rows of tables.
        metrics: where steps and measures are told.
    """

    def __init__(
        self,
        client: Client,
        model: Model,
        streams: Streams,
        rows: Rows,
        bad_rows: BadRows,
        settings: StreamSettings,
        *,
        batch_size: int,
        share: int,
        seed: int,
        metrics: WorkerMetrics,
    ) -> None:
        self._client = client
        self._model = model
        self._optimizer: Optimizer = SGD()  # until ``run`` says which
        self._streams = streams
        self._rows = rows
        self._bad_rows = bad_rows
        self._settings = settings
        self._batch_size = batch_size
        self._share = share
        self._seed = seed
        self._metrics = metrics
        self._served: ServedModel | None = None
        self._parameters: Mapping[str, Array] = {}
        self._beginning = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._gatherings: set[Gathering] = set()
        self._prequential = Prequential(settings.window, settings.forget)
        self._reported = 0  # examples at the last line in the log
        self._told = 0.0  # time at which the metrics were told last
        self._truce: Truce | None = None
        self._watch: Watch | None = None
        self._computing = ThreadPoolExecutor(1, "compute")

    def stop(self) -> None:
        """Have ``run`` end after the mini-batches under way."""
        self._stopping.set()
        for gathering in self._gatherings:
            gathering.stop()

    async def run(self, optimizer: Optimizer) -> None:
        """Learn until the stream has ended, or ``stop`` is called.

        Raises:
            PSError: the cluster refuses or is gone.
            DataError: the stream cannot be read.
        """
        self._optimizer = self._model.optimizer if isinstance(self._model, OwnRule) else optimizer
        try:
            while True:
                try:
                    await self._client.rejoin()  # if it has to
                    await self._work()
                except Fenced:
                    self._served = None  # what was there may be gone: create it again
                    self._truce = None  # a former state may be back, with a rate that was raised in it
                else:
                    return
        finally:
            self._computing.shutdown(wait=False, cancel_futures=True)

    # --- partitions

    async def _work(self) -> None:
        learning: set[asyncio.Task[None]] = set()
        try:
            finished = False
            while not self._stopping.is_set():
                finished = finished or await self._take(learning)
                if finished and not learning:
                    return
                await self._until_something(learning)
            for task in learning:
                await task
        finally:
            for task in learning:
                task.cancel()
            await asyncio.gather(*learning, return_exceptions=True)

    async def _take(self, learning: set[asyncio.Task[None]]) -> bool:
        """Lease what there is, up to this worker's share; return whether the job is finished."""
        take = max(1, self._share - len(learning))
        for _ in range(take):
            leased = await self._unless_stopped(self._client.lease(block=not learning))
            if leased is None or leased.kind == "wait":
                return False
            if leased.kind == "finished":
                return True
            learning.add(asyncio.create_task(self._learn(leased)))
        return False

    async def _until_something(self, learning: set[asyncio.Task[None]]) -> None:
        """Wait until a partition has ended, or it is time to look for another one; raise what went wrong."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait(
                {*learning, stopping}, timeout=_MORE_EVERY, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stopping.cancel()
        for task in done & learning:
            learning.discard(task)
            await task

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """Await ``work`` and return its result; None if ``stop`` is called before."""
        doing = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            stopping.cancel()
            if not doing.done():
                doing.cancel()
                await asyncio.gather(doing, return_exceptions=True)

    async def _learn(self, leased: Leased) -> None:
        """Learn from a partition until it ends, or ``stop`` is called."""
        stream = await self._unless_stopped(self._streams.open(leased.chunk, leased.skip))
        if stream is None:
            return
        make_batch = self._rows.under(stream.header, bad_rows=self._bad_rows)
        gathering = Gathering(stream, self._batch_size, self._settings.max_wait)
        self._gatherings.add(gathering)
        examples = 0
        try:
            if self._stopping.is_set():
                gathering.stop()
            while True:
                with self._metrics.phase("data"):
                    records = await gathering.batch()
                if not records:
                    break
                examples += await self._step(leased, stream, make_batch, records)
                stream.done(records[-1].offset)
        finally:
            self._gatherings.discard(gathering)
            await gathering.close()
        if gathering.ended:
            loss = self._prequential.means("whole").get("loss")
            await self._client.finish(leased, examples, {} if loss is None else {"loss": loss})

    # --- one mini-batch

    async def _step(
        self, leased: Leased, stream: Stream, make_batch: MakeBatch, records: Sequence[Record]
    ) -> int:
        """Predict, score and learn from some examples; return how many there were."""
        texts = [record.text for record in records]
        batch = await self._in_thread(make_batch, texts, lambda number: stream.position(records[number]))
        if not len(batch):
            return 0
        served = await self._begun(batch)
        if batch.keys is not None:
            with self._metrics.phase("pull"):
                parameters: Mapping[str, Array] = await served.pull(batch.keys)
        else:
            parameters = self._parameters
        with self._metrics.phase("compute"):
            seen = await self._in_thread(self._look, parameters, batch)
        self._metrics.loss = seen.loss  # now: a push of NaN is refused, and the worker ends
        done = self._client.done(leased, records[-1].offset)
        if (
            done is None
        ):  # leased by a former incarnation; with another task's pull this worker has joined again
            raise Fenced("the partition was leased before", field="chunk", value=leased.chunk)
        with self._metrics.phase("push"):
            new = await served.push_pull(
                seen.gradients,
                batch.keys,
                None if batch.keys is None else batch.keys[:0],
                weight=batch.total,
                done=done,
            )
        if batch.keys is None:
            self._parameters = new
        self._note(batch, seen)
        if self._settings.drift != "none":
            await self._look_for_drift(batch, seen)
        return len(batch)

    async def _begun(self, batch: Batch) -> ServedModel:
        """Return the model on the servers; create it if this is the first batch since this worker joined."""
        async with self._beginning:
            if self._served is None:
                if isinstance(self._model, PreparedModel):
                    self._model = await self._in_thread(self._model.prepared, batch)
                served = ServedModel(
                    self._client, self._model, self._optimizer, seed=self._seed, hashed=batch.keys is not None
                )
                await served.create()
                if batch.keys is None:
                    self._parameters = await served.pull()
                self._served = served
        return self._served

    def _look(self, parameters: Mapping[str, Array], batch: Batch) -> _Seen:
        """Predict and score with the parameters at hand, then compute the gradient. In a thread."""
        predicted = None
        measures = (
            measures_of(self._model, parameters, batch) if isinstance(self._model, EvaluatedModel) else {}
        )
        supervised = "inertia" not in measures  # clusters are no predictions of the label
        if self._settings.drift != "none" and supervised and isinstance(self._model, PredictingModel):
            predicted = predictions_of(self._model, parameters, batch)
        gradients, loss = gradients_of(self._model, parameters, batch)
        if self._settings.decay < 1 and isinstance(self._optimizer, Add):
            kept = self._settings.decay ** len(batch)
            gradients = {name: value + (kept - 1) * parameters[name] for name, value in gradients.items()}
        return _Seen(gradients, loss, measures or {"loss": loss}, predicted)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._computing, work, *arguments)

    # --- what is told of it

    def _note(self, batch: Batch, seen: _Seen) -> None:
        self._metrics.steps.inc()
        self._metrics.examples.inc(len(batch))
        self._prequential.add(seen.measures, len(batch))
        report = self._client.report
        report.examples += len(batch)
        report.loss = self._prequential.faded("loss")
        now = asyncio.get_running_loop().time()
        due = self._prequential.examples - self._reported >= self._settings.report_every
        if due or now - self._told >= _TELL_EVERY:
            self._told = now
            self._metrics.prequential = {over: self._shown(over) for over in ("whole", "window", "faded")}
        if due:
            self._reported = self._prequential.examples
            self._say()

    def _shown(self, over: Over) -> dict[str, float]:
        return derived(self._prequential.means(over))

    def _say(self) -> None:
        window, whole = self._shown("window"), self._shown("whole")
        measured = ", ".join(
            f"{name} {value:.4g} (of all {whole[name]:.4g})" for name, value in window.items()
        )
        _log.info(
            "%s has learnt from %d examples; of the latest %d: %s",
            self._client.name, self._prequential.examples, self._settings.window, measured,
            extra=about(
                "stream.report",
                examples=self._prequential.examples,
                window=window,
                **self._client.identity(),
            ),
        )  # fmt: skip

    # --- drift

    async def _look_for_drift(self, batch: Batch, seen: _Seen) -> None:
        examples = self._prequential.examples
        truce = self._hear(examples)
        if truce.lowers(examples) and self._settings.on_drift == "raise-rate":
            await self._lower(truce)
        if not truce.watches(examples):
            self._watch = None
            return
        if self._watch is None:
            self._watch = Watch(self._settings)
        rise = self._watch.see(seen.predicted, batch.y, seen.loss)
        if rise:
            self._watch = None
            await self._react(truce, rise, examples)

    async def _lower(self, truce: Truce) -> None:
        if await self._client.drift_over(truce.acted):
            _log.info(
                "the learning rate is what it was", extra=about("drift.over", **self._client.identity())
            )

    def _hear(self, examples: int) -> Truce:
        """Take note of what other workers have acted on, as the heartbeats tell."""
        if self._truce is None:
            settings = self._settings
            self._truce = Truce(settings.cooldown, settings.raised_for, self._client.drifts, examples)
        elif self._settings.on_drift != "report":
            self._truce.hear(self._client.drifts, examples)
        return self._truce

    async def _react(self, truce: Truce, rise: float, examples: int) -> None:
        reaction = self._settings.on_drift
        acts = await self._client.drift(self._client.drifts if reaction == "report" else truce.acted)
        truce.hear(self._client.drifts, examples)
        if not acts and reaction != "report":
            return  # another worker was first
        self._metrics.drifts.inc()
        _log.warning(
            "%s: the error has risen by %.2g after %d examples; %s",
            self._client.name, rise, examples, _REACTIONS[reaction],
            extra=about("drift.detected", rise=rise, examples=examples, **self._client.identity()),
        )  # fmt: skip
        if reaction == "restart" and self._served is not None:
            await self._served.reset()


_REACTIONS: Final = {
    "report": "reported, and nothing else",
    "raise-rate": "the learning rate is raised for a while",
    "restart": "the model begins anew",
}
