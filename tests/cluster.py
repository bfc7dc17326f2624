"""A whole cluster in the event loop of a test, and two ways of talking to it besides the client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from protocol.connection import Connection, RefuseAll, Traffic, dial
from protocol.frames import PRELUDE, VERSION, encode_prelude
from protocol.messages import Checkpoint, Checkpointed, Hello, Leave, Restore
from protocol.status import ClusterStatus, JobStatus
from protocol.tensors import write_buffers
from psserver.membership import FailureSettings
from psserver.persistence import DurabilitySettings
from psserver.server import Server, ServerSettings
from psworker.asking import ask, fetch_status
from psworker.client import Client, connect
from psworker.sync import SyncClient

T = TypeVar("T")

MAX_PAYLOAD = 1 << 30

_UNTIL = 60.0  # seconds

EAGER = FailureSettings(heartbeat=0.05, dead_after=0.3)
"""For tests of who has gone, so that they are quick."""

PATIENT = FailureSettings(heartbeat=60.0, dead_after=300.0)
"""For tests in which nobody dies: on a busy machine the one loop of servers and workers stands still for
seconds, after which some would be taken for dead."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Servers that listen, the coordinator first, and its address."""

    servers: list[Server]
    address: str

    @property
    def endpoint(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    async def status(self) -> ClusterStatus:
        return await fetch_status(*self.endpoint)

    async def job(self, name: str = "default") -> JobStatus:
        (found,) = [job for job in (await self.status()).jobs if job.name == name]
        return found

    async def until(self, condition: Callable[[ClusterStatus], bool]) -> ClusterStatus:
        """Ask for the status, one round trip after the other, until the condition holds.

        What does not come about ends here: an alarm from outside may be lost in a callback of the loop.
        """
        async with asyncio.timeout(_UNTIL):
            while not condition(status := await self.status()):
                pass
            return status

    async def add_shard(self, **settings: Any) -> Server:
        server = Server(ServerSettings(port=0, join=self.endpoint, **settings))
        self.servers.append(server)
        await server.start()
        return server


class DurableCluster:
    """Servers that keep their state, on ports that stay: each can be stopped or killed, and started again.

    Args:
        directory: of the checkpoints and logs.
        shards: how many servers there are.
        separate: each server has a directory of its own, below ``directory``.
        settings: of all servers.
    """

    def __init__(
        self,
        directory: Path,
        shards: int,
        mode: Literal["snapshot", "log"],
        *,
        separate: bool = False,
        every: float = 0.0,
        keep: int = 3,
        **settings: Any,
    ) -> None:
        self.shards = shards
        self.servers: list[Server | None] = [None] * shards
        self._ports = [0] * shards
        self._settings = settings
        urls = [directory / f"server-{number}" if separate else directory for number in range(shards)]
        self.durability = [DurabilitySettings(mode, str(url), every, keep) for url in urls]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self._ports[0]

    def __getitem__(self, number: int) -> Server:
        server = self.servers[number]
        assert server is not None
        return server

    async def start(self, *numbers: int) -> None:
        """Start these servers, or all, in this order, as far as they are not running."""
        for number in numbers or range(self.shards):
            if self.servers[number] is None:
                await self._start(number)

    async def _start(self, number: int) -> None:
        place = {"join": self.endpoint, "shard": number} if number else {"shards": self.shards}
        server = Server(
            ServerSettings(
                port=self._ports[number], durability=self.durability[number], **place, **self._settings
            )
        )
        self.servers[number] = server
        address = await server.start()
        self._ports[number] = int(address.rpartition(":")[2])

    async def stop(self, *numbers: int) -> None:
        """Stop these servers, or all but the coordinator and then that, as SIGTERM would."""
        for number in numbers or range(self.shards - 1, -1, -1):
            server, self.servers[number] = self.servers[number], None
            if server is not None:
                await server.stop()

    async def kill(self, *numbers: int) -> None:
        """End these servers as SIGKILL would, as far as others can see: nothing is said any more."""
        for number in numbers:
            server, self.servers[number] = self.servers[number], None
            if server is not None:
                await killed(server)

    async def restore(self, url: Path | str, **request: Any) -> Checkpointed:
        answer: Checkpointed
        answer, _ = await ask(*self.endpoint, Restore(str(url), **request), within=5.0)
        return answer

    async def checkpoint(self) -> Checkpointed:
        answer: Checkpointed
        answer, _ = await ask(*self.endpoint, Checkpoint(), within=5.0)
        return answer


async def killed(server: Server) -> None:
    """Have a server in this process be dead: its connections end, and it does nothing more."""
    if server._listener is not None:
        server._listener.close()
    server._stopping = True
    for connection in tuple(server._connections):
        connection.abort()
    server._lead = server._follower = None
    await server.stop()


@asynccontextmanager
async def durable_cluster(
    directory: Path, shards: int, mode: Literal["snapshot", "log"] = "snapshot", **settings: Any
) -> AsyncIterator[DurableCluster]:
    """A ``DurableCluster`` whose servers have been started; at the end they are dead."""
    cluster = DurableCluster(directory, shards, mode, **settings)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.kill(*range(shards - 1, -1, -1))


@asynccontextmanager
async def running_cluster(
    shards: int = 1, started: int | None = None, **settings: Any
) -> AsyncIterator[Cluster]:
    """A cluster of ``shards`` servers, of which ``started`` (None: all) have been started."""
    coordinator = Server(ServerSettings(port=0, shards=shards, **settings))
    cluster = Cluster([coordinator], await coordinator.start())
    try:
        for _ in range((started or shards) - 1):
            await cluster.add_shard()
        yield cluster
    finally:
        for server in reversed(cluster.servers):
            await server.stop()


class Elsewhere:
    """A cluster in a thread and an event loop of its own."""

    def __init__(self, shards: int, settings: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(shards, settings))
        self._thread.start()
        self._started.wait()

    def _run(self, shards: int, settings: dict[str, Any]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(shards, settings))

    async def _serve(self, shards: int, settings: dict[str, Any]) -> None:
        async with running_cluster(shards, **settings) as self.cluster:
            self._started.set()
            await self._stop.wait()

    @property
    def address(self) -> str:
        return self.cluster.address

    def status(self) -> ClusterStatus:
        return self.until(lambda _: True)

    def until(self, condition: Callable[[ClusterStatus], bool]) -> ClusterStatus:
        return self.run(self.cluster.until(condition))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the cluster's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()


@contextmanager
def cluster_in_thread(shards: int = 1, **settings: Any) -> Iterator[Elsewhere]:
    cluster = Elsewhere(shards, settings)
    try:
        yield cluster
    finally:
        cluster.stop()


async def put_out(cluster: Cluster, client: Client | SyncClient) -> None:
    """Say goodbye in the name of a worker that knows nothing of it: from now on it is fenced."""
    joined = client.joined
    assert joined is not None
    async with connected(cluster.address, hello(joined.job, joined.worker, joined.incarnation)) as connection:
        await connection.request(Leave(client.clock))


async def holds(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until the condition holds."""
    while True:
        if condition():
            return
        await asyncio.sleep(0)


@asynccontextmanager
async def workers(address: str, count: int, **settings: Any) -> AsyncIterator[list[Client]]:
    """Workers w0, w1, ... of one job, which starts with them."""
    async with AsyncExitStack() as stack:
        joining = [connect(address, name=f"w{number}", workers=count, **settings) for number in range(count)]
        yield list(await asyncio.gather(*(stack.enter_async_context(one) for one in joining)))


@asynccontextmanager
async def connected(address: str, hello: Hello | None = None) -> AsyncIterator[Connection]:
    """A connection that sends whatever message it is given; without a client's care."""
    host, _, port = address.rpartition(":")
    connection = await dial(host, int(port), RefuseAll(), max_payload=MAX_PAYLOAD, traffic=Traffic())
    try:
        if hello is not None:
            await connection.request(hello)
        yield connection
    finally:
        connection.close()
        await connection.wait_closed()


def hello(job: str | None = None, worker: int | None = None, incarnation: int | None = None) -> Hello:
    return Hello((VERSION,), "test", job, worker, incarnation)


class Wire:
    """A connection that sends any header at all, one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._id = 0

    async def ask(self, op: Any, payload: bytes = b"", **fields: Any) -> dict[str, Any]:
        """Send a request and return the reply's header, whatever it is."""
        self.send(op, payload, len(payload), **fields)
        return (await self.reply())[0]

    def send(self, op: Any, payload: bytes, announced: int, **fields: Any) -> None:
        """Send a request; of the payload that it announces only ``payload`` for now."""
        self._id += 1
        header: bytes = msgpack.packb({"op": op, "id": self._id, **fields})
        self._writer.write(encode_prelude(len(header), announced) + header + payload)

    def send_more(self, payload: bytes) -> None:
        self._writer.write(payload)

    async def reply(self) -> tuple[dict[str, Any], bytes]:
        prelude = await self._reader.readexactly(PRELUDE.size)
        _, _, _, header, payload = PRELUDE.unpack(prelude)
        fields: dict[str, Any] = msgpack.unpackb(await self._reader.readexactly(header))
        return fields, await self._reader.readexactly(payload)


@asynccontextmanager
async def wire(address: str) -> AsyncIterator[Wire]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def payload_of(*arrays: npt.NDArray[Any]) -> bytes:
    return b"".join(write_buffers(arrays))


def parts_of(**arrays: npt.NDArray[Any]) -> Sequence[Sequence[Any]]:
    """The wire form of ``Push.tensors``."""
    return [[name, array.dtype.name, array.size] for name, array in arrays.items()]


def full(elements: int, value: float) -> npt.NDArray[np.float32]:
    return np.full(elements, value, np.float32)
