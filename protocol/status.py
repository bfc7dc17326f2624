"""The state of a cluster, as the coordinator reports it and ``psctl status`` shows it."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.fields import Name

__all__ = [
    "ClusterStatus",
    "Evaluation",
    "JobStatus",
    "Mean",
    "Progress",
    "ShardStatus",
    "TensorStatus",
    "Wait",
    "WorkerStatus",
]


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One server: ``state`` is ``joining`` or ``ready``."""

    shard: int
    address: str
    state: str
    parameters_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker: ``state`` is ``waiting``, ``training``, ``left`` or ``lost``.

    ``examples_per_second`` is over its last few heartbeats, ``heartbeat_age`` in seconds.
    """

    worker: int
    name: Name
    state: str
    clock: int
    examples: int
    examples_per_second: float
    heartbeat_age: float
    loss: float | None


@dataclass(frozen=True, slots=True)
class Mean:
    """A measure's mean over all examples of the data that is held out."""

    name: Name
    value: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the held-out data said after ``epoch`` epochs."""

    epoch: int
    examples: int
    means: tuple[Mean, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """The chunk ledger: ``phase`` is ``train``, ``evaluate`` or ``finished``; ``epoch`` counts from 1."""

    phase: str
    epoch: int
    epochs: int
    chunks: int
    chunks_done: int
    chunks_leased: int
    train_examples: int
    train_loss: float | None
    seconds: float
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """A synchronous step that has begun to end: ``waiting_for`` names who is missing."""

    step: int
    waiting_for: tuple[Name, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TensorStatus:
    """A tensor and the number of servers that hold blocks of it."""

    name: Name
    dtype: str
    shape: tuple[int, ...]
    optimizer: str
    shards: int


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job. ``step`` and ``wait`` are shard 0's, and only for synchronous jobs."""

    name: Name
    staleness: float
    epoch: int
    step: int
    workers: tuple[WorkerStatus, ...]
    tensors: tuple[TensorStatus, ...]
    progress: Progress | None
    wait: Wait | None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster."""

    version: str
    uptime: float
    shards: tuple[ShardStatus, ...]
    jobs: tuple[JobStatus, ...]
