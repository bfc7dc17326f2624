"""The messages: what each request carries, what its reply carries, and who answers it.

A request travels in a frame whose header is the map ``{"op": ..., "id": ..., fields...}``; its reply
repeats the id with ``"op": "ok"`` and the reply's fields, or ``"op": "error"`` and those of ``ErrorReply``.
Messages with ``tensors`` carry those tensors' numbers as payload, in that order. A request with id 0 is a
notice: it is not answered.

Requests that change something carry a ``seq``, counted from 1 for each incarnation of a worker and each
stream (the pushes to one shard; the leases and finishes at the coordinator), so that a retry counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import msgpack

from protocol.errors import BadRequest, PSError, error_from_wire
from protocol.fields import Name, Positive, decoder, encoder
from protocol.measures import MAX_MEASURES
from protocol.optimizers import OptimizerSpec
from protocol.tables import VALUES, Rows, Table
from protocol.tensors import DTypeName, Part, Shape

__all__ = [
    "RATE_FACTOR",
    "REQUESTS",
    "RETURNS",
    "WORK_KINDS",
    "Announce",
    "Attach",
    "Attached",
    "Auth",
    "Beat",
    "Block",
    "Catalogue",
    "Challenge",
    "Checkpoint",
    "Checkpointed",
    "Completed",
    "Create",
    "Created",
    "Cut",
    "Decide",
    "Describe",
    "Described",
    "Diverged",
    "Done",
    "Drift",
    "DriftHeard",
    "Drop",
    "Dropped",
    "Empty",
    "Ended",
    "Epoch",
    "Finish",
    "Heartbeat",
    "Hello",
    "Hold",
    "Init",
    "Initialised",
    "Install",
    "Join",
    "JoinShard",
    "Joined",
    "Keep",
    "Kept",
    "KeptJob",
    "KeptJobs",
    "Lease",
    "Leased",
    "Leave",
    "Load",
    "LoadPlan",
    "LoadedJob",
    "LoadedTensor",
    "Mark",
    "Marker",
    "Measure",
    "Member",
    "Ping",
    "Plan",
    "Prepared",
    "Pull",
    "Pulled",
    "Push",
    "PushPull",
    "Pushed",
    "Release",
    "Reply",
    "Request",
    "Reset",
    "Restore",
    "Saved",
    "SavedFile",
    "SavedFiles",
    "Set",
    "ShardBeat",
    "ShardJoined",
    "Skipped",
    "Spec",
    "Status",
    "StatusReport",
    "Step",
    "TensorInfo",
    "Welcome",
    "check_rate",
    "check_weight",
    "decode_header",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_reply",
    "encode_request",
]


def _check_staleness(value: object, field: str) -> None:
    staleness: float = value  # type: ignore[assignment]
    if staleness != math.inf and not (0 <= staleness < 1 << 31 and staleness.is_integer()):
        raise BadRequest("staleness is 0, a whole number of steps, or inf", field=field, value=staleness)


def check_weight(value: object, field: str) -> None:
    """Refuse what is no weight: a finite number, at least 0."""
    weight: float = value  # type: ignore[assignment]
    if not 0 <= weight < math.inf:
        raise BadRequest("a weight is a finite number, at least 0", field=field, value=weight)


def check_rate(value: object, field: str) -> None:
    """Refuse what no learning rate can be multiplied by: a finite number above 0 is expected."""
    rate: float = value  # type: ignore[assignment]
    if not 0 < rate < math.inf:
        raise BadRequest("a rate is a finite number above 0", field=field, value=rate)


def _check_factor(value: object, field: str) -> None:
    factor: float = value  # type: ignore[assignment]
    if not 0 < factor < 1:
        raise BadRequest("expected a number between 0 and 1", field=field, value=factor)


def _check_kind(value: object, field: str) -> None:
    if value not in WORK_KINDS:
        raise BadRequest("a lease is for survey, train or evaluate", field=field, value=value)


def _check_measures(value: object, field: str) -> None:
    measures: tuple[Measure, ...] = value  # type: ignore[assignment]
    if len(measures) > MAX_MEASURES:
        raise BadRequest(f"take at most {MAX_MEASURES} measures", field=field, value=len(measures))


def _check_skipped(value: object, field: str) -> None:
    skipped: tuple[Skipped, ...] = value  # type: ignore[assignment]
    if len(skipped) > MAX_REASONS:
        raise BadRequest(f"name at most {MAX_REASONS} reasons", field=field, value=len(skipped))


def _check_hex(value: object, field: str) -> None:
    text: str = value  # type: ignore[assignment]
    if len(text) != _HEX or not set(text) <= set("0123456789abcdef"):
        raise BadRequest(f"expected {_HEX} hexadecimal digits in lower case", field=field, value=text)


def _check_not_negative(value: object, field: str) -> None:
    number: float = value  # type: ignore[assignment]
    if not 0 <= number < math.inf:
        raise BadRequest("expected a finite number, at least 0", field=field, value=number)


WORK_KINDS: Final = ("survey", "train", "evaluate")
"""What a chunk may be leased for."""

MAX_REASONS: Final = 16
"""For which rows may be left out."""

RATE_FACTOR: Final = 0.5
RETURNS: Final = 5
"""What the rate of a job that has diverged is multiplied by, and how often at most, without a plan."""

_HEX: Final = 64
"""Digits of a nonce or a proof: both have 32 bytes."""

Hex = Annotated[str, _check_hex]
Staleness = Annotated[float, _check_staleness]
Weight = Annotated[float, check_weight]
WorkKind = Annotated[str, _check_kind]
Rate = Annotated[float, check_rate]
NotNegative = Annotated[float, _check_not_negative]
Factor = Annotated[float, _check_factor]


# --- building blocks of messages


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor is; two creators must agree on it.

    The shape of a sparse ``table`` is ``(HASH_SLOTS,)``: its blocks are ranges of slots.
    """

    dtype: DTypeName
    shape: Shape
    optimizer: OptimizerSpec
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Elements ``start`` to ``stop`` of a tensor, in C order, or such slots of a table, live on ``shard``."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and where its blocks are. A shard holds at most one block of a tensor."""

    name: Name
    spec: Spec
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Tensors of a job."""

    infos: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A live worker; ``clock`` is the first step that it takes part in."""

    worker: int
    incarnation: int
    name: Name
    clock: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """Who a job's live workers are from now on, and how they are kept together.

    Steps below ``since`` were begun before the staleness was what it is: their updates are applied at once.
    All learning rates are multiplied by ``rate``. ``born`` is as in ``KeptJob``.
    """

    job: Name
    number: Positive
    staleness: Staleness
    since: int
    members: tuple[Member, ...]
    rate: Rate = 1.0
    born: int = 0


@dataclass(frozen=True, slots=True)
class KeptJob:
    """A job that there is.

    No incarnation of a worker up to ``born`` is of this job: they were of one of that name that was dropped.
    """

    name: Name
    born: int


@dataclass(frozen=True, slots=True)
class KeptJobs:
    """All jobs that there are; no incarnation of a worker above ``issued`` was of a job that was dropped."""

    jobs: tuple[KeptJob, ...]
    issued: int = 0


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file of a checkpoint: its length, and the checksum of all of it."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class SavedFiles:
    """What one shard wrote of a checkpoint."""

    files: tuple[SavedFile, ...]


@dataclass(frozen=True, slots=True)
class LoadedTensor:
    """A tensor whose elements ``start`` to ``stop`` a shard is to load.

    ``slots`` are its optimizer's. A table's rows are those of its slots of hashes from ``start`` to ``stop``.
    """

    name: Name
    spec: Spec
    start: int
    stop: int
    attempt: int
    slots: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """What of a job a shard is to load.

    ``step`` is the open one, ``updates`` those applied so far, ``born`` is as in ``KeptJob``.
    """

    name: Name
    step: int
    updates: int
    tensors: tuple[LoadedTensor, ...]
    born: int = 0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a shard is to load: of a checkpoint under ``url``, or nothing.

    An empty ``url`` is the server's own --checkpoint-dir. The checkpoint is that of ``shards``, taken on
    ``timeline`` of ``cluster``: another one may have the same number.
    """

    url: str
    checkpoint: int | None
    cluster: str
    timeline: int
    shards: int
    jobs: tuple[LoadedJob, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A daemon's job as the coordinator sees it: how much work there is, in chunks.

    ``text`` is the whole job in the workers' own form; the server compares it and never reads it.
    ``partition`` is ``leases`` (no parts), or says how the data is cut into ``parts``, one a worker:
    ``contiguous``, ``round-robin`` or ``hash:COLUMN``.

    With ``survey`` each chunk is leased once, as of epoch 0, before anything is trained. With ``patience``
    the job is over when so many evaluations in a row have not bettered the measure ``monitor`` by more than
    ``min_delta``. With ``stream`` the chunks are those of an endless stream, one for each of its partitions.
    Where the job has diverged it goes back to a checkpoint, at most ``returns`` times, and its rate is
    multiplied by ``rate_factor``. When its stream has drifted the rate becomes ``raised_rate``, for a while.
    """

    text: str
    chunks: Positive
    epochs: Positive
    evaluate_every: int
    seed: int
    partition: str = "leases"
    parts: Positive = 1
    survey: bool = False
    patience: int = 0
    min_delta: NotNegative = 0.0
    monitor: Name = "loss"
    stream: bool = False
    rate_factor: Factor = RATE_FACTOR
    returns: int = RETURNS
    raised_rate: Rate = 1.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean over examples that a worker measured on one chunk, for example its loss."""

    name: Name
    value: float


Measures = Annotated[tuple[Measure, ...], _check_measures]


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many rows of the data were left out for a reason, such as ``number`` or ``missing``."""

    reason: Name
    rows: int


SkippedRows = Annotated[tuple[Skipped, ...], _check_skipped]


@dataclass(frozen=True, slots=True)
class Done:
    """How far the chunk that request ``lease`` got is with a push: after ``batches`` mini-batches.

    In a stream that is the offset to go on from, in whatever its reader counts.
    """

    lease: Positive
    batches: Positive


# --- replies


@dataclass(frozen=True, slots=True)
class Empty:
    """The reply of requests that only need to be known as done."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """``shard`` of ``shards`` answers, and takes frames with payloads up to ``max_frame`` bytes.

    Where the ``timeline`` is another than before, the state may be, too: tensors may have moved or gone.
    The numbers of tables' rows may travel as any of ``values``. ``proof`` is there where the hello had one:
    the server knows the token, too.
    """

    version: int
    server: str
    shard: int | None
    shards: int
    max_frame: int
    timeline: int = 0
    values: tuple[str, ...] = VALUES
    proof: Hex | None = None


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the proof of this connection's hello has to be about, besides the client's own nonce."""

    nonce: Hex


@dataclass(frozen=True, slots=True)
class Attached:
    """The job's settings and every shard's address. The coordinator's is "": the one dialled.

    ``timeline`` is as in ``Welcome``, of now: the connection may be older.
    """

    job: Name
    shards: tuple[str, ...]
    staleness: float
    plan: Plan | None = None
    timeline: int = 0


@dataclass(frozen=True, slots=True)
class Joined:
    """The worker's identity, its first step, and the job's plan where there is one.

    It sends ``heartbeat`` every ``heartbeat`` seconds. ``timeline`` is as in ``Attached``, ``rate`` and
    ``drifts`` as in ``Beat``.
    """

    job: Name
    worker: int
    incarnation: int
    name: Name
    clock: int
    shards: tuple[str, ...]
    staleness: float
    epoch: int
    heartbeat: float
    plan: Plan | None = None
    timeline: int = 0
    rate: float = 1.0
    drifts: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """The job's membership epoch and staleness; no worker's clock is below ``since`` any more.

    The servers multiply all learning rates by ``rate``. ``drifts`` of the job's stream were acted on so far.
    """

    epoch: int
    staleness: float
    since: int
    rate: float = 1.0
    drifts: int = 0


@dataclass(frozen=True, slots=True)
class ShardJoined:
    """The number that the joining server has from now on, in a cluster of that name.

    It sends ``shard_heartbeat`` every ``heartbeat`` seconds. Its state is of ``timeline`` from
    now on, unless it ``loads``: then it is told what. The coordinator's status page is on ``metrics_port``.
    """

    shard: int
    shards: int
    cluster: str
    heartbeat: float
    timeline: int = 0
    loads: bool = False
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """Where the blocks go. With an ``attempt``, the asker must fill them; without, they are filled."""

    blocks: tuple[Block, ...]
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """The tensors asked for, in that order: the payload is ``Catalogue`` as a msgpack array."""

    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Pushed:
    """The number of updates this shard has applied to the job."""

    version: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """What the payload holds, each tensor's block at one version.

    With a ``clock``, the worker was late: its gradient was dropped, and this is the step that it is in now.
    """

    version: int
    tensors: tuple[Part, ...]
    clock: int | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """What to do next: ``survey``, ``train`` or ``evaluate`` a chunk, ``wait`` (ask again), or ``finished``.

    With a ``part``, only the rows of the chunk that are of this part; without, all of them. Others have done
    the first ``skip`` mini-batches of a training chunk; with a ``skip``, a survey of a chunk is done, and
    only to be finished. In a stream ``skip`` is the offset to go on from.
    """

    kind: str
    epoch: int
    chunk: int
    part: int | None = None
    skip: int = 0


@dataclass(frozen=True, slots=True)
class DriftHeard:
    """Whether the worker that has found a drift is to act on it, and how many drifts were acted on so far.

    Of one that is over, whether that has lowered the rate.
    """

    acts: bool
    drifts: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The cluster as the coordinator sees it: the payload is ``ClusterStatus`` as a msgpack array."""

    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A checkpoint was taken or loaded: its number, where it is, its size, and how long that took."""

    checkpoint: int
    url: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """A job was dropped: how many tensors it had, and how many bytes of memory the servers have freed.

    Servers that are ``away`` do so as soon as they are back.
    """

    job: Name
    tensor_count: int
    bytes: int
    away: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a shard had of other jobs is forgotten, for good: so many bytes of memory."""

    bytes: int


# --- requests that every server answers


@dataclass(frozen=True, slots=True)
class Auth:
    """Before the hello, where there are tokens: the peer will prove that it knows one of this role."""

    op: ClassVar[str] = "auth"
    reply: ClassVar[type] = Challenge
    role: Name
    nonce: Hex


@dataclass(frozen=True, slots=True)
class Hello:
    """The first request of every connection. It binds the connection to a job and a worker.

    Where there are tokens, ``auth`` comes before it, and ``proof`` is as in ``protocol.auth``.
    """

    op: ClassVar[str] = "hello"
    reply: ClassVar[type] = Welcome
    versions: tuple[int, ...]
    client: str
    job: Name | None = None
    worker: int | None = None
    incarnation: int | None = None
    proof: Hex | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that this server is there."""

    op: ClassVar[str] = "ping"
    reply: ClassVar[type] = Empty


@dataclass(frozen=True, slots=True)
class Init:
    """Fill this shard's block of a tensor that is being created: its elements from ``start`` on.

    A table's block has no payload, and ends at ``stop``.
    """

    op: ClassVar[str] = "init"
    reply: ClassVar[type] = Empty
    name: Name
    spec: Spec
    attempt: int
    tensors: tuple[Part, ...]
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Pull:
    """Send the blocks of these tensors that live here, then the rows of tables that are ``wanted``.

    The payload holds the keys of what is wanted, unless they are known.
    """

    op: ClassVar[str] = "pull"
    reply: ClassVar[type] = Pulled
    names: tuple[Name, ...]
    wanted: tuple[Rows, ...] = ()
    tensors: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Push:
    """Apply gradients; at staleness 0, count them into the worker's current step.

    The payload holds gradients of whole blocks, and then for each of ``rows`` its keys, unless they are
    known, and the gradients of those rows. Gradients of a key that comes twice are summed.
    """

    op: ClassVar[str] = "push"
    reply: ClassVar[type] = Pushed
    tensors: tuple[Part, ...]
    step: int
    seq: Positive
    weight: Weight = 1.0
    done: Done | None = None
    rows: tuple[Rows, ...] = ()


@dataclass(frozen=True, slots=True)
class PushPull:
    """Push, end the worker's step, and send back ``names`` and ``wanted`` as they are after it.

    The payload is that of ``Push``, and then that of ``Pull``.

    Weight 0 says that the worker had nothing to do in this step: no gradient of it is waited for.
    """

    op: ClassVar[str] = "push_pull"
    reply: ClassVar[type] = Pulled
    tensors: tuple[Part, ...]
    names: tuple[Name, ...]
    step: int
    seq: Positive
    weight: Weight = 1.0
    done: Done | None = None
    rows: tuple[Rows, ...] = ()
    wanted: tuple[Rows, ...] = ()


@dataclass(frozen=True, slots=True)
class Reset:
    """Begin anew with what lives here of some tensors; numbered among the worker's pushes.

    The payload holds values of whole blocks, whose optimizers begin anew as well; ``tables`` lose their rows.
    """

    op: ClassVar[str] = "reset"
    reply: ClassVar[type] = Empty
    tensors: tuple[Part, ...]
    tables: tuple[Name, ...]
    seq: Positive


# --- requests that the coordinator answers


@dataclass(frozen=True, slots=True)
class Attach:
    """Use an existing job without being one of its workers. None: the only one there is."""

    op: ClassVar[str] = "attach"
    reply: ClassVar[type] = Attached
    job: Name | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """Become a worker of a job, which is made if need be; without a name, of the only one there is.

    Settings that are None are whatever the job has. The reply comes when ``workers`` have joined. Asking
    again with the same ``token`` is a retry, and gives the same identity. A worker that joins again says
    what its ``former`` incarnation was: if its job was dropped meanwhile, it is not made anew.
    """

    op: ClassVar[str] = "join"
    reply: ClassVar[type] = Joined
    token: Name
    job: Name | None = None
    name: Name | None = None
    staleness: Staleness | None = None
    workers: Positive | None = None
    backup_workers: int | None = None
    plan: Plan | None = None
    former: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """The worker is done with the steps before ``clock``; no other waits for it."""

    op: ClassVar[str] = "leave"
    reply: ClassVar[type] = Empty
    clock: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker lives, has come this far since it joined, and has left out so many rows of the data."""

    op: ClassVar[str] = "heartbeat"
    reply: ClassVar[type] = Beat
    clock: int
    examples: int
    loss: float | None = None
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Create:
    """Make a tensor, or find that it exists with the same spec."""

    op: ClassVar[str] = "create"
    reply: ClassVar[type] = Created
    name: Name
    spec: Spec


@dataclass(frozen=True, slots=True)
class Initialised:
    """Every shard has its block: the tensor may be used."""

    op: ClassVar[str] = "initialised"
    reply: ClassVar[type] = Empty
    name: Name
    attempt: int


@dataclass(frozen=True, slots=True)
class Describe:
    """Say what these tensors are and where; without names, all of the job's."""

    op: ClassVar[str] = "describe"
    reply: ClassVar[type] = Described
    names: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """Ask for work. With ``block`` the reply waits while all that is left is leased to others."""

    op: ClassVar[str] = "lease"
    reply: ClassVar[type] = Leased
    seq: Positive
    block: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """A leased chunk is done: every update that came of it has been acknowledged.

    ``skipped`` are its rows that could not be used.
    """

    op: ClassVar[str] = "finish"
    reply: ClassVar[type] = Empty
    seq: Positive
    kind: WorkKind
    epoch: int
    chunk: int
    examples: int
    measures: Measures
    part: int | None = None
    skipped: SkippedRows = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """The worker has made all that its job trains: see that there is a checkpoint of the job to go back to.

    The reply comes when there is one; unless the job has one, it is taken now.
    """

    op: ClassVar[str] = "prepared"
    reply: ClassVar[type] = Empty


@dataclass(frozen=True, slots=True)
class Diverged:
    """The worker's loss in a step is not finite, or far above its best: go back, at a lower rate.

    As the worker is out then, the answer is ``Fenced``; ``Joined`` says the rate.
    """

    op: ClassVar[str] = "diverged"
    reply: ClassVar[type] = Empty
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Drift:
    """The stream has drifted, says a worker that knows of ``known`` drifts that were acted on before.

    Of several that find the same drift the first acts on it; the others know of fewer than there are. The
    job's rate becomes the plan's ``raised_rate``. With ``over`` that is long enough ago: a rate that is still
    what it was raised to becomes 1 again.
    """

    op: ClassVar[str] = "drift"
    reply: ClassVar[type] = DriftHeard
    known: int
    over: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """Ask for the state of the cluster."""

    op: ClassVar[str] = "status"
    reply: ClassVar[type] = StatusReport


@dataclass(frozen=True, slots=True)
class Set:
    """Change how a job's workers are kept together, or what all its learning rates are multiplied by.

    None: leave it as it is.
    """

    op: ClassVar[str] = "set"
    reply: ClassVar[type] = Empty
    job: Name | None = None
    staleness: Staleness | None = None
    backup_workers: int | None = None
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Take a checkpoint now; the reply comes when it is complete."""

    op: ClassVar[str] = "checkpoint"
    reply: ClassVar[type] = Checkpointed


@dataclass(frozen=True, slots=True)
class Restore:
    """Replace the state of the cluster by that of a checkpoint, which every server must be able to read.

    ``url`` is a directory of checkpoints, as the servers see it; ``checkpoint`` one of them, or None for the
    newest that is sound. Unless ``replace`` is said, a cluster on which workers are at work refuses.
    """

    op: ClassVar[str] = "restore"
    reply: ClassVar[type] = Checkpointed
    url: str
    checkpoint: int | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """End a job and forget all of it, on all servers.

    As long as it has workers that is refused, unless it is to be done by ``force``, which only an admin may
    say. They are told that it was dropped.
    """

    op: ClassVar[str] = "drop"
    reply: ClassVar[type] = Dropped
    job: Name
    force: bool = False


@dataclass(frozen=True, slots=True)
class Marker:
    """What this worker sends from here on is after the cut of a checkpoint."""

    op: ClassVar[str] = "marker"
    reply: ClassVar[type] = Empty
    seq: Positive
    checkpoint: Positive


# --- from the coordinator to workers


@dataclass(frozen=True, slots=True)
class Mark:
    """Send a marker to every shard, now."""

    op: ClassVar[str] = "mark"
    reply: ClassVar[type] = Empty
    checkpoint: Positive


# --- between servers


@dataclass(frozen=True, slots=True)
class JoinShard:
    """A server offers itself as a shard, as number ``shard`` if it says one.

    ``cluster`` is what it was told when it joined before, and ``timeline`` what its state is of; 0: it has
    none. ``lost`` says that the newest part of that state may be missing. ``durability`` is what it keeps,
    which must be the same on all.
    """

    op: ClassVar[str] = "join_shard"
    reply: ClassVar[type] = ShardJoined
    port: Positive
    host: str | None = None
    shard: int | None = None
    cluster: str | None = None
    timeline: int = 0
    lost: bool = False
    durability: str = "none"


@dataclass(frozen=True, slots=True)
class ShardBeat:
    """The shard lives, and these workers keep others waiting there: the payload is ``Waits``."""

    op: ClassVar[str] = "shard_heartbeat"
    reply: ClassVar[type] = Empty
    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """The coordinator tells a shard a job's new epoch: the payload is ``Epoch`` as a msgpack array."""

    op: ClassVar[str] = "epoch"
    reply: ClassVar[type] = Empty
    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """The coordinator tells a shard which jobs there are: the payload is ``KeptJobs`` as a msgpack array.

    It forgets what it has of others: they were dropped.
    """

    op: ClassVar[str] = "keep"
    reply: ClassVar[type] = Kept
    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A shard tells the coordinator who has ended the open step there, and whose share was nothing."""

    op: ClassVar[str] = "ended"
    reply: ClassVar[type] = Empty
    job: Name
    step: int
    workers: tuple[int, ...]
    idle: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decide:
    """The coordinator tells the shards whose gradients a step contains, and when that is all of it."""

    op: ClassVar[str] = "decide"
    reply: ClassVar[type] = Empty
    job: Name
    step: int
    workers: tuple[int, ...]
    commit: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Prepare for the cut of a checkpoint: hold what workers send after their markers, or at once."""

    op: ClassVar[str] = "hold"
    reply: ClassVar[type] = Empty
    checkpoint: Positive


@dataclass(frozen=True, slots=True)
class Cut:
    """Take the cut when all markers are in, and go on; the reply says that it is taken."""

    op: ClassVar[str] = "cut"
    reply: ClassVar[type] = Empty
    checkpoint: Positive


@dataclass(frozen=True, slots=True)
class Release:
    """The checkpoint is given up: go on."""

    op: ClassVar[str] = "release"
    reply: ClassVar[type] = Empty
    checkpoint: Positive


@dataclass(frozen=True, slots=True)
class Saved:
    """A shard's files of a checkpoint are written: the payload is ``SavedFiles``; else there is a problem."""

    op: ClassVar[str] = "saved"
    reply: ClassVar[type] = Empty
    checkpoint: Positive
    tensors: tuple[Part, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A checkpoint is complete on all shards: the payload is its manifest."""

    op: ClassVar[str] = "completed"
    reply: ClassVar[type] = Empty
    checkpoint: Positive
    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Read the state that is to replace this shard's: the payload is ``LoadPlan``."""

    op: ClassVar[str] = "load"
    reply: ClassVar[type] = Empty
    tensors: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Replace this shard's state by what was loaded. It is of ``timeline`` from then on."""

    op: ClassVar[str] = "install"
    reply: ClassVar[type] = Empty
    timeline: Positive


Step = Push | PushPull
Request = (
    Auth | Hello | Ping | Init | Pull | Push | PushPull | Reset | Attach | Join | Leave | Heartbeat | Create
    | Initialised | Describe | Lease | Finish | Prepared | Diverged | Drift | Set | Status | Checkpoint
    | Restore | Drop | Marker | Mark | JoinShard | ShardBeat | Announce | Ended | Decide | Hold | Cut
    | Release | Saved | Keep | Completed | Load | Install
)  # fmt: skip
Reply = (
    Empty | Welcome | Challenge | Attached | Joined | Beat | ShardJoined | Created | Described | Pushed
    | Pulled | Leased | DriftHeard | StatusReport | Checkpointed | Dropped | Kept
)  # fmt: skip

REQUESTS: Final[tuple[type[Request], ...]] = Request.__args__


class Header(NamedTuple):
    """A header as it arrived: its fields without ``op`` and ``id`` are not looked at yet."""

    op: str
    id: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What is wrong with a request, as in ``protocol.errors.PSError``."""

    code: str
    message: str
    field: str
    value: str


_REPLIES: Final[tuple[type[Reply], ...]] = Reply.__args__
_BY_OP: Final = {cls.op: cls for cls in REQUESTS}


class _MadeWhenNeeded(dict[type, Callable[[Any], Any]]):
    """Codecs by class: to make all of them takes longer than most processes' first answer."""

    def __init__(self, make: Callable[[type], Callable[[Any], Any]]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        made = self[cls] = self._make(cls)
        return made


_DECODE: Final = _MadeWhenNeeded(decoder)
_ENCODE: Final = _MadeWhenNeeded(encoder)
_pack: Final[Callable[[dict[str, Any]], bytes]] = msgpack.packb

MAX_ARRAY: Final = 4096
"""Items of an array in a header. Unpackers allocate an announced length at once, on each of up to
1,024 nested levels; this keeps the worst header at 32 MB for a moment."""

MAX_MAP: Final = 64


def encode_request(request_id: int, request: Request) -> bytes:
    """Return the header of a request."""
    fields = _ENCODE[type(request)](request)
    fields["op"] = request.op
    fields["id"] = request_id
    return _pack(fields)


def encode_reply(request_id: int, reply: Reply) -> bytes:
    """Return the header of a reply."""
    fields = _ENCODE[type(reply)](reply)
    fields["op"] = "ok"
    fields["id"] = request_id
    return _pack(fields)


def encode_error(request_id: int, error: PSError) -> bytes:
    """Return the header of an error reply; id 0 is an error that belongs to no request."""
    reply = ErrorReply(error.code, error.message, error.field, error.value)
    fields = _ENCODE[ErrorReply](reply)
    fields["op"] = "error"
    fields["id"] = request_id
    return _pack(fields)


def unpack(data: bytes, field: str, most: int = MAX_ARRAY) -> Any:
    """Return what msgpack ``data`` holds; nothing large is allocated on a short lie about a length.

    Arrays have at most ``most`` items.

    Raises:
        BadRequest: not one msgpack value within the limits; ``field`` says what of.
    """
    try:
        return msgpack.unpackb(
            data,
            max_str_len=len(data),
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=most,
            max_map_len=MAX_MAP,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadRequest("this cannot be read as msgpack", field=field, value=reason) from error


def decode_header(header: bytes) -> Header:
    """Return what a frame's header says.

    Raises:
        BadRequest: not a msgpack map from text to values with an ``op`` and an ``id``.
    """
    fields = unpack(header, "header")
    if type(fields) is not dict:
        raise BadRequest("not a msgpack map", field="header", value=type(fields).__name__)
    op, request_id = fields.pop("op", None), fields.pop("id", None)
    if type(request_id) is not int or not 0 <= request_id < 1 << 63:
        raise BadRequest("expected an integer from 0 to 2^63-1", field="id", value=request_id)
    if type(op) is not str:
        raise BadRequest("expected text", field="op", value=op)
    return Header(op, request_id, fields)


def decode_request(header: Header) -> Any:
    """Return the ``Request`` that ``header`` carries.

    Raises:
        BadRequest: an unknown operation, or a field that is missing, unknown or wrong.
    """
    cls = _BY_OP.get(header.op)
    if cls is None:
        raise BadRequest("unknown operation", field="op", value=header.op)
    return _DECODE[cls](header.fields)


def decode_reply(header: Header, expected: type) -> Any:
    """Return the reply of type ``expected``, or the exception that an error reply stands for.

    Raises:
        BadRequest: the header is neither.
    """
    if header.op == "error":
        error: ErrorReply = _DECODE[ErrorReply](header.fields)
        return error_from_wire(error.code, error.message, error.field, error.value)
    if header.op != "ok":
        raise BadRequest("expected ok or error", field="op", value=header.op)
    return _DECODE[expected](header.fields)
