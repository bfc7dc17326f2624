"""Made-up statuses and clusters of made-up daemons."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import Skipped
from protocol.status import (
    ClusterStatus,
    Evaluation,
    JobStatus,
    Mean,
    Progress,
    Return,
    ShardStatus,
    TensorStatus,
    Wait,
    WorkerStatus,
)
from psctl import LocalCluster

FAKE_DAEMON = (sys.executable, str(Path(__file__).with_name("fake_daemon.py")))


@pytest.fixture
def fake_cluster() -> Callable[..., LocalCluster]:
    """Return LocalCluster, but for the commands: ``server`` and ``worker`` say how the daemons behave."""

    def make(
        servers: int = 1, workers: int = 0, *, server: str = "wait", worker: str = "wait", **settings: Any
    ) -> LocalCluster:
        return LocalCluster(
            servers,
            workers,
            server_command=(*FAKE_DAEMON, server),
            worker_command=(*FAKE_DAEMON, worker),
            **settings,
        )

    return make


def _evaluation(epoch: int, loss: float, accuracy: float) -> Evaluation:
    return Evaluation(epoch, 100, (Mean("loss", loss), Mean("accuracy", accuracy)))


@pytest.fixture
def troubled(make_status: Callable[..., ClusterStatus]) -> ClusterStatus:
    """Return the status of a finished job with rows left out, that has diverged twice and learnt nothing."""
    status = make_status(phase="finished")
    (job,) = status.jobs
    assert job.progress is not None
    means = (Mean("loss", 40.0), Mean("r2", -468.0))
    progress = replace(
        job.progress,
        evaluations=(Evaluation(10, 100, means),),
        skipped=(Skipped("fields", 12), Skipped("number", 1300)),
    )
    returns = (Return(40, 1e30, 1, 2, 0.5), Return(1200, math.nan, 3, 3, 0.25))
    job = replace(job, progress=progress, rate=0.25, returns=returns)
    return replace(status, jobs=(job,))


@pytest.fixture
def make_status() -> Callable[..., ClusterStatus]:
    """Return a maker of the status of a cluster that trains the demo job."""

    def make(
        *,
        phase: str = "train",
        epoch: int = 3,
        chunks_done: int = 24,
        evaluations: tuple[Evaluation, ...] = (_evaluation(1, 0.9, 0.5), _evaluation(2, 0.6, 0.75)),
        train_loss: float | None = 0.5,
        worker_state: str = "training",
        names: tuple[str, ...] = ("worker-0", "worker-1"),
        waits: tuple[Wait, ...] = (),
        staleness: float = math.inf,
        seconds: float = 6.0,
        **job_fields: Any,
    ) -> ClusterStatus:
        workers = tuple(
            WorkerStatus(i, name, 1, worker_state, 30 + i, 2, 3000 - 1500 * (i % 2), 500.0, 0.5, 1, 0.25)
            for i, name in enumerate(names)
        )
        progress = Progress(phase, epoch, 10, 80, chunks_done, 2, 4500, train_loss, seconds, evaluations)
        tensors = (TensorStatus("w", "float32", (64, 10), "sgd", 1),)
        job = JobStatus("digits", staleness, 0, 1, 30, workers, tensors, progress, waits, 0, 0.0)
        job = replace(job, **job_fields)
        shards = (ShardStatus(0, "127.0.0.1:7070", "ready", 2560, 0.0),)
        return ClusterStatus("0.1.0", 75.0, shards, (job,))

    return make
