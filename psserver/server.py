"""The server: accepts connections, hands requests to the shard and the coordinator, and stops cleanly."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

import protocol
from protocol.addresses import join_address, split_address
from protocol.auth import LEAST_ROLE, NONCE, Examiner, Role
from protocol.connection import Array, Connection, dial
from protocol.credentials import Access, Credentials
from protocol.daemon.exposition import Page
from protocol.daemon.logs import RateLimited
from protocol.documents import EPOCH, KEPT, MOST, SAVED, WAITS
from protocol.errors import (
    AccessError,
    BadRequest,
    BadTensor,
    CheckpointUnusable,
    ConnectionLost,
    Forbidden,
    HasDiverged,
    LogUnwritable,
    NotReady,
    PSError,
    ShuttingDown,
    Unauthenticated,
    Unreachable,
    VersionMismatch,
    WireError,
)
from protocol.events import about
from protocol.frames import VERSION, encode_prelude
from protocol.messages import (
    REQUESTS,
    Announce,
    Attach,
    Auth,
    Checkpoint,
    Completed,
    Create,
    Cut,
    Decide,
    Describe,
    Diverged,
    Drift,
    Drop,
    Empty,
    Ended,
    Finish,
    Heartbeat,
    Hello,
    Hold,
    Init,
    Initialised,
    Install,
    Join,
    JoinShard,
    Keep,
    Lease,
    Leave,
    Load,
    Marker,
    Ping,
    Prepared,
    Pull,
    Push,
    PushPull,
    Release,
    Reset,
    Restore,
    Saved,
    Set,
    ShardBeat,
    ShardJoined,
    Status,
    Welcome,
    encode_error,
)
from protocol.status import Wait, Waits
from protocol.tls_layer import TLSLayer
from psserver import gauges
from psserver.call import Call
from psserver.coordinator import Coordinator
from psserver.doors import DoorSettings
from psserver.follower import Follower
from psserver.jobs import Session
from psserver.lead import Lead
from psserver.membership import FailureSettings
from psserver.metrics import ServerMetrics
from psserver.patience import PatienceSettings
from psserver.persistence import DurabilitySettings, Persistence
from psserver.reception import Reception, ReceptionSettings
from psserver.shard import Shard
from psserver.status_page import coordinator_pages, other_pages
from psserver.uplink import Uplink, UplinkSettings

__all__ = ["Server", "ServerSettings"]

_log = logging.getLogger(__name__)

_WAIT_FOR_READY: Final = (Attach, Join, Create, Describe, Set, Drop)
_BACKLOG: Final = 4096  # a flood must not fill the system's queue: who is behind it would wait for seconds
_TICKS: Final = 4  # looks a heartbeat interval at who is silent
_DOCUMENTS: Final = frozenset((Announce, Keep, ShardBeat, Saved, Completed, Load))
_LAST_WITHIN: Final = 25.0  # seconds for a last checkpoint: less than Kubernetes gives a process to stop
_WHEN_FROZEN: Final = frozenset(  # what does not change the state that is being saved
    (Ping, Status, Announce, Decide, Hold, Cut, Release, Completed, ShardBeat, Ended, Saved)
)
_GREETINGS: Final = frozenset((Auth.op, Hello.op))
_OPS: Final = frozenset(cls.op for cls in REQUESTS)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is started with. Times in seconds, sizes in bytes.

    ``join`` is the coordinator's address; None: this server is the coordinator and shard 0. ``advertise`` is
    where workers reach this server, if not where it is bound. ``failure`` matters to the coordinator, which
    tells the others, and ``reconnect_for`` to the others. Without ``durability`` nothing outlives it. With
    ``compiled`` sparse tables are computed by compiled kernels, where Numba is installed. ``access`` says how
    those who connect prove who they are, and how this server does.

    One address has at most ``per_address`` of the ``max_connections`` (None: half), and ``kept_connections``
    more are for operators and servers. Who says no hello within ``hello_within``, nothing for
    ``idle_timeout``, or does not read its replies for ``write_timeout`` is shown out.
    """

    host: str = "127.0.0.1"
    port: int = 7070
    shards: int = 1
    join: tuple[str, int] | None = None
    shard: int | None = None
    advertise: tuple[str, int] | None = None
    failure: FailureSettings = field(default_factory=FailureSettings)
    durability: DurabilitySettings | None = None
    reconnect_for: float = 60.0
    max_frame: int = 1 << 30
    max_connections: int = 1024
    per_address: int | None = None
    kept_connections: int = 8
    hello_within: float = 5.0
    idle_timeout: float = 60.0
    write_timeout: float = 30.0
    name_waits_after: float = 1.0
    compiled: bool = False
    access: Access = field(default_factory=Access)

    @property
    def reception(self) -> ReceptionSettings:
        """Who is let in, and how long one waits for whom."""
        half = -(-self.max_connections // 2)
        doors = DoorSettings(
            connections=self.max_connections,
            strangers=half,
            per_address=self.per_address or half,
            kept=self.kept_connections,
        )
        patience = PatienceSettings(self.hello_within, write=self.write_timeout, idle=self.idle_timeout)
        return ReceptionSettings(doors, patience, self.max_frame)

    @property
    def keeps(self) -> str:
        """What outlives the server: ``none``, ``snapshot`` or ``log``."""
        return "none" if self.durability is None else self.durability.mode


class Server:
    """One ``psserver``: listens from ``start`` to ``stop``."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._credentials = Credentials(settings.access, serving=True)
        self.metrics = ServerMetrics(self._gauges)
        self._tasks: set[asyncio.Task[None]] = set()
        self._shard = Shard(self.metrics, self._spawn, self._report)
        self._shard.longest = settings.max_frame
        self._shards = settings.shards
        self._coordinator: Coordinator | None = None
        self._follower: Follower | None = None
        self._lead: Lead | None = None
        self._persistence: Persistence | None = None
        self.metrics.log_failures = self._log_failures
        self.metrics.keys_refused = self._keys_refused
        self.metrics.worker_deaths = self._worker_deaths
        if settings.durability is not None:
            self._persistence = Persistence(settings.durability, self.metrics.log_fsync.observe)
        if settings.join is None:
            self._coordinator = Coordinator(self._shard, settings.shards, self._spawn, settings.failure)
            self._coordinator.links.durability = settings.keeps
            if self._persistence is not None:
                self._lead = Lead(
                    self._coordinator,
                    self._shard,
                    self._persistence,
                    settings.failure,
                    self._spawn,
                    self.metrics,
                    self._drop_clients,
                )
        else:
            self._follower = Follower(self._shard, self._persistence, self._spawn, self._drop_clients)
        self._reception = Reception(
            settings.reception, self, self.metrics.traffic, self.metrics.rejected_frames
        )
        self._connections = self._reception.connections
        self._listener: asyncio.Server | None = None
        self._uplink: Uplink | None = None
        self._stopping = False
        self._refused_log = RateLimited(_log, interval=1.0)
        self._waits: Sequence[Wait] = ()  # for steps, as last looked
        self._making_ready: asyncio.Task[None] | None = None
        self._page_port: int | None = None  # of the coordinator's status page
        self.failed: asyncio.Future[PSError] | None = None

    # --- from start to stop

    async def start(self) -> str:
        """Listen, join the coordinator if there is one, and return the address.

        Raises:
            OSError: the address cannot be bound.
            CheckpointUnusable: the storage cannot be used, or what is in it.
            Unreachable: the coordinator does not answer.
            PSError: the coordinator refuses.
        """
        settings = self._settings
        loop = asyncio.get_running_loop()
        self.failed = loop.create_future()
        # Nobody can be answered by a coordinator that does not know yet which cluster's it is.
        serving = self._lead is None
        self._listener = await loop.create_server(
            self._accept, settings.host, settings.port, backlog=_BACKLOG, start_serving=serving
        )
        host, port = self._listener.sockets[0].getsockname()[:2]
        address = join_address(host, port)
        if self._coordinator is not None:
            self._coordinator.links.own_address = address
            await self._coordinate_from_now_on(self._coordinator, self._listener)
        elif self._follower is not None:
            await self._join(self._follower, host, port)
        self._spawn(self._watch())
        return address

    async def _coordinate_from_now_on(self, coordinator: Coordinator, listener: asyncio.Server) -> None:
        lead, settings = self._lead, self._settings
        if lead is not None:
            with _storage_named(settings.durability):
                await lead.recover()
            await listener.start_serving()
            if settings.durability is not None and settings.durability.every:
                self._spawn(lead.checkpoints.every(settings.durability.every))
        if coordinator.links.ready.is_set() and lead is None:
            coordinator.serve()
        else:
            self._make_ready()
        self._spawn(self._tick(coordinator))

    def _make_ready(self) -> None:
        """See to it that all servers are there, with the state that they should have."""
        if self._making_ready is None or self._making_ready.done():
            self._making_ready = asyncio.get_running_loop().create_task(self._ready())
            self._tasks.add(self._making_ready)
            self._making_ready.add_done_callback(self._ended)

    async def _ready(self) -> None:
        assert self._coordinator is not None  # noqa: S101 (only it is made ready)
        try:
            if self._lead is not None:
                await self._lead.make_ready()
            else:
                await self._coordinator.links.ready.wait()
                self._coordinator.serve()
        except PSError as error:
            self._fail(error)

    def _fail(self, error: PSError) -> None:
        if self.failed is not None and not self.failed.done():
            self.failed.set_result(error)

    async def stop(self) -> None:
        """Refuse new requests, end the connections and wait for what is under way."""
        await self._say_goodbye()
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        connections = tuple(self._connections)
        for connection in connections:
            connection.close(ShuttingDown("the server is stopping"))
        await asyncio.sleep(0)  # a task that is cancelled before it has begun leaves its work un-awaited
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.wait_closed() for connection in connections))
        if self._shard.journal.log is not None:
            try:
                await self._shard.journal.log.close()
            except LogUnwritable as error:
                _log.error("some updates were not made durable, and not acknowledged: %s", error)
        self._shard.close()
        if self._persistence is not None:
            self._persistence.close()

    async def _say_goodbye(self) -> None:
        """Have a last checkpoint taken."""
        try:
            async with asyncio.timeout(_LAST_WITHIN):
                if self._lead is not None:
                    await self._lead.stop()
                elif self._follower is not None and self._uplink is not None:
                    await self._follower.stop(self._uplink)
        except (PSError, TimeoutError, OSError) as error:
            reason = str(error) or f"not within {_LAST_WITHIN:g} s"
            if self._shard.journal.log is not None:
                _log.info(
                    "no last checkpoint was taken, the update log has it all: %s", reason,
                    extra=about("checkpoint.failed"),
                )  # fmt: skip
            else:
                _log.warning("no last checkpoint was taken: %s", reason, extra=about("checkpoint.failed"))

    def _drop_clients(self) -> None:
        """End the connections of clients, which make new ones: the state is another one."""
        for connection in tuple(self._connections):
            if connection.session.job is not None:
                connection.abort()

    def is_ready(self) -> bool:
        """Return whether requests are answered at once: all shards have joined."""
        if self._stopping:
            return False
        if self._coordinator is not None:
            return self._coordinator.serving.is_set()
        return self._uplink is not None and self._uplink.is_open and self._serves()

    def why_not_ready(self) -> str:
        """Return what this server waits for before it may serve; "": nothing."""
        if self.is_ready():
            return ""
        if self._stopping:
            return "it stops"
        if self._coordinator is not None:
            away = self._coordinator.links.away()
            return f"it waits for server {', '.join(map(str, away))}" if away else "it restores its state"
        if self._settings.join is not None and (self._uplink is None or not self._uplink.is_open):
            return f"it waits for the coordinator at {join_address(*self._settings.join)}"
        return "it waits for the other servers, or restores its state"

    def identity(self) -> dict[str, object]:
        """Return this server's number and, if it has one job only, which and its epoch, for log lines."""
        number = self._shard.number or self._settings.shard
        if number is None and self._coordinator is not None:
            number = 0
        jobs = tuple(self._shard.jobs.values())  # called from any thread
        if len(jobs) != 1:
            return {"shard": number}
        return {"shard": number, "job": jobs[0].name, "epoch": jobs[0].epoch}

    def _serves(self) -> bool:
        """Return whether this server has the state that it should have."""
        if self._coordinator is not None:
            return self._coordinator.serving.is_set()
        return self._follower is not None and self._follower.serving

    async def _join(self, follower: Follower, host: str, port: int) -> None:
        settings = self._settings
        assert settings.join is not None  # noqa: S101 (it has a follower)
        coordinator = settings.join
        with _storage_named(settings.durability):
            number = await follower.recover(settings.shard)
        reachable = None if host in ("0.0.0.0", "::") else host  # noqa: S104 (compared, not bound)
        own = (reachable, port) if settings.advertise is None else settings.advertise
        offer = JoinShard(own[1], own[0], number, durability=settings.keeps)
        self._uplink = Uplink(
            lambda: self._dial_coordinator(*coordinator),
            UplinkSettings(offer, settings.reconnect_for, settings.failure.dead_after),
            lambda: Waits(tuple(self._shard.waits()), self._shard.log_problem, self._shard.load()),
            self._joined,
            lambda: (follower.found.cluster, follower.timeline, follower.found.lost),
            lambda: self._credentials.servers_token,
        )
        try:
            joined = await self._uplink.join()
        except (Unreachable, ConnectionLost) as error:
            joined = await self._uplink.try_to_join(error)  # it may be about to start, too
        await self._joined(joined)
        self._spawn(self._keep(self._uplink))

    async def _joined(self, joined: ShardJoined) -> None:
        """Take the place that the coordinator gives."""
        assert self._follower is not None  # noqa: S101 (who joins has one)
        self._shards = joined.shards
        self._page_port = joined.metrics_port
        await self._follower.joined(joined)
        self._shard.report_all()

    async def _keep(self, uplink: Uplink) -> None:
        try:
            await uplink.keep()
        except PSError as error:
            self._fail(error)

    async def _dial_coordinator(self, host: str, port: int) -> Connection:
        self._credentials.look()
        try:
            connection = await dial(
                host,
                port,
                self,
                max_payload=self._settings.max_frame,
                traffic=self.metrics.traffic,
                tls=self._credentials.dialling,
            )
        except OSError as error:
            raise Unreachable(
                f"no coordinator answers ({error.strerror or error}); is psserver running there?",
                field="join",
                value=f"{host}:{port}",
            ) from error
        connection.session = Session()
        connection.session.admit(Role.ADMIN)  # the coordinator answers on it, and tells epochs
        self._connections.add(connection)
        return connection

    def _report(self, ended: Ended) -> None:
        """Tell the coordinator who has ended a step here."""
        if self._coordinator is not None:
            self._coordinator.ended(0, ended)
        elif self._uplink is not None:
            self._uplink.tell(ended)

    async def _tick(self, coordinator: Coordinator) -> None:
        """Have the coordinator look after those that are silent."""
        period = self._settings.failure.heartbeat / _TICKS
        while True:
            await asyncio.sleep(period)
            coordinator.tick(period)

    def _accept(self) -> asyncio.BaseProtocol:
        """Return what the loop talks to: a connection that somebody makes, or TLS below it."""
        guest = self._reception.accept()
        guest.expects = _GREETINGS
        serving = self._credentials.serving
        if serving is None:
            return guest
        return TLSLayer(guest, serving.context, channel=serving.channel, refusal=_speak_tls())

    def reload(self) -> None:
        """Read tokens and certificates again; what is connected stays so."""
        self._credentials.look(anyway=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` in a task that ``stop`` awaits."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("a task of this server failed", exc_info=error, extra=about("request.failed"))

    async def _watch(self) -> None:
        """Once a second: show out who is too slow, look after files and tables, name who keeps others."""
        loop = asyncio.get_running_loop()
        named: set[tuple[str, int, str]] = set()  # waits that were logged
        while True:
            await asyncio.sleep(1.0)
            self._reception.look(loop.time(), self._heartbeat)
            self._credentials.look()
            self._shard.load()  # the rates are over what was read before
            self._shard.drop_rows()
            if self._settings.compiled:
                self._shard.use_compiled()
            if self._lead is not None:
                self._lead.checkpoints.look()
            self._waits = self._coordinator.waits() if self._coordinator else self._shard.waits()
            named = self._name(self._waits, named)

    @property
    def _heartbeat(self) -> float:
        """Seconds between two words of a client, as far as this server knows."""
        own = self._settings.failure.heartbeat
        return own if self._uplink is None else max(own, self._uplink.heartbeat)

    def _name(self, waits: Sequence[Wait], named: set[tuple[str, int, str]]) -> set[tuple[str, int, str]]:
        """Log each wait that has become long, once; return those that were, as long as they last."""
        long = {(w.job, w.shard, w.what): w for w in waits if w.seconds > self._settings.name_waits_after}
        for key in long.keys() - named:
            wait = long[key]
            _log.warning(
                "job %s: %s on shard %d waits for %s since %.1f s",
                wait.job, wait.what, wait.shard, ", ".join(wait.waiting_for), wait.seconds,
                extra=about("wait.long", job=wait.job, about_shard=wait.shard, waiting_for=wait.waiting_for),
            )  # fmt: skip
        return set(long)

    # --- what the connections call

    def prepare(self, connection: Connection, request: Any) -> Sequence[Array]:
        """Return where the payload of a request goes."""
        kind = type(request)
        if not connection.greeted and request.op not in _GREETINGS:
            raise BadRequest("the first request of a connection is hello", field="op", value=request.op)
        if kind not in connection.session.may:
            raise _forbidden(connection.session.role, request)
        if self._stopping:
            raise ShuttingDown("the server is stopping")
        if kind is Push or kind is PushPull:
            return self._shard.arrays_for_push(connection.session, request)
        if kind is Pull:
            return self._shard.arrays_for_pull(connection.session, request)
        if kind is Init:
            return self._shard.arrays_for_init(connection.session, request)
        if kind is Reset:
            return self._shard.arrays_for_reset(connection.session, request)
        if kind in _DOCUMENTS:
            return [_document(request)]
        return ()

    def handle(self, connection: Connection, request_id: int, request: Any, arrays: Sequence[Array]) -> None:
        """Answer a request."""
        call = Call(connection, request_id, request.op, self.metrics)
        try:
            self._dispatch(call, connection.session, request, arrays)
        except Exception as error:
            call.fail_with(error)

    def _dispatch(self, call: Call, session: Session, request: Any, arrays: Sequence[Array]) -> None:
        match request:
            case Push() | PushPull():  # by far the most frequent come first
                self._shard.push(call, session, request, arrays)
            case Pull():
                self._shard.pull(call, session, request, arrays)
            case _ if self._shard.is_frozen and type(request) not in _WHEN_FROZEN:
                raise ShuttingDown("the server is stopping")
            case Init():
                self._shard.init(call, session, request, arrays)
            case Reset():
                self._shard.reset(call, session, request, arrays)
            case Auth():
                self._auth(call, session, request)
            case Hello():
                self._hello(call, session, request)
                self._reception.greeted(call.connection)
            case Ping():
                call.reply(Empty())
            case Marker():
                self._shard.marker(call, session, request)
            case Announce() | Keep() | Decide():
                self._follow(call, request, arrays)
            case Hold() | Cut() | Release() | Completed() | Load() | Install():
                self._follow(call, request, arrays)
            case ShardBeat() | Ended() | Saved():
                self._hear(call, request, arrays)
            case _:
                self._coordinate(call, session, request)

    def refused(self, connection: Connection, op: str, error: PSError) -> None:
        """Count a request that was refused, or bytes that made no sense."""
        self._reception.refused(connection, error)
        if connection.expects:
            self._not_greeted(connection, op, error)
        if isinstance(error, WireError) or not op:
            self.metrics.rejected_frames[error.code.lower()] += 1
            self._reception.log_rejected(connection, error)
        else:
            self.metrics.requests[op if op in _OPS else "other", error.code.lower()] += 1

    def _not_greeted(self, connection: Connection, op: str, error: PSError) -> None:
        """Count why a hello failed; who cannot prove who it is gets no second try on this connection."""
        reason = _why_not_greeted(error)
        if reason:
            self.metrics.failed_hellos[reason] += 1
        if isinstance(error, AccessError):
            loop = asyncio.get_running_loop()
            if op:
                self._refused_log.warning(loop.time(), "did not greet %s: %s", connection.peer, error)
            loop.call_soon(connection.close)  # when it has been told

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self._reception.lost(connection)
        if self._coordinator is not None and not self._stopping:
            shard = self._coordinator.links.find(connection)
            if shard is not None and self._lead is not None:
                self._lead.checkpoints.lost(shard)
            self._coordinator.connection_lost(connection)

    # --- requests

    def _auth(self, call: Call, session: Session, request: Auth) -> None:
        if call.connection.greeted or session.examiner is not None:
            raise BadRequest(
                "a connection says auth once, and before its hello", field="op", value=request.op
            )
        if not self._credentials.tokens:
            raise Unauthenticated(
                "this server knows no tokens: start it with --token-file, or leave the client's away",
                field="proof",
                value="unknown",
            )
        session.examiner = Examiner(request, secrets.token_bytes(NONCE))
        call.reply(session.examiner.challenge())

    def _examine(self, call: Call, session: Session, request: Hello) -> tuple[Role, str | None]:
        """Return what the peer may do, and the server's own proof if it is asked for one."""
        if not self._credentials.tokens:
            return Role.ADMIN, None
        if session.examiner is None:
            raise Unauthenticated(
                "this server takes nobody without a token; give --token-file", field="proof", value="absent"
            )
        return session.examiner.examine(request, call.connection.channel, self._credentials.tokens)

    def _hello(self, call: Call, session: Session, request: Hello) -> None:
        if call.connection.greeted:
            raise BadRequest("a connection says hello once", field="op", value=request.op)
        if VERSION not in request.versions:
            raise VersionMismatch(
                f"this server speaks protocol version {VERSION}", field="versions", value=request.versions
            )
        role, proof = self._examine(call, session, request)
        if request.job is not None and not self._serves():
            raise NotReady("the server is taking up its state; ask again")
        session.admit(role)
        call.connection.greeted, call.connection.expects = True, ()
        session.job, session.worker, session.incarnation = request.job, request.worker, request.incarnation
        server = f"psserver/{protocol.__version__}"
        if self._coordinator is not None:
            self._coordinator.hello(session, call.connection)
        welcome = (
            VERSION,
            server,
            self._shard.number,
            self._shards,
            self._settings.max_frame,
            self._timeline,
        )
        call.reply(Welcome(*welcome, proof=proof))

    @property
    def _timeline(self) -> int:
        """What this server's state is of; 0: it has none."""
        if self._coordinator is not None:
            return self._coordinator.links.timeline
        return self._follower.timeline if self._follower is not None else 0

    def _follow(self, call: Call, request: Any, arrays: Sequence[Array]) -> None:
        if self._uplink is None or self._follower is None or not self._uplink.is_at(call.connection):
            raise BadRequest("only the coordinator may say this", field="op", value=request.op)
        if self._shard.is_frozen and isinstance(request, Announce | Decide):
            return  # told again when this shard is back
        if self._follower.is_early(partial(self._follow_later, call, request, arrays)):
            return
        if isinstance(request, Announce):
            self._shard.follow(EPOCH.decode(arrays[0]))
            call.reply(Empty())
        elif isinstance(request, Decide):
            self._shard.decide(request)
        elif isinstance(request, Keep):
            self._follower.keep(call, KEPT.decode(arrays[0]))
        else:
            self._follower.follow(call, self._uplink, request, arrays)

    def _follow_later(self, call: Call, request: Any, arrays: Sequence[Array]) -> None:
        try:
            self._follow(call, request, arrays)
        except Exception as error:
            call.fail_with(error)

    def _hear(self, call: Call, request: ShardBeat | Ended | Saved, arrays: Sequence[Array]) -> None:
        if self._coordinator is None:
            raise self._not_the_coordinator(request.op)
        links = self._coordinator.links
        if isinstance(request, ShardBeat):
            links.heartbeat(call.connection, WAITS.decode(arrays[0]))
        elif isinstance(request, Ended):
            self._coordinator.ended(links.number_of(call.connection), request)
        else:
            files, shard = SAVED.decode(arrays[0]).files, links.number_of(call.connection)
            if self._lead is not None:
                self._lead.checkpoints.saved(shard, request, files)
        call.reply(Empty())

    def _not_the_coordinator(self, op: str) -> BadRequest:
        where = "" if self._settings.join is None else f", which is at {join_address(*self._settings.join)}"
        return BadRequest(f"this server is not the coordinator; ask that{where}", field="op", value=op)

    def _coordinate(self, call: Call, session: Session, request: Any) -> None:
        coordinator = self._coordinator
        if coordinator is None:
            raise self._not_the_coordinator(request.op)
        if isinstance(request, JoinShard):
            coordinator.links.join(call, request)
            if request.lost and not coordinator.links.must_load:
                coordinator.fence_all()
            self._look_at_shards(coordinator)
        elif isinstance(request, Status):
            coordinator.status(call, request)
        elif isinstance(request, Checkpoint | Restore | Prepared | Diverged):
            self._spawn(call.answer_with(self._lead_on(call, session, request)))
        elif not coordinator.serving.is_set():
            if not isinstance(request, _WAIT_FOR_READY):
                raise NotReady("the cluster is not complete; ask again")
            self._spawn(call.answer_with(self._when_ready(coordinator, call, session, request)))
        elif coordinator.is_held(session) and not isinstance(request, Heartbeat):
            coordinator.hold(session, partial(_ask_held, coordinator, call, session, request))
        else:
            _ask(coordinator, call, session, request)

    def _look_at_shards(self, coordinator: Coordinator) -> None:
        """See whether a shard that has just joined makes the cluster go back to a checkpoint."""
        if coordinator.links.must_load and coordinator.serving.is_set():
            coordinator.pause()
            self._drop_clients()
            self._make_ready()

    async def _lead_on(
        self, call: Call, session: Session, request: Checkpoint | Restore | Prepared | Diverged
    ) -> None:
        if self._lead is None and isinstance(request, Diverged):
            raise HasDiverged(
                "the cluster keeps no checkpoint to go back to; start psserver with --checkpoint-dir, or "
                "take a lower learning rate",
                field="loss",
                value=request.loss,
            )
        if self._lead is None:
            raise BadRequest(
                "the cluster keeps nothing; start psserver with --checkpoint-dir",
                field="op",
                value=request.op,
            )
        if isinstance(request, Checkpoint):
            call.reply(await self._lead.checkpoint())
            return
        if isinstance(request, Prepared):
            await self._lead.prepared(call, session)
            return
        try:
            if isinstance(request, Restore):
                await self._lead.restore(call, request)
            else:
                await self._lead.diverged(call, session, request)
        finally:  # a server that went away in the middle of it is waited for; then all go back
            if self._lead.must_load:
                self._make_ready()

    @staticmethod
    async def _when_ready(coordinator: Coordinator, call: Call, session: Session, request: Any) -> None:
        await coordinator.serving.wait()
        if call.connection.is_open:  # who has gone away meanwhile must not become a member
            _ask(coordinator, call, session, request)

    # --- metrics

    def pages(self, loop: asyncio.AbstractEventLoop) -> Mapping[str, Page]:
        """Return what the metrics port of this server, which runs in ``loop``, shows besides metrics."""
        if self._coordinator is not None:
            return coordinator_pages(self._coordinator.cluster_status, loop)
        host = self._settings.join[0] if self._settings.join is not None else ""
        return other_pages(lambda: (host, self._page_port), lambda: self._shard.number)

    def page_is_at(self, address: str) -> None:
        """Have the other servers point to the status page there."""
        if self._coordinator is not None:
            self._coordinator.links.metrics_port = split_address(address)[1]

    def _log_failures(self) -> int:
        log = self._shard.journal.log
        return 0 if log is None else log.failures

    def _keys_refused(self) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for job in list(self._shard.jobs.values()):
            found[job.label] += sum(table.refused for table in job.tables())
        return found

    def _worker_deaths(self) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        deaths = self._coordinator.deaths() if self._coordinator is not None else {}
        for name, count in deaths.items():
            job = self._shard.jobs.get(name)
            if job is not None:
                found[job.label] += count
        return found

    def _gauges(self) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
        found: gauges.Values = {
            ("psserver_build_info", (("version", protocol.__version__), ("protocol", str(VERSION)))): 1.0,
            ("psserver_connections", ()): len(self._connections),
            ("psserver_timeline", ()): self._timeline,
        }
        found |= gauges.of_shard(self._shard, self._waits)
        if self._persistence is not None:
            found |= gauges.of_storage(self._persistence)
        if self._lead is not None and self._settings.durability is not None:
            found |= gauges.of_checkpoints(self._lead.checkpoints, self._settings.durability.every)
        if self._coordinator is not None:
            found |= gauges.of_coordinator(self._coordinator, self._shard.jobs)
        return found


@contextmanager
def _storage_named(settings: DurabilitySettings | None) -> Iterator[None]:
    """Say which storage an error of the system is about."""
    try:
        yield
    except OSError as error:
        where = "" if settings is None else settings.url
        raise CheckpointUnusable(
            f"it cannot be used: {error}", field="checkpoint-dir", value=where
        ) from error


def _speak_tls() -> bytes:
    """Return an error as a client can read it that speaks no TLS."""
    error = Unauthenticated(
        "this server speaks TLS only; give --tls-ca, and --tls-cert and --tls-key if it asks for them",
        field="tls",
        value="plain",
    )
    header = encode_error(0, error)
    return encode_prelude(len(header), 0) + header


def _why_not_greeted(error: PSError) -> str:
    """Return the reason under which a hello that failed is counted; "": it may yet come."""
    match error:
        case Unauthenticated(field="tls"):
            return error.value
        case Unauthenticated():
            return "missing" if error.value == "absent" else "token"
        case VersionMismatch():
            return "version"
        case WireError(field="tls"):
            return "tls"
        case _:
            return ""


def _forbidden(role: Role, request: Any) -> Forbidden:
    needed = LEAST_ROLE[type(request)]
    return Forbidden(
        f"this takes the token of an {needed}; yours is a {role}'s (the first one of --token-file is shown)",
        field="op",
        value=request.op,
    )


def _document(request: Any) -> Array:
    """Return where the one document that such a request carries goes."""
    if len(request.tensors) != 1 or request.tensors[0].dtype != "uint8" or request.tensors[0].elements > MOST:
        raise BadTensor(f"expected one document of at most {MOST} bytes", field="tensors", value=request.op)
    return np.empty(request.tensors[0].elements, np.uint8)


def _ask_held(coordinator: Coordinator, call: Call, session: Session, request: Any) -> None:
    try:
        _ask(coordinator, call, session, request)
    except Exception as error:
        call.fail_with(error)


def _ask(coordinator: Coordinator, call: Call, session: Session, request: Any) -> None:
    match request:
        case Heartbeat():
            coordinator.heartbeat(call, session, request)
        case Lease():
            coordinator.lease(call, session, request)
        case Finish():
            coordinator.finish(call, session, request)
        case Drift():
            coordinator.drift(call, session, request)
        case Attach():
            coordinator.attach(call, session, request)
        case Join():
            coordinator.join(call, session, request)
        case Leave():
            coordinator.leave(call, session, request)
        case Create():
            coordinator.create(call, session, request)
        case Initialised():
            coordinator.initialised(call, session, request)
        case Describe():
            coordinator.describe(call, session, request)
        case Set():
            coordinator.change(call, request)
        case Drop():
            coordinator.drop(call, session, request)
        case _:
            raise BadRequest("a coordinator says this to workers", field="op", value=request.op)
