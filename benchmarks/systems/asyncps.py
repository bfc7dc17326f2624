"""This project: the asyncio client on uvloop, and one or two servers in processes of their own."""

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import uvloop

from benchmarks.certificates import make_certificates
from benchmarks.systems.closed_loop import LEAST_OPERATIONS, WARM_UP_SHARE
from benchmarks.systems.interface import Operation
from benchmarks.systems.verification import Array, check_descent, check_sums, make_gradient
from protocol.credentials import Access
from protocol.optimizers import Optimizer
from protocol.tls import TLS
from psctl import LocalCluster
from psworker import Add, Client, connect

_ADD = Add()


class _Blocking:
    """One tensor as blocking calls, for the check of what the server computes."""

    def __init__(self, loop: uvloop.Loop, client: Client, name: str) -> None:
        self._loop = loop
        self._client = client
        self._name = name

    def push(self, gradient: Array) -> None:
        self._loop.run_until_complete(self._client.push({self._name: gradient}))

    def pull(self) -> Array:
        return self._loop.run_until_complete(self._client.pull(self._name))

    def push_pull(self, gradient: Array) -> Array:
        return self._loop.run_until_complete(self._client.push_pull({self._name: gradient}))[self._name]


class Asyncps:
    """Push applies the gradient on the server, pull returns the tensor, push_pull does both."""

    def __init__(self, shards: int, optimizer: Optimizer = _ADD, *, secured: bool = False) -> None:
        self._shards = shards
        self._secured = secured
        self._optimizer = optimizer
        self._processes = ExitStack()
        self._connections = AsyncExitStack()
        self._loop = uvloop.new_event_loop()
        self._tensors: dict[int, str] = {}

    def start(self) -> None:
        """Start the servers and connect to them."""
        access = Access(tls=self._make_certificates() if self._secured else None)
        # Between two figures nobody runs our loop: on a busy machine that may last.
        patient = ("--heartbeat-interval", "10s", "--dead-after", "60s")
        servers = LocalCluster(self._shards, 0, access=access, server_flags=patient)
        cluster = self._processes.enter_context(servers)
        connecting = self._connections.enter_async_context(
            connect(cluster.address, job="benchmark", tls=access.tls)
        )
        self._client = self._loop.run_until_complete(connecting)

    def _make_certificates(self) -> TLS:
        return make_certificates(Path(self._processes.enter_context(tempfile.TemporaryDirectory())))

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds of one `operation` on a tensor of `nbytes` bytes."""
        name = self._tensors.get(nbytes) or self._create(nbytes)
        for duration in (seconds * WARM_UP_SHARE, seconds):
            mean = self._loop.run_until_complete(self._repeat(operation, name, nbytes, duration))
        return mean

    def stop(self) -> None:
        """Disconnect and end the servers."""
        self._loop.run_until_complete(self._connections.aclose())
        self._processes.close()

    def _create(self, nbytes: int) -> str:
        name = f"tensor of {nbytes} bytes"
        zeros = np.zeros(nbytes // 4, np.float32)
        self._loop.run_until_complete(self._client.create(name, zeros, optimizer=self._optimizer))
        tensor = _Blocking(self._loop, self._client, name)
        if isinstance(self._optimizer, Add):
            check_sums(tensor, nbytes)
        else:
            check_descent(tensor, nbytes)
        self._tensors[nbytes] = name
        return name

    async def _repeat(self, operation: Operation, name: str, nbytes: int, seconds: float) -> float:
        gradient = {name: make_gradient(nbytes)}
        client = self._client
        operations: dict[Operation, Callable[[], Awaitable[object]]] = {
            "push": partial(client.push, gradient),
            "pull": partial(client.pull, name),
            "push_pull": partial(client.push_pull, gradient),
        }
        once = operations[operation]
        begin, done = perf_counter(), 0
        while True:
            await once()
            done += 1
            elapsed = perf_counter() - begin
            if elapsed >= seconds and done >= LEAST_OPERATIONS:
                return elapsed / done


OneShard = partial(Asyncps, 1)
OneShardWithTLS = partial(Asyncps, 1, secured=True)
TwoShards = partial(Asyncps, 2)
