"""One run of a job of four workers, some of whose gradients take long: what is set, and what came of it."""

import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.paced import SLOW_SHARE, WORKER
from benchmarks.scraped import Observed, histogram, scrape, seconds_by_phase
from protocol.addresses import split_address
from protocol.errors import UnknownTensor
from protocol.status import JobStatus
from psctl import LocalCluster
from psctl.child import Child, stop_all
from psworker import Client, connect
from psworker.asking import fetch_status
from psworker.data import Batch, open_source
from psworker.job import DataSettings
from psworker.models.softmax import SoftmaxRegression

WORKERS = 4
PAUSE_SECONDS = 0.02
SLOWDOWN = 5.0
BATCH_SIZE = 16
HOLDOUT = 0.2
LEARNING_RATE = 0.3  # for the gradient of one mini-batch

_JOB = "staleness"
_CLASSES = tuple("0123456789")
_CHUNK_ROWS = 225  # 8 chunks of nearly the same size
_LOOK_EVERY = 0.05  # seconds
_START_WITHIN = 60.0  # seconds
_STOP_WITHIN = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Setting:
    """How the workers are kept together."""

    label: str
    staleness: float
    backup: int = 0

    @property
    def gradients_a_step(self) -> int:
        """How many workers' gradients one update is the mean of."""
        return WORKERS - self.backup if self.staleness == 0 else 1

    def minibatches(self, clocks: Iterable[int]) -> int:
        """Return how many mini-batches are in the parameters, the workers being in these steps."""
        return self.gradients_a_step * max(clocks) if self.staleness == 0 else sum(clocks)


@dataclass(frozen=True, slots=True)
class Stragglers:
    """For which share of each worker's mini-batches it is slow, and how many seconds are watched."""

    name: str
    label: str
    shares: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Look:
    """The loss on the held-out rows, `seconds` after the start, with so many mini-batches trained."""

    seconds: float
    minibatches: int
    loss: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one run.

    `idle` is the share of its training loop that each worker spent in push and pull. `ahead` counts steps
    before the slowest worker, `missed` updates between a worker's last reply and its push.
    """

    looks: tuple[Look, ...]
    idle: tuple[float, ...]
    ahead: Observed
    missed: Observed
    dropped: int

    def reached(self, loss: float) -> Look | None:
        """Return the first look at which the held-out loss was `loss` or less; None: there was none."""
        return next((look for look in self.looks if look.loss <= loss), None)

    @property
    def minibatches_per_second(self) -> float:
        """Mini-batches that got into the parameters, over the whole run."""
        return self.looks[-1].minibatches / self.looks[-1].seconds


def write_digits(path: Path) -> None:
    """Write scikit-learn's handwritten digits as CSV: reading it takes workers less than importing that."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    header = ",".join([*(f"p{number}" for number in range(pixels.shape[1])), "label"])
    formats = ["%.4f"] * pixels.shape[1] + ["%d"]
    np.savetxt(path, np.c_[pixels / 16, labels], formats, delimiter=",", header=header, comments="")


def job_settings(setting: Setting, data: Path, seed: int) -> tuple[str, ...]:
    """Return the job as `section.key=value`."""
    staleness = '"inf"' if math.isinf(setting.staleness) else f"{setting.staleness:.0f}"
    return (
        f"job.name={_JOB}", f"job.seed={seed}",
        "model.kind=benchmarks.paced:PacedSoftmax", f"model.pause={PAUSE_SECONDS}",
        f"model.slowdown={SLOWDOWN}",
        f'data.source="{data}"', f"data.chunk-rows={_CHUNK_ROWS}", f"data.classes={json.dumps(_CLASSES)}",
        f"train.workers={WORKERS}", f"train.batch-size={BATCH_SIZE}", "train.epochs=100000",
        f"train.staleness={staleness}", f"train.backup-workers={setting.backup}",
        f"optimizer.lr={LEARNING_RATE * setting.gradients_a_step}",
        "eval.every=never", f"eval.holdout={HOLDOUT}",
    )  # fmt: skip


def run_trial(setting: Setting, stragglers: Stragglers, data: Path, seed: int) -> Trial:
    """Train on `data` for `stragglers.seconds`, with processes that are gone afterwards.

    Raises ProcessFailed where one of them ends before, TimeoutError where nothing gets on.
    """
    held_out = _held_out(data, seed)
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = job_settings(setting, data, seed)
        ready_files = [directory / f"worker-{number}" for number in range(WORKERS)]
        workers = [
            _start_worker(cluster.address, number, share, settings, ready_file)
            for number, (share, ready_file) in enumerate(zip(stragglers.shares, ready_files, strict=True))
        ]
        stack.callback(stop_all, workers, _STOP_WITHIN)
        watching = _watch(cluster, workers, setting, held_out, stragglers.seconds)
        looks, dropped = asyncio.run(watching)
        pages = [scrape(json.loads(file.read_text())["metrics"]) for file in ready_files]
        server = scrape(cluster.metrics[0])
    return Trial(
        tuple(looks),
        tuple(idle_share(seconds_by_phase(page)) for page in pages),
        histogram(server, "psserver_staleness_steps"),
        histogram(server, "psserver_staleness_updates"),
        dropped,
    )


def idle_share(seconds: Mapping[str, float]) -> float:
    """Return which part of a worker's time was push and pull, all phases being given in seconds."""
    return (seconds.get("push", 0.0) + seconds.get("pull", 0.0)) / sum(seconds.values())


def _start_worker(
    address: str, number: int, share: float, settings: Sequence[str], ready_file: Path
) -> Child:
    return Child(
        ready_file.name,
        (
            "env", f"{WORKER}={number}", f"{SLOW_SHARE}={share}",
            sys.executable, "-m", "psworker", "--server", address, "--name", ready_file.name,
            "--metrics-port", "0", "--ready-file", str(ready_file), "--stop-with-stdin",
            *(flag for one in settings for flag in ("--set", one)),
        ),
    )  # fmt: skip


def _held_out(data: Path, seed: int) -> Batch:
    source = open_source(
        DataSettings(str(data), chunk_rows=_CHUNK_ROWS, classes=_CLASSES), seed=seed, holdout=HOLDOUT
    )
    chunks = [source.read(chunk, "holdout") for chunk in range(source.chunks)]
    return Batch(np.concatenate([chunk.x for chunk in chunks]), np.concatenate([c.y for c in chunks]))


async def _watch(
    cluster: LocalCluster, workers: Sequence[Child], setting: Setting, held_out: Batch, seconds: float
) -> tuple[list[Look], int]:
    """Return the looks at the parameters, and how many gradients were dropped until the last."""
    async with asyncio.timeout(_START_WITHIN):
        await _started(cluster, workers)
    begin = time.perf_counter()
    model = SoftmaxRegression(held_out.x.shape[1], len(_CLASSES))
    looks = [Look(0.0, 0, model.evaluate(model.parameters(), held_out)["loss"])]
    async with (
        asyncio.timeout(seconds + _START_WITHIN),
        connect(cluster.address, _JOB, observe=True) as client,
    ):
        while looks[-1].seconds < seconds:
            await asyncio.sleep(_LOOK_EVERY)
            _check(cluster, workers)
            parameters = await _pull(client, model)
            now, job = time.perf_counter() - begin, await _status(cluster)
            if parameters is not None and job is not None:
                minibatches = setting.minibatches([worker.clock for worker in job.workers])
                looks.append(Look(now, minibatches, model.evaluate(parameters, held_out)["loss"]))
                dropped = job.dropped
    return looks, dropped


async def _started(cluster: LocalCluster, workers: Sequence[Child]) -> None:
    while True:
        job = await _status(cluster)
        if job is not None and sum(worker.state == "training" for worker in job.workers) == WORKERS:
            return
        _check(cluster, workers)
        await asyncio.sleep(_LOOK_EVERY / 5)


async def _status(cluster: LocalCluster) -> JobStatus | None:
    jobs = (await fetch_status(*split_address(cluster.address))).jobs
    return jobs[0] if jobs else None


async def _pull(client: Client, model: SoftmaxRegression) -> dict[str, np.ndarray] | None:
    try:
        return await client.pull(list(model.parameters()))
    except UnknownTensor:  # the workers are just about to create them
        return None


def _check(cluster: LocalCluster, workers: Sequence[Child]) -> None:
    cluster.poll()
    for worker in workers:
        if worker.returncode is not None:
            raise worker.failure()
