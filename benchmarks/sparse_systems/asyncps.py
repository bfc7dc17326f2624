"""This project: the asyncio client on uvloop, and one or two servers in processes of their own."""

import asyncio
from contextlib import AsyncExitStack, ExitStack

import uvloop

from benchmarks.kernels import wait_for_kernels
from benchmarks.sparse_systems.interface import LEARNING_RATE, Batch, Rows, TableSize, Taken
from benchmarks.sparse_systems.verification import check_adagrad, fill
from benchmarks.sparse_systems.workload import TimedTable
from benchmarks.systems.interface import Operation
from psctl import LocalCluster
from psworker import Adagrad, Client, SparseTable, Zeros, connect


class _Blocking:
    """The table as blocking calls."""

    def __init__(self, loop: uvloop.Loop, table: SparseTable) -> None:
        self._loop = loop
        self._table = table

    def push(self, batch: Batch, gradients: Rows) -> None:
        self._loop.run_until_complete(self._table.push(batch.keys, gradients))

    def pull(self, batch: Batch) -> Rows:
        return self._loop.run_until_complete(self._table.pull(batch.keys))

    def push_pull(self, batch: Batch, gradients: Rows, wanted: Batch) -> Rows:
        return self._loop.run_until_complete(self._table.push_pull(batch.keys, gradients, wanted.keys))


class Asyncps:
    """The table on `shards` servers."""

    def __init__(self, shards: int, size: TableSize) -> None:
        self._shards = shards
        self._size = size
        self._processes = ExitStack()
        self._connections = AsyncExitStack()
        self._loop = uvloop.new_event_loop()

    def start(self) -> None:
        """Start the servers, connect to them, fill the table, and check what comes of a push."""
        cluster = self._processes.enter_context(LocalCluster(servers=self._shards, workers=0))
        connecting = self._connections.enter_async_context(connect(cluster.address, job="benchmark"))
        client = self._loop.run_until_complete(connecting)
        table = _Blocking(self._loop, self._loop.run_until_complete(self._create(client)))
        # In a thread: the client beats meanwhile.
        self._loop.run_until_complete(asyncio.to_thread(wait_for_kernels, cluster))
        fill(table, self._size)
        check_adagrad(table, self._size)
        self._timed = TimedTable(table, self._size)

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> Taken:
        """Return what one `operation` takes on batches of `nbytes` bytes."""
        return self._timed.measure(operation, nbytes, seconds)

    def stop(self) -> None:
        """Disconnect and end the servers."""
        self._loop.run_until_complete(self._connections.aclose())
        self._processes.close()

    async def _create(self, client: Client) -> SparseTable:
        return await client.create_sparse(
            "rows", dim=self._size.dim, optimizer=Adagrad(lr=LEARNING_RATE), init=Zeros()
        )
