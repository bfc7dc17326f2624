"""The asyncio client: create, pull, push.

async with connect("127.0.0.1:7070", job="demo") as ps:
    await ps.create("w", np.zeros((784, 10), np.float32), optimizer=SGD(lr=0.1))
    new = await ps.push_pull({"w": gradient})
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, overload

import numpy.typing as npt

import protocol
from protocol.addresses import split_address
from protocol.buffers import BufferPool
from protocol.connection import Answer, Traffic, check_length
from protocol.credentials import Access, Credentials
from protocol.documents import CATALOGUE
from protocol.errors import BadRequest, ConnectionLost, Fenced, LogUnwritable, NotFinite, NotReady, PSError
from protocol.events import Event, about
from protocol.frames import VERSION
from protocol.messages import (
    WORK_KINDS,
    Attach,
    Attached,
    Beat,
    Block,
    Create,
    Created,
    Describe,
    Diverged,
    Done,
    Drift,
    DriftHeard,
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
    Marker,
    Measure,
    Plan,
    Prepared,
    Pull,
    Push,
    PushPull,
    Request,
    Reset,
    Skipped,
    Spec,
    TensorInfo,
    check_weight,
)
from protocol.optimizers import SGD, Optimizer, spec_of
from protocol.tables import VALUES, Initial, Zeros
from protocol.tensors import Part, all_finite, dtype_name
from protocol.tls import TLS, StrPath
from psworker.link import Link, Recovery
from psworker.router import as_tensor, plan_pull, plan_push, plan_reset
from psworker.rows import Outgoing, RowPlans, SparseGradient
from psworker.tables import SparseTable, spec_of_table

__all__ = ["Client", "Gradients", "JoinSettings", "Wanted", "connect"]

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

Gradients = Mapping[str, npt.ArrayLike | SparseGradient]
"""Gradients by tensor name."""

Wanted = Iterable[str] | Mapping[str, npt.ArrayLike | None]
"""Names of tensors; or names with the keys of what is a sparse table, and None for what is not."""

_RETAIN: Final = 1 << 30
"""Idle bytes kept for the next pulls."""

_DESCRIBED: Final = 100
"""Tensors named in one request, so that its header stays below the limit with the longest names."""

_NOTHING: Final = Outgoing()
"""What a shard is sent of nothing; nobody adds to it."""

_WATCH_EVERY: Final = 1.0  # seconds, for observers, who are told no heartbeat interval
_GOODBYE_WITHIN: Final = 5.0  # seconds
_OTHER_TIMELINE_PAUSE: Final = 0.05  # seconds, in which connections to servers that went back end, too
_UNWRITABLE_PAUSE: Final = 1.0  # seconds until a server that could not write its log is asked again


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """How to take part in a job; see ``connect``. ``observe``: not as a worker. ``values``: of rows."""

    job: str | None
    name: str | None = None
    staleness: float | None = None
    workers: int | None = None
    backup_workers: int | None = None
    observe: bool = False
    plan: Plan | None = None
    values: str | None = None


@asynccontextmanager
async def connect(
    address: str,
    job: str | None = "default",
    *,
    name: str | None = None,
    staleness: float | None = None,
    workers: int | None = None,
    backup_workers: int | None = None,
    observe: bool = False,
    reconnect_for: float = 60.0,
    values: str | None = None,
    token_file: StrPath | None = None,
    tls: TLS | None = None,
    plan: Plan | None = None,
) -> AsyncIterator[Client]:
    """Join a job of a cluster as one of its workers, and leave it at the end.

    Connections that break are made anew, and what was under way is sent again; it counts once. A worker that
    is declared dead meanwhile has its calls refused with ``Fenced`` until it pulls again, which makes it join
    again: nothing that its former self began is gone on with by mistake.

    Args:
        address: the coordinator's ``HOST:PORT``.
        job: the job's name; its tensors are its own. It is made if it does not exist. None: the only
            one that the cluster has.
        name: this worker's name, unique in the job; None: the coordinator gives one.
        staleness: steps that a worker may be ahead of the slowest: 0 (synchronous) to ``math.inf``
            (asynchronous); None: what the job has, or inf for a new one.
        workers: the job starts, and this returns, when so many have joined; None: what the job has, or 1.
        backup_workers: at staleness 0, how many of the slowest workers' gradients a step does not wait for;
            None: what the job has, or 0.
        observe: use an existing job without being one of its workers: pull, but not push.
        reconnect_for: seconds to keep trying while a server does not answer.
        values: the dtype in which the numbers of sparse tables' rows travel, where it is narrower than the
            table's: ``float16``, ``bfloat16`` or ``float32``; None: the table's own. The servers compute and
            keep rows in the table's dtype all the same.
        token_file: a file whose first token this end proves to know, and expects the servers to know, too.
        tls: how to speak TLS with the servers: ``TLS(ca="ca.pem")``, and with ``cert=`` and ``key=`` if they
            ask for a certificate. Files are read again for each connection, if they have changed.
        plan: the work on data that the coordinator hands out in chunks; for daemons.

    Raises:
        BadRequest: ``values`` is none of these, or the servers do not take it; or a file cannot be used.
        Unauthenticated: the servers do not believe this end, or it does not believe them.
        Unreachable: no server answers.
        JobMismatch: the job exists with another staleness, number of workers or plan.
        PSError: any other reason for which the cluster refuses.
    """
    if values is not None and values not in VALUES:
        raise BadRequest(f"rows travel as one of {', '.join(VALUES)}", field="values", value=values)
    settings = JoinSettings(job, name, staleness, workers, backup_workers, observe, plan, values)
    credentials = Credentials(Access(token_file, tls))
    client = Client(split_address(address), settings, reconnect_for, credentials)
    try:
        await client._enter()
        yield client
    finally:
        try:
            await client._leave()
        finally:  # also when that is cancelled
            await client._close()


@dataclass(slots=True)
class Report:
    """What the next heartbeats tell the coordinator of this worker's progress.

    ``skipped`` returns how many rows of the data were left out.
    """

    examples: int = 0
    loss: float | None = None
    skipped: Callable[[], int] = int


class _Numbered(NamedTuple):
    """What one shard is to be sent; ``numbered`` makes it of its sequence number."""

    shard: int
    numbered: Callable[[int], Request]
    arrays: Sequence[Array]
    into: Sequence[Array] | None = None


class Client:
    """A client's place in a job; made by ``connect``.

    Attributes:
        job: the job's name.
        name: this worker's name; "" for an observer.
        staleness: the job's, as of the last heartbeat.
        rate: what the servers multiply the job's learning rates by, as of the last heartbeat.
        drifts: of the job's stream that were acted on, as of the last heartbeat.
        clock: the step that this worker is in.
        joined: what the coordinator said on joining; None for an observer.
        plan: the job's work, with its text; None: it was made without.
        report: what the heartbeats say; a training loop keeps it up to date.
        traffic: bytes received and sent so far.
        recovery: connections made anew and requests sent again so far.
    """

    def __init__(
        self,
        coordinator: tuple[str, int],
        settings: JoinSettings,
        reconnect_for: float,
        credentials: Credentials | None = None,
    ) -> None:
        self.job = settings.job or ""
        self.name = settings.name or ""
        self.staleness = math.inf
        self.rate = 1.0
        self.drifts = 0
        self.clock = 0
        self.joined: Joined | None = None
        self.plan: Plan | None = None
        self.report = Report()
        self.traffic = Traffic()
        self.recovery = Recovery()
        self._settings = settings
        self._reconnect_for = reconnect_for
        self._credentials = credentials or Credentials()
        self._coordinator = coordinator
        self._links: list[Link] = []
        self._token = secrets.token_hex(8)  # for a join that is tried again
        self._beating: asyncio.Task[None] | None = None
        self._beaten: Answer | None = None
        self._marked = 0  # a checkpoint whose markers are to be sent when there are links
        self._timeline = 0
        self._work = 0  # leases and finishes numbered so far
        self._leased: dict[Leased, int] = {}  # by this incarnation: the numbers of the requests
        self._epoch = 0
        self._fenced = False
        self._idle = True  # nothing was pushed in this step yet
        self._tensors: dict[str, TensorInfo] = {}
        self._pool = BufferPool(_RETAIN)
        self._rows = RowPlans(self._pool, settings.values)
        self._creating = asyncio.Lock()
        self._joining = asyncio.Lock()

    # --- joining and leaving

    def _link(
        self, address: tuple[str, int], hello: Hello, marked: Callable[[int], None] | None = None
    ) -> Link:
        return Link(
            address,
            hello,
            self.traffic,
            self.recovery,
            self._reconnect_for,
            self._settings.values,
            marked,
            self._credentials,
        )

    async def _enter(self) -> None:
        self._tensors.clear()  # on another timeline they may be elsewhere
        self._links = [self._link(self._coordinator, _hello(), self._mark)]
        await self._links[0].open()
        if self._settings.observe:
            attached: Attached
            attached, _ = await self._links[0].send(Attach(self._settings.job))
            self.job, self.staleness, self.plan = attached.job, attached.staleness, attached.plan
            self._links[0].timeline = max(self._links[0].timeline, attached.timeline)
            await self._open_links(attached.shards, _hello(attached.job))
        else:
            await self._join()

    async def _join(self) -> None:
        """Become a worker, or a new incarnation of the one that this was."""
        settings = self._settings
        join = Join(
            token=self._token,
            job=self.job or None,
            name=self.name or None,
            staleness=settings.staleness,
            workers=settings.workers,
            backup_workers=settings.backup_workers,
            plan=settings.plan,
            former=None if self.joined is None else self.joined.incarnation,
        )
        joined: Joined
        joined, _ = await self._links[0].send(join)
        self.joined, self.plan = joined, joined.plan
        self._links[0].timeline = max(self._links[0].timeline, joined.timeline)
        self.job, self.name, self.staleness = joined.job, joined.name, joined.staleness
        self.clock, self._epoch, self._idle, self._work = joined.clock, joined.epoch, True, 0
        self.rate, self.drifts = joined.rate, joined.drifts
        self._leased.clear()
        self._marked = 0
        await self._open_links(joined.shards, _hello(joined.job, joined.worker, joined.incarnation))

    async def _open_links(self, addresses: Sequence[str], hello: Hello) -> None:
        self._links[0].hello = hello
        others = [self._link(split_address(address), hello) for address in addresses[1:]]
        self._links += others
        if self._marked and self.joined is not None:
            self._send_markers(self._marked)
        if self._beating is None:  # now, for it may take its time until all links are open
            self._beating = asyncio.create_task(self._beat())
        await _settled(asyncio.ensure_future(link.open()) for link in others)

    def _mark(self, checkpoint: int) -> None:
        """Say to every shard that what comes is after a checkpoint's cut; what was before it was sent."""
        if self.joined is None or self._fenced:
            self._marked = checkpoint  # as soon as there are links
        else:
            self._send_markers(checkpoint)

    def _send_markers(self, checkpoint: int) -> None:
        self._marked = 0
        for link in self._links:
            link.send_once(partial(_marker, checkpoint)).add_done_callback(_look_at)

    def identity(self) -> dict[str, object]:
        """Return the job, who this is in it, and the membership epoch that was told last, for log lines."""
        return {"job": self.job or None, "worker": self.name or None, "epoch": self._epoch or None}

    async def rejoin(self) -> None:
        """Join again, as a new incarnation, if this worker was declared dead. ``pull`` and ``create`` do so.

        Raises:
            PSError: the cluster refuses, or is lost.
        """
        async with self._joining:
            if self._fenced:
                out = Fenced("this worker was declared dead", field="worker", value=self.name)
                for link in self._links:  # all of them, before anybody finds one of them closed
                    link.fail(out)
                await self._close()
                await self._enter()
                self._fenced = False
                _log.warning(
                    "%s has joined job %s again", self.name, self.job, extra=self._about("worker.rejoined")
                )

    async def _leave(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._fenced or self.joined is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_WITHIN):
                await self._send_heartbeat()
                await self._links[0].send(Leave(self.clock))
        except (TimeoutError, PSError) as error:
            _log.debug("could not say goodbye: %s", error)

    async def _close(self) -> None:
        closed = ConnectionLost("the connection was closed at this end")
        for link in self._links:  # also when this is cancelled
            link.fail(closed)
        for link in self._links:
            await link.close()

    async def _beat(self) -> None:
        """Tell the coordinator that this worker lives, and look after the links."""
        while True:
            if self.joined is not None and self._is_in() and (self._beaten is None or self._beaten.done()):
                self._beaten = self._send_heartbeat()
                self._beaten.add_done_callback(partial(self._heard, self.joined.incarnation))
            interval = self.joined.heartbeat if self.joined else _WATCH_EVERY
            for link in self._links:
                link.watch(interval)
            await asyncio.sleep(interval)

    def _is_in(self) -> bool:
        """Return whether the coordinator expects heartbeats; also while the links are being made anew."""
        if self._joining.locked():
            return self._links[0].hello.worker is not None
        return not self._fenced

    def _send_heartbeat(self) -> Answer:
        report = self.report
        loss = None if report.loss is None else float(report.loss)  # NumPy's numbers do not travel
        return self._links[0].send(Heartbeat(self.clock, int(report.examples), loss, report.skipped()))

    def _heard(self, incarnation: int, answer: Answer) -> None:
        """Act on the answer to a heartbeat."""
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, Fenced):
            self._note_fenced(error, incarnation)
        elif isinstance(error, NotReady):
            return  # the next one tells more
        elif isinstance(error, PSError):
            for link in self._links:
                link.fail(error)  # without a coordinator nothing can go on
        elif error is None and self._is(incarnation):
            beat: Beat = answer.result()[0]
            self.drifts = max(self.drifts, beat.drifts)
            if beat.epoch > self._epoch:
                self._epoch, self.staleness, self.rate = beat.epoch, beat.staleness, beat.rate
                self.clock = max(self.clock, beat.since)

    def _is(self, incarnation: int) -> bool:
        return self.joined is not None and self.joined.incarnation == incarnation

    def _note_fenced(self, error: Fenced, incarnation: int) -> None:
        if not self._fenced and self._is(incarnation):
            self._fenced = True
            _log.warning(
                "%s is out of job %s: %s", self.name, self.job, error.message,
                extra=self._about("worker.fenced"),
            )  # fmt: skip

    def _about(self, event: Event) -> dict[str, object]:
        return about(event, **self.identity())

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
        await self._create(name, spec, array.reshape(-1))

    async def create_sparse(
        self,
        name: str,
        dim: int,
        optimizer: Optimizer | None = None,
        init: Initial | None = None,
        *,
        seed: int = 0,
        dtype: str = "float32",
        admit_after: int = 1,
        expire_after: float = 0.0,
        capacity: int = 0,
    ) -> SparseTable:
        """Make a sparse table, rows of numbers by 64-bit keys, or find that it exists.

        A row is made when its key is first pushed; until then a pull gives what it would begin with.

        Args:
            name: as for ``create``.
            dim: numbers in a row.
            optimizer: what the server does with pushed gradients; ``SGD()`` if None.
            init: what rows begin with; ``Zeros()`` if None. It follows from the key and ``seed`` alone.
            seed: of the initial values.
            dtype: ``float32`` or ``float64``.
            admit_after: pushes that a key must have been in for its row to be made; earlier ones are dropped.
            expire_after: seconds after which a row that nobody has pushed or pulled is dropped; 0: never.
            capacity: rows beyond which those not used for longest are dropped; 0: as many as come.

        Raises:
            SpecMismatch: it exists with other settings.
            BadRequest: a setting is not usable.
        """
        spec = spec_of_table(
            dtype,
            SGD() if optimizer is None else optimizer,
            Zeros() if init is None else init,
            dim=dim,
            seed=seed,
            admit_after=admit_after,
            expire_after=expire_after,
            capacity=capacity,
        )
        await self._create(name, spec, None)
        return self.table(name)

    def table(self, name: str) -> SparseTable:
        """Return a handle on a sparse table that exists; whether it does is seen when it is used."""
        return SparseTable(self, name)

    async def check_is_table(self, name: str) -> None:
        """Raise ``BadRequest`` if a tensor is dense, and ``UnknownTensor`` if nobody has created it."""
        await self._ready()
        (info,) = await self._infos([name])
        if info.spec.table is None:
            raise BadRequest("it is a dense tensor, which has no keys", field="names", value=name)

    async def _create(self, name: str, spec: Spec, flat: Array | None) -> None:
        async with self._creating:  # asking again for what is being made would begin a new attempt
            await self._ready()
            created = await self._made(name, spec, flat)
        self._tensors[name] = TensorInfo(name, spec, created.blocks)

    async def _made(self, name: str, spec: Spec, flat: Array | None) -> Created:
        """Make a tensor, and fill it if that is this client's part."""
        while True:
            created: Created
            created, _ = await self._answer(self._links[0].send(Create(name, spec)))
            attempt = created.attempt
            if attempt is None:
                return created
            try:
                await self._answers([self._init(name, spec, one, attempt, flat) for one in created.blocks])
                await self._answer(self._links[0].send(Initialised(name, attempt)))
            except BadRequest as error:
                if error.field != "attempt":
                    raise
                continue  # a former try of ours has arrived late and begun another attempt
            return created

    def _init(self, name: str, spec: Spec, block: Block, attempt: int, flat: Array | None) -> Answer:
        if flat is None:
            return self._links[block.shard].send(Init(name, spec, attempt, (), block.start, block.stop))
        part = Part(name, spec.dtype, block.stop - block.start)
        request = Init(name, spec, attempt, (part,), block.start)
        return self._links[block.shard].send(request, (flat[block.start : block.stop],))

    async def tensors(self) -> dict[str, TensorInfo]:
        """Return what all tensors of the job are, by name."""
        await self._ready()
        await self._describe(())
        return dict(self._tensors)

    @overload
    async def pull(self, names: str) -> Array: ...  # type: ignore[overload-overlap]
    @overload
    async def pull(self, names: Wanted) -> dict[str, Array]: ...
    async def pull(self, names: str | Wanted) -> Array | dict[str, Array]:
        """Return the current values of one tensor, or of several by name, as read-only arrays.

        Rows of sparse tables are pulled with dense tensors by a mapping from names to keys, in which what
        dense ones have does not matter: ``pull({"w": None, "emb": keys})``. The rows of keys of shape s have
        shape s + (dim,).

        Each block is at one version; at staleness 0 all blocks are, else a tensor that is spread over
        several shards may have one shard's block newer than another's. At a staleness of k steps this waits
        until nobody is more than k steps behind.

        Raises:
            UnknownTensor: nobody has created it.
            BadRequest: keys that are no whole numbers from 0 to 2^64-1, or not where they belong.
        """
        if isinstance(names, str):
            return (await self.pull([names]))[names]
        deadline = math.inf
        while True:
            before = [link.timeline for link in self._links]
            pulled = await self._pulled(names)
            after = [link.timeline for link in self._links]
            if before == after and after.count(after[0]) == len(after):
                return pulled
            # The cluster went back meanwhile: a part may be of before, and another of after.
            now = asyncio.get_running_loop().time()
            deadline = min(deadline, now + self._reconnect_for)
            if now >= deadline:
                raise ConnectionLost(
                    "the servers still have states of different timelines", field="timelines", value=after
                )
            await asyncio.sleep(_OTHER_TIMELINE_PAUSE)

    async def _pulled(self, names: Wanted) -> dict[str, Array]:
        await self._ready()
        infos = await self._infos(names)
        pulls = plan_pull(infos, self._pool, self._rows, names if isinstance(names, Mapping) else {})
        answers = []
        for shard, into in pulls.into.items():
            rows = pulls.wanted.get(shard, _NOTHING)
            pull = Pull(tuple(pulls.names.get(shard, ())), tuple(rows.rows), tuple(rows.parts))
            if rows.arrays:
                self._links[shard].check(rows.arrays)
            answers.append(self._links[shard].send(pull, rows.arrays, into))
        await self._answers(answers)
        return pulls.finish(self._pool)

    async def push(self, gradients: Gradients, *, weight: float = 1.0, done: Done | None = None) -> None:
        """Have the server's optimizer apply ``gradients``; the arrays must not change meanwhile.

        At staleness 0 they are counted into this worker's step, which ``push_pull`` or ``step`` ends.
        A call that is cancelled may take effect all the same: leave its arrays as they are.

        Args:
            gradients: by tensor name; dtype and shape are the tensor's. Of a sparse table, a
                ``SparseGradient(keys, values)``.
            weight: at staleness 0, the share in the step's mean, for example the number of examples.
            done: how far a leased chunk is with this; see ``done``.

        Raises:
            UnknownTensor, BadTensor, NotFinite: a gradient is not usable. Nothing was changed.
            NotAMember: this client only observes.
            BadRequest: the weight is not a finite number, at least 0; or keys that are none.
            LogUnwritable: a server could not write its update log for ``reconnect_for`` seconds. What other
                servers have of it is applied.
            Fenced: this worker was declared dead; what was not acknowledged may have been applied or not.
        """
        check_weight(weight, "weight")  # before it has a number, which such a push would not use up
        self._check_not_out()
        plan = plan_push(await self._infos(gradients), gradients, self._rows)
        self._check_not_out()
        sent = [
            _Numbered(shard, partial(_push, out, self.clock, weight, done), out.arrays)
            for shard, out in plan.items()
        ]
        answers = self._send_all(sent)
        self._idle = False
        await self._taken(sent, answers)

    async def push_pull(
        self,
        gradients: Gradients,
        names: Wanted | None = None,
        *,
        weight: float = 1.0,
        done: Done | None = None,
    ) -> dict[str, Array]:
        """Push, end this worker's step, and return the new values: one round trip per shard.

        At staleness 0 this waits until all workers have ended the step; the values are those after their
        gradients' weighted mean was applied. At a staleness of k steps it waits until nobody is more than k
        steps behind.

        Args:
            gradients: as for ``push``; may be empty.
            names: the tensors to return, as for ``pull``; None: those that are pushed. Of a table without
                keys, the rows that are pushed.
            weight: as for ``push``.
            done: as for ``push``.

        Raises:
            PSError: as ``push`` and ``pull``.
        """
        check_weight(weight, "weight")
        self._check_not_out()
        infos = await self._infos(gradients)
        wanted = await self._infos(gradients if names is None else names)
        self._check_not_out()
        # Every shard must learn that this step has ended, also those without a block: by the time that this
        # arrives all may have to end steps together, though no heartbeat has told yet.
        plan = plan_push(infos, gradients, self._rows, also_elsewhere=len(self._links) > 1)
        pulls = plan_pull(wanted, self._pool, self._rows, _keys_of(gradients, names))
        step = self.clock
        if self._idle and not gradients:
            weight = 0.0
        sent = []
        for shard in range(len(self._links)):
            out, names_there = plan.get(shard, _NOTHING), tuple(pulls.names.get(shard, ()))
            rows = pulls.wanted.get(shard, _NOTHING)
            numbered = partial(_push_pull, out, names_there, rows, step, weight, done)
            arrays = out.arrays + rows.arrays if rows.arrays else out.arrays
            sent.append(_Numbered(shard, numbered, arrays, pulls.into.get(shard, ())))
        answers = self._send_all(sent)
        self._idle = True
        try:
            replies = await self._taken(sent, answers)
        except asyncio.CancelledError:
            self.clock = max(self.clock, step + 1)  # the servers count the step as ended
            raise
        except NotFinite:
            if self.staleness == 0 and all(
                all_finite(array) for out in plan.values() for array in out.arrays
            ):
                self.clock = max(self.clock, step + 1)  # what all came to was not finite: the step is over
            raise
        self.clock = max(self.clock, step + 1, *(reply.clock or 0 for reply in replies))
        return pulls.finish(self._pool)

    async def step(self) -> None:
        """End this worker's step; at staleness 0, wait for the others."""
        await self.push_pull({}, ())

    async def reset(self, values: Mapping[str, npt.ArrayLike | None]) -> None:
        """Have tensors begin anew, as if they had just been created; asynchronous jobs only.

        What other workers have computed on the former values, and push later, is applied all the same.

        Args:
            values: new values by the name of a dense tensor, of its dtype and shape; None for a sparse table,
                which loses all its rows.

        Raises:
            UnknownTensor, BadTensor, NotFinite: a value is not usable.
            BadRequest: the job is not asynchronous; or a table is given values, or a dense tensor none.
            LogUnwritable, Fenced, NotAMember: as for ``push``.
        """
        self._check_not_out()
        infos = await self._infos(values)
        self._check_not_out()
        plan = plan_reset(infos, values, self._rows)
        sent = [
            _Numbered(shard, partial(_reset, out, tuple(tables)), out.arrays)
            for shard, (out, tables) in plan.items()
        ]
        await self._taken(sent, self._send_all(sent))

    # --- work handed out by the coordinator

    async def lease(self, *, block: bool) -> Leased:
        """Ask for a chunk of data to work on; with ``block``, wait while there is none."""
        self._check_not_out()
        number = self._work + 1
        answer = self._links[0].send(Lease(number, block))
        self._work += 1
        leased: Leased
        leased, _ = await self._answer(answer)
        if leased.kind in WORK_KINDS:
            self._leased[leased] = number
        return leased

    def done(self, leased: Leased, batches: int) -> Done | None:
        """Return what a push says with which the first ``batches`` mini-batches of a chunk are done.

        With that of its statistics the survey of a chunk says 1; in a stream it is the offset to go on from.
        """
        number = self._leased.get(leased)
        return None if number is None else Done(number, batches)

    async def finish(
        self,
        leased: Leased,
        examples: int,
        measures: Mapping[str, float],
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        """Report a leased chunk as done, with means over its examples; ``skipped`` are rows, by reason.

        Raises:
            Fenced: it was leased by a former incarnation; others do it again.
        """
        self._check_not_out()
        if leased not in self._leased:
            raise Fenced(
                "the chunk was leased before this worker joined again", field="chunk", value=leased.chunk
            )
        del self._leased[leased]
        means = tuple(Measure(name, value) for name, value in measures.items())
        work = (leased.kind, leased.epoch, leased.chunk)
        left_out = tuple(Skipped(reason, rows) for reason, rows in (skipped or {}).items())
        finish = Finish(self._work + 1, *work, examples, means, leased.part, left_out)
        answer = self._links[0].send(finish)
        self._work += 1
        await self._answer(answer)

    # --- when the job may diverge, or has

    async def prepared(self) -> None:
        """Return when there is a checkpoint of the job to go back to; all its tensors have been created.

        Raises:
            BadRequest: the cluster keeps no checkpoints.
            CheckpointFailed: none could be taken.
            Fenced: this worker is out; what it has created may be gone.
            PSError: the cluster refuses, or is lost.
        """
        await self._when_serving(Prepared())

    async def _when_serving(self, request: Prepared | Diverged) -> None:
        """Ask the coordinator, again while the cluster is not complete."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._reconnect_for
        while True:
            self._check_not_out()
            try:
                await self._answer(self._links[0].send(request))
            except NotReady:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(_OTHER_TIMELINE_PAUSE)
            else:
                return

    async def diverged(self, loss: float) -> float:
        """Have the job go back to its last good checkpoint, at a lower rate, and join it again.

        All its workers are fenced. Where another one has said it before, this only joins again. What this
        worker has leased is given back, and tensors are to be pulled again.

        Args:
            loss: what was found: not finite, or far above the best.

        Returns:
            The job's rate now.

        Raises:
            HasDiverged: there is no checkpoint to go back to, or the job has gone back too often.
            PSError: the cluster refuses, or is lost.
        """
        if not self._fenced:
            with suppress(Fenced):  # which is what it is to be
                await self._when_serving(Diverged(self.clock, float(loss)))
        await self.rejoin()
        return self.rate

    # --- when the job's stream has drifted

    async def drift(self, known: int) -> bool:
        """Say that the stream has drifted; the job's rate becomes the plan's ``raised_rate``.

        Args:
            known: how many drifts that were acted on this worker has heard of.

        Returns:
            Whether this worker is to act on it: another one that has found the same drift was not first.

        Raises:
            PSError: the cluster refuses, is lost, or this worker is out.
        """
        return await self._say_drift(Drift(known))

    async def drift_over(self, known: int) -> bool:
        """Say that a drift is over: the rate is 1 again, unless it was changed or there is a newer drift.

        Returns:
            Whether this has lowered the rate.

        Raises:
            PSError: as ``drift``.
        """
        return await self._say_drift(Drift(known, over=True))

    async def _say_drift(self, request: Drift) -> bool:
        heard: DriftHeard
        heard, _ = await self._answer(self._links[0].send(request))
        self.drifts = max(self.drifts, heard.drifts)
        return heard.acts

    # --- pieces of the above

    def _send_all(self, requests: Sequence[_Numbered]) -> list[Answer]:
        """Send to each shard its share: to all of them or, if one share is too long to be sent, to none."""
        for one in requests:
            self._links[one.shard].check(one.arrays)
        if len(requests) > 1:
            for one in requests:
                if len(one.arrays) + len(one.into or ()) > _DESCRIBED:
                    check_length(one.numbered(1 << 63))
        return [self._links[one.shard].send_once(one.numbered, one.arrays, one.into) for one in requests]

    async def _taken(self, sent: Sequence[_Numbered], answers: list[Answer]) -> list[Any]:
        """Await the answers to pushes; what a server refuses because its disk is full is sent again later."""
        deadline, joined = math.inf, self.joined
        while True:
            try:
                return await self._answers(answers)
            except LogUnwritable as error:
                now = asyncio.get_running_loop().time()
                deadline = min(deadline, now + self._reconnect_for)
                if now >= deadline:
                    raise
                _log.warning("%s; trying for %g s", error, self._reconnect_for, extra=about("push.delayed"))
                await asyncio.sleep(_UNWRITABLE_PAUSE)
                self._check_not_out(joined)
                answers = [
                    self._links[one.shard].send_once(one.numbered, one.arrays, one.into)
                    if isinstance(answer.exception(), LogUnwritable)
                    else answer
                    for one, answer in zip(sent, answers, strict=True)
                ]

    async def _infos(self, names: Iterable[str]) -> list[TensorInfo]:
        tensors = self._tensors
        if self._settings.observe and self._links[0].timeline != self._timeline:
            self._timeline = self._links[0].timeline
            tensors.clear()  # they may be elsewhere
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
        _, (payload,) = await self._answer(self._links[0].send(Describe(names)))
        self._tensors |= {info.name: info for info in CATALOGUE.decode(payload).infos}

    async def _ready(self) -> None:
        """Join again if this worker is out."""
        if self._fenced or self._joining.locked():
            await self.rejoin()

    def _check_not_out(self, since: Joined | None = None) -> None:
        """Refuse to go on with what a former incarnation began: the present one, or that of ``since``."""
        if self._fenced or (since is not None and since is not self.joined):
            raise Fenced(
                "this worker was declared dead; pull, which joins again, and go on from there",
                field="worker",
                value=self.name,
            )

    async def _answer(self, answer: Answer) -> tuple[Any, Sequence[Array]]:
        incarnation = self.joined.incarnation if self.joined else 0
        try:
            return await answer
        except Fenced as error:
            self._note_fenced(error, incarnation)
            raise

    async def _answers(self, answers: Sequence[Answer]) -> list[Any]:
        """Await all ``answers`` and return the replies; raise the first error when every one has ended."""
        incarnation = self.joined.incarnation if self.joined else 0
        try:
            if len(answers) == 1:  # the usual case
                return [(await answers[0])[0]]
            return [reply for reply, _ in await _settled(answers)]
        except Fenced as error:
            self._note_fenced(error, incarnation)
            raise


async def _settled(futures: Iterable[asyncio.Future[Any]]) -> list[Any]:
    """Return the results of all ``futures``; raise the first error when every one has ended."""
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _hello(job: str | None = None, worker: int | None = None, incarnation: int | None = None) -> Hello:
    return Hello((VERSION,), f"psworker/{protocol.__version__}", job, worker, incarnation)


def _push(out: Outgoing, step: int, weight: float, done: Done | None, seq: int) -> Request:
    return Push(tuple(out.parts), step, seq, weight, done, tuple(out.rows))


def _reset(out: Outgoing, tables: tuple[str, ...], seq: int) -> Request:
    return Reset(tuple(out.parts), tables, seq)


def _push_pull(
    out: Outgoing,
    names: tuple[str, ...],
    wanted: Outgoing,
    step: int,
    weight: float,
    done: Done | None,
    seq: int,
) -> Request:
    parts = (*out.parts, *wanted.parts)
    return PushPull(parts, names, step, seq, weight, done, tuple(out.rows), tuple(wanted.rows))


def _keys_of(gradients: Gradients, names: Wanted | None) -> dict[str, npt.ArrayLike | None]:
    """Return the keys of the rows that are wanted: those named, or else those that are pushed."""
    found: dict[str, npt.ArrayLike | None] = {
        name: one.keys for name, one in gradients.items() if isinstance(one, SparseGradient)
    }
    named = names if isinstance(names, Mapping) else {}
    return found | {name: keys for name, keys in named.items() if keys is not None}


def _marker(checkpoint: int, seq: int) -> Request:
    return Marker(seq, checkpoint)


def _look_at(answer: Answer) -> None:
    """Retrieve an error that nobody waits for: the checkpoint is given up without the marker."""
    if not answer.cancelled():
        answer.exception()
