"""The state of a cluster, as the coordinator reports it and ``psctl status`` shows it."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.fields import Name
from protocol.messages import Skipped

__all__ = [
    "CheckpointStatus",
    "ClusterStatus",
    "Curve",
    "DurabilityStatus",
    "Evaluation",
    "History",
    "JobStatus",
    "Load",
    "Mean",
    "Progress",
    "Return",
    "ShardStatus",
    "TensorStatus",
    "Wait",
    "Waits",
    "WorkerStatus",
]


@dataclass(frozen=True, slots=True)
class Curve:
    """A measure over time: its mean over each ``every`` seconds; the last of these ended ``ago`` seconds ago.

    None: nothing was measured then.
    """

    every: float = 0.0
    ago: float = 0.0
    values: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class History:
    """How a job went since the coordinator was started, or the job was.

    ``loss`` is the mean over the live workers' mini-batches, ``speed`` the examples per second of all. Both
    are of the whole time, over stretches that grow with it; the ``recent`` ones are of the last minutes.
    """

    loss: Curve = Curve()
    speed: Curve = Curve()
    recent_loss: Curve = Curve()
    recent_speed: Curve = Curve()


@dataclass(frozen=True, slots=True)
class Load:
    """What a server has to do: since it started, and now.

    ``bytes`` are those of parameters with all that optimizers keep, ``rows`` those of sparse tables.
    ``requests`` are pushes and pulls, ``keys`` those of rows in them. What is ``received`` and ``sent`` is in
    bytes. The rates are over the last heartbeats.
    """

    bytes: int = 0
    rows: int = 0
    requests: int = 0
    keys: int = 0
    requests_per_second: float = 0.0
    keys_per_second: float = 0.0
    received_per_second: float = 0.0
    sent_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One server: ``state`` is ``joining``, ``ready``, ``suspect`` (late with its heartbeat) or ``lost``.

    ``parameters_bytes`` are those of the dense tensors placed there, ``load`` is what it told last.
    ``heartbeat_age`` is in seconds; 0 for the coordinator, which asks itself. ``problem`` says why its update
    log cannot be written, so that updates are refused there; ``""``: there is no such problem.
    ``recent_requests`` are those per second of the last minutes.
    """

    shard: int
    address: str
    state: str
    parameters_bytes: int
    heartbeat_age: float
    problem: str = ""
    load: Load = Load()
    recent_requests: Curve = Curve()


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker: ``state`` is ``waiting``, ``training``, ``suspect``, ``left`` or ``dead``.

    ``clock`` counts its steps, ``lag`` those that it is behind the furthest worker, ``leases`` the chunks
    that it is at work on. ``examples_per_second`` is over the last few heartbeats, ``heartbeat_age`` in
    seconds. ``skipped`` are rows of the data that it has left out.
    """

    worker: int
    name: Name
    incarnation: int
    state: str
    clock: int
    lag: int
    examples: int
    examples_per_second: float
    heartbeat_age: float
    leases: int
    loss: float | None
    skipped: int = 0


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
    """The chunk ledger: ``phase`` is ``survey``, ``train``, ``evaluate`` or ``finished``.

    ``epoch`` counts from 1, and is 0 in the survey. ``stopped`` says why the job has ended before its last
    epoch; ``""``: it has not. ``skipped`` are the rows that were left out, each once however often it was
    read.
    """

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
    stopped: str = ""
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody waits in ``job`` on ``shard``: for what, how many do, for whom, and since how many seconds.

    ``what`` is ``start``, ``step N``, ``chunks`` or ``tensor NAME``. ``waiting_for`` has at most 16 names.
    """

    job: Name
    shard: int
    what: str
    waiting: int
    waiting_for: tuple[Name, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Waits:
    """What a shard's heartbeat tells: who waits there, a ``problem`` as in its status, and its load."""

    waits: tuple[Wait, ...]
    problem: str = ""
    load: Load = Load()


@dataclass(frozen=True, slots=True)
class TensorStatus:
    """A tensor and how many servers hold blocks of it; ``dim`` is that of a table's rows, else 0."""

    name: Name
    dtype: str
    shape: tuple[int, ...]
    optimizer: str
    shards: int
    dim: int = 0


@dataclass(frozen=True, slots=True)
class Return:
    """How a job that had diverged went back: because of which ``loss`` in which ``step``, and where to.

    It went back to a ``checkpoint``, on a new ``timeline``, and on with ``rate`` in place of what it had.
    """

    step: int
    loss: float
    checkpoint: int
    timeline: int
    rate: float


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job.

    ``step`` is the furthest live worker's clock. ``dropped`` counts gradients that came too late for their
    step, ``longest_wait`` is the longest that a step has waited so far, in seconds, both on shard 0. All
    learning rates are multiplied by ``rate``. ``drifts`` of its stream were acted on. ``returns`` are those
    after divergence, the latest last.
    """

    name: Name
    staleness: float
    backup_workers: int
    epoch: int
    step: int
    workers: tuple[WorkerStatus, ...]
    tensors: tuple[TensorStatus, ...]
    progress: Progress | None
    waits: tuple[Wait, ...]
    dropped: int
    longest_wait: float
    history: History = History()
    rate: float = 1.0
    drifts: int = 0
    returns: tuple[Return, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointStatus:
    """A complete checkpoint: completed ``age`` seconds ago, in ``seconds`` if that is known still."""

    checkpoint: int
    age: float
    seconds: float | None
    bytes: int


@dataclass(frozen=True, slots=True)
class DurabilityStatus:
    """What outlives the servers: ``mode`` is ``none``, ``snapshot`` or ``log``.

    ``place`` is the coordinator's directory or URL of checkpoints. ``timeline`` goes up, from 1, whenever the
    state is replaced by an earlier or another one. ``problem`` says why the last checkpoint that was tried
    was not taken; ``""``: it was.
    """

    mode: str = "none"
    place: str = ""
    timeline: int = 1
    checkpoint: CheckpointStatus | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster."""

    version: str
    uptime: float
    shards: tuple[ShardStatus, ...]
    jobs: tuple[JobStatus, ...]
    durability: DurabilityStatus = DurabilityStatus()
