"""The asyncio client: create, pull, push.

async with connect("127.0.0.1:7070", job="demo") as ps:
    await ps.create("w", np.zeros((784, 10), np.float32), optimizer=SGD(lr=0.1))
    new = await ps.push_pull({"w": gradient})
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, overload

import numpy.typing as npt

import protocol
from protocol.addresses import split_address
from protocol.buffers import BufferPool
from protocol.connection import Connection, Traffic
from protocol.documents import CATALOGUE, STATUS
from protocol.errors import BadRequest, NotFinite, PSError, Unreachable
from protocol.frames import VERSION
from protocol.messages import (
    Attach,
    Attached,
    Block,
    Create,
    Created,
    Describe,
    Finish,
    Heartbeat,
    Hello,
    Init,
    Initialised,
    Join,
    Joined,
    Lease,
    Leased,
    Leave,
    Measure,
    Plan,
    Pull,
    Push,
    PushPull,
    Spec,
    Status,
    TensorInfo,
)
from protocol.optimizers import SGD, Optimizer, spec_of
from protocol.status import ClusterStatus
from protocol.tensors import Part, all_finite, dtype_name
from psworker.dialling import greet, reach
from psworker.router import Outgoing, Pulls, as_tensor, plan_pull, plan_push

__all__ = ["Client", "connect", "fetch_plan", "fetch_status"]

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_RETAIN: Final = 1 << 30
"""Idle bytes kept for the next pulls."""

_DESCRIBED: Final = 100
"""Tensors named in one request, so that its header stays below the limit with the longest names."""

_HEARTBEAT: Final = 1.0  # seconds


@asynccontextmanager
async def connect(
    address: str,
    job: str | None = "default",
    *,
    name: str | None = None,
    staleness: float | None = None,
    workers: int | None = None,
    observe: bool = False,
    reconnect_for: float = 5.0,
    plan: Plan | None = None,
) -> AsyncIterator[Client]:
    """Join a job of a cluster as one of its workers, and leave it at the end.

    Args:
        address: the coordinator's ``HOST:PORT``.
        job: the job's name; its tensors are its own. It is made if it does not exist. None: the only
            one that the cluster has.
        name: this worker's name, unique in the job; None: the coordinator gives one.
        staleness: 0 (synchronous) or ``math.inf``; None: what the job has, or inf for a new one.
        workers: the job starts, and this returns, when so many have joined; None: what the job has, or 1.
        observe: use an existing job without being one of its workers: pull, but not push.
        reconnect_for: seconds to keep trying while no server answers.
        plan: the work on data that the coordinator hands out in chunks; for daemons.

    Raises:
        Unreachable: no server answers.
        JobMismatch: the job exists with another staleness, number of workers or plan.
        PSError: any other reason for which the cluster refuses.
    """
    host, port = split_address(address)
    traffic = Traffic()
    first = await reach(host, port, within=reconnect_for, traffic=traffic, rng=_jitter())
    shards = [first]
    try:
        if observe:
            attached: Attached
            attached, _ = await first.request(Attach(job))
            client = Client(shards, traffic, job=attached.job, staleness=attached.staleness)
            hello = Hello((VERSION,), f"psworker/{protocol.__version__}", attached.job)
            addresses = attached.shards
        else:
            joined: Joined
            joined, _ = await first.request(Join(job, name, staleness, workers, plan))
            client = Client(shards, traffic, job=joined.job, staleness=joined.staleness, joined=joined)
            identity = (joined.job, joined.worker, joined.incarnation)
            hello = Hello((VERSION,), f"psworker/{protocol.__version__}", *identity)
            addresses = joined.shards
        heartbeat = asyncio.create_task(client._beat()) if not observe else None
        try:
            for other in addresses[1:]:
                shards.append(await _greet_shard(other, hello, traffic))  # noqa: PERF401 (closed if one fails)
            yield client
        finally:
            if heartbeat is not None:
                heartbeat.cancel()
                await asyncio.gather(heartbeat, return_exceptions=True)
                await client._leave()
    finally:
        for connection in shards:
            connection.close()
        await asyncio.gather(*(connection.wait_closed() for connection in shards))


async def _greet_shard(address: str, hello: Hello, traffic: Traffic) -> Connection:
    try:
        return await greet(*split_address(address), hello, traffic)
    except OSError as error:
        raise Unreachable(
            f"a shard of the cluster does not answer: {error}", field="shard", value=address
        ) from error


async def fetch_plan(address: str, job: str | None, *, reconnect_for: float) -> Plan | None:
    """Return the plan of a job, or of the only one there is with ``job`` None.

    Raises:
        Unreachable: nobody answers for ``reconnect_for`` seconds.
        UnknownJob: there is no such job.
    """
    attached: Attached
    attached, _ = await _ask(*split_address(address), Attach(job), within=reconnect_for)
    return attached.plan


async def fetch_status(host: str, port: int, *, within: float = 5.0) -> ClusterStatus:
    """Return the state of the cluster whose coordinator is at ``host``:``port``.

    Raises:
        Unreachable: nobody answers for ``within`` seconds.
        PSError: the server is not a coordinator.
    """
    _, (payload,) = await _ask(host, port, Status(), within=within)
    return STATUS.decode(payload)


async def _ask(
    host: str, port: int, request: Attach | Status, *, within: float
) -> tuple[Any, Sequence[Array]]:
    """Ask a coordinator one thing, on a connection of its own."""
    connection = await reach(host, port, within=within, traffic=Traffic(), rng=_jitter())
    try:
        return await connection.request(request)
    finally:
        connection.close()
        await connection.wait_closed()


def _jitter() -> random.Random:
    """Return what spreads the attempts of many clients over time."""
    return random.Random()  # noqa: S311 (no secret)


@dataclass(slots=True)
class Report:
    """What the next heartbeats tell the coordinator of this worker's progress."""

    examples: int = 0
    loss: float | None = None


class Client:
    """A client's place in a job; made by ``connect``.

    Attributes:
        job: the job's name.
        name: this worker's name; "" for an observer.
        staleness: the job's, 0 or ``math.inf``.
        clock: the step that this worker is in, from 0.
        joined: what the coordinator said on joining; None for an observer.
        report: what the heartbeats say; a training loop keeps it up to date.
        traffic: bytes received and sent so far.
    """

    def __init__(
        self,
        shards: Sequence[Connection],
        traffic: Traffic,
        *,
        job: str,
        staleness: float,
        joined: Joined | None = None,
    ) -> None:
        self.job = job
        self.name = joined.name if joined else ""
        self.staleness = staleness
        self.clock = joined.clock if joined else 0
        self.joined = joined
        self.report = Report()
        self.traffic = traffic
        self._shards = shards
        self._tensors: dict[str, TensorInfo] = {}
        self._pool = BufferPool(_RETAIN)
        self._creating = asyncio.Lock()

    # --- tensors

    async def create(self, name: str, value: npt.ArrayLike, optimizer: Optimizer | None = None) -> None:
        """Make a dense tensor with initial ``value``, or find that it exists.

        The first to create it sets the value; others wait until it is set and theirs is ignored.

        Args:
            name: 1 to 128 printable characters without slashes.
            value: any shape with at least one element, a dtype of ``protocol.tensors.DTYPES``.
            optimizer: what the server does with pushed gradients; ``SGD()`` if None.

        Raises:
            SpecMismatch: it exists with another dtype, shape or optimizer.
            BadTensor, NotFinite, BadRequest: the value or a setting is not usable.
        """
        array = as_tensor(name, value)
        if not all_finite(array.reshape(-1)):
            raise NotFinite(
                "NaN or infinity in the initial value; nothing was made", field="name", value=name
            )
        optimizer = SGD() if optimizer is None else optimizer
        spec = Spec(dtype_name(array.dtype), array.shape, spec_of(optimizer))
        async with self._creating:  # asking again for what is being made would begin a new attempt
            created: Created
            created, _ = await self._shards[0].request(Create(name, spec))
            if created.attempt is not None:
                flat = array.reshape(-1)
                attempt = created.attempt
                await _all(self._init(name, spec, block, attempt, flat) for block in created.blocks)
                await self._shards[0].request(Initialised(name, attempt))
        self._tensors[name] = TensorInfo(name, spec, created.blocks)

    async def _init(self, name: str, spec: Spec, block: Block, attempt: int, flat: Array) -> None:
        part = Part(name, spec.dtype, block.stop - block.start)
        request = Init(name, spec, attempt, (part,))
        await self._shards[block.shard].request(request, (flat[block.start : block.stop],))

    async def tensors(self) -> dict[str, TensorInfo]:
        """Return what all tensors of the job are, by name."""
        await self._describe(())
        return dict(self._tensors)

    @overload
    async def pull(self, names: str) -> Array: ...  # type: ignore[overload-overlap]
    @overload
    async def pull(self, names: Iterable[str]) -> dict[str, Array]: ...
    async def pull(self, names: str | Iterable[str]) -> Array | dict[str, Array]:
        """Return the current values of one tensor, or of several by name, as read-only arrays.

        Each block is at one version; at staleness 0 all blocks are, else a tensor that is spread over
        several shards may have one shard's block newer than another's.

        Raises:
            UnknownTensor: nobody has created it.
        """
        if isinstance(names, str):
            return (await self.pull([names]))[names]
        pulls = plan_pull(await self._infos(names), self._pool)
        await _all(
            self._shards[shard].request(Pull(tuple(wanted)), into=pulls.into[shard])
            for shard, wanted in pulls.names.items()
        )
        return _read_only(pulls)

    async def push(self, gradients: Mapping[str, npt.ArrayLike], *, weight: float = 1.0) -> None:
        """Have the server's optimizer apply ``gradients``; the arrays must not change meanwhile.

        At staleness 0 they are counted into this worker's step, which ``push_pull`` or ``step`` ends.

        Args:
            gradients: by tensor name; dtype and shape are the tensor's.
            weight: at staleness 0, the share in the step's mean, for example the number of examples.

        Raises:
            UnknownTensor, BadTensor, NotFinite: a gradient is not usable. Nothing was changed.
            NotAMember: this client only observes.
        """
        plan = plan_push(await self._infos(gradients), gradients)
        await _all(
            self._shards[shard].request(Push(tuple(out.parts), self.clock, weight), out.arrays)
            for shard, out in plan.items()
        )

    async def push_pull(
        self,
        gradients: Mapping[str, npt.ArrayLike],
        names: Iterable[str] | None = None,
        *,
        weight: float = 1.0,
    ) -> dict[str, Array]:
        """Push, end this worker's step, and return the new values: one round trip per shard.

        At staleness 0 this waits until all workers have ended the step; the values are those after their
        gradients' weighted mean was applied.

        Args:
            gradients: as for ``push``; may be empty.
            names: the tensors to return; None: those that are pushed.
            weight: as for ``push``.

        Raises:
            PSError: as ``push`` and ``pull``; ``WorkerLost`` at staleness 0 if a worker is gone.
        """
        # At staleness 0 every shard must learn that the step has ended, also those without a block.
        everywhere = self.staleness == 0
        several = everywhere and len(self._shards) > 1
        plan = plan_push(await self._infos(gradients), gradients, also_elsewhere=several)
        pulls = plan_pull(await self._infos(gradients if names is None else names), self._pool)
        shards = range(len(self._shards)) if everywhere else sorted({*plan, *pulls.names})
        nothing = Outgoing()
        step = self.clock
        requests = []
        for shard in shards:
            out = plan.get(shard, nothing)
            request = PushPull(tuple(out.parts), tuple(pulls.names.get(shard, ())), step, weight)
            into = pulls.into.get(shard, ())
            requests.append(self._shards[shard].request(request, out.arrays, into))
        await _all(requests)
        self.clock = max(self.clock, step + 1)
        return _read_only(pulls)

    async def step(self) -> None:
        """End this worker's step; at staleness 0, wait for the others."""
        await self.push_pull({}, ())

    # --- work handed out by the coordinator

    async def lease(self, *, block: bool) -> Leased:
        """Ask for a chunk of data to work on; with ``block``, wait while there is none."""
        leased: Leased
        leased, _ = await self._shards[0].request(Lease(block))
        return leased

    async def finish(self, leased: Leased, examples: int, measures: Mapping[str, float]) -> None:
        """Report a leased chunk as done, with means over its examples."""
        means = tuple(Measure(name, value) for name, value in measures.items())
        work = (leased.kind, leased.epoch, leased.chunk)
        await self._shards[0].request(Finish(*work, examples, means, part=leased.part))

    # --- pieces of the above

    async def _infos(self, names: Iterable[str]) -> list[TensorInfo]:
        tensors = self._tensors
        if isinstance(names, Mapping):  # no name twice
            try:
                return [tensors[name] for name in names]
            except KeyError:
                pass  # described below
        names = tuple(names)
        missing = [name for name in names if name not in self._tensors]
        for begin in range(0, len(missing), _DESCRIBED):
            await self._describe(tuple(missing[begin : begin + _DESCRIBED]))
        if len(set(names)) != len(names):
            raise BadRequest("a tensor is named twice", field="names", value=names)
        return [self._tensors[name] for name in names]

    async def _describe(self, names: tuple[str, ...]) -> None:
        _, (payload,) = await self._shards[0].request(Describe(names))
        self._tensors |= {info.name: info for info in CATALOGUE.decode(payload).infos}

    async def _beat(self) -> None:
        """Tell the coordinator once a second that this worker lives."""
        try:
            while True:
                await self._send_heartbeat()
                await asyncio.sleep(_HEARTBEAT)
        except PSError as error:
            _log.debug("heartbeats end: %s", error)

    async def _send_heartbeat(self) -> None:
        report = self.report
        await self._shards[0].request(Heartbeat(self.clock, report.examples, report.loss))

    async def _leave(self) -> None:
        try:
            await self._send_heartbeat()
            await self._shards[0].request(Leave(self.clock))
        except PSError as error:
            _log.debug("could not say goodbye: %s", error)


async def _all(requests: Iterable[Any]) -> None:
    """Await all ``requests``; raise the first error when every one has ended."""
    requests = list(requests)
    if len(requests) == 1:  # the usual case, without the cost of a task
        await requests[0]
        return
    results = await asyncio.gather(*requests, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _read_only(pulls: Pulls) -> dict[str, Array]:
    for array in pulls.arrays.values():
        array.flags.writeable = False
    return pulls.arrays
