"""The client without ``await``, for notebooks and training loops. An event loop runs in a thread of its own.

with connect("127.0.0.1:7070", job="demo") as ps:
    ps.create("w", np.zeros((784, 10), np.float32), optimizer=SGD(lr=0.1))
    new = ps.push_pull({"w": gradient})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, overload

import numpy.typing as npt

from protocol.messages import Joined, TensorInfo
from protocol.optimizers import Optimizer
from protocol.tables import Initial
from protocol.tls import TLS, StrPath
from psworker import client, tables
from psworker.client import Gradients, Wanted
from psworker.loop_thread import LoopThread

__all__ = ["SyncClient", "SyncSparseTable", "connect"]

Array = npt.NDArray[Any]


@contextmanager
def connect(
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
) -> Iterator[SyncClient]:
    """Join a job of a cluster; arguments and errors are those of ``psworker.client.connect``."""
    loop = LoopThread()
    try:
        context = client.connect(
            address,
            job,
            name=name,
            staleness=staleness,
            workers=workers,
            backup_workers=backup_workers,
            observe=observe,
            reconnect_for=reconnect_for,
            values=values,
            token_file=token_file,
            tls=tls,
        )
        made = loop.run(context.__aenter__())
        try:
            yield SyncClient(made, loop)
        finally:
            loop.run(context.__aexit__(None, None, None))
    finally:
        loop.close()


class SyncClient:
    """``psworker.client.Client`` without ``await``; see there."""

    def __init__(self, made: client.Client, loop: LoopThread) -> None:
        self._client = made
        self._loop = loop

    @property
    def name(self) -> str:
        """This worker's name; "" for an observer."""
        return self._client.name

    @property
    def joined(self) -> Joined | None:
        """What the coordinator said on joining; None for an observer."""
        return self._client.joined

    @property
    def staleness(self) -> float:
        """The job's, as of the last heartbeat."""
        return self._client.staleness

    @property
    def clock(self) -> int:
        """The step that this worker is in, from 0."""
        return self._client.clock

    def create(self, name: str, value: npt.ArrayLike, optimizer: Optimizer | None = None) -> None:
        """Make a dense tensor with initial ``value``, or find that it exists."""
        self._loop.run(self._client.create(name, value, optimizer))

    def create_sparse(
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
    ) -> SyncSparseTable:
        """Make a sparse table, rows of numbers by 64-bit keys, or find that it exists."""
        work = self._client.create_sparse(
            name,
            dim,
            optimizer,
            init,
            seed=seed,
            dtype=dtype,
            admit_after=admit_after,
            expire_after=expire_after,
            capacity=capacity,
        )
        return SyncSparseTable(self._loop.run(work), self._loop)

    def table(self, name: str) -> SyncSparseTable:
        """Return a handle on a sparse table that exists."""
        return SyncSparseTable(self._client.table(name), self._loop)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return what all tensors of the job are, by name."""
        return self._loop.run(self._client.tensors())

    @overload
    def pull(self, names: str) -> Array: ...  # type: ignore[overload-overlap]
    @overload
    def pull(self, names: Wanted) -> dict[str, Array]: ...
    def pull(self, names: str | Wanted) -> Array | dict[str, Array]:
        """Return the current values of one tensor, or of several by name, as read-only arrays."""
        return self._loop.run(self._client.pull(names))

    def push(self, gradients: Gradients, *, weight: float = 1.0) -> None:
        """Have the server's optimizer apply ``gradients``."""
        self._loop.run(self._client.push(gradients, weight=weight))

    def push_pull(
        self,
        gradients: Gradients,
        names: Wanted | None = None,
        *,
        weight: float = 1.0,
    ) -> dict[str, Array]:
        """Push, end this worker's step, and return the new values."""
        return self._loop.run(self._client.push_pull(gradients, names, weight=weight))

    def reset(self, values: Mapping[str, npt.ArrayLike | None]) -> None:
        """Have tensors begin anew, as if they had just been created; asynchronous jobs only."""
        self._loop.run(self._client.reset(values))

    def step(self) -> None:
        """End this worker's step; at staleness 0, wait for the others."""
        self._loop.run(self._client.step())


class SyncSparseTable:
    """``psworker.tables.SparseTable`` without ``await``; see there.

    Attributes:
        name: the table's.
    """

    def __init__(self, table: tables.SparseTable, loop: LoopThread) -> None:
        self.name = table.name
        self._table = table
        self._loop = loop

    def pull(self, keys: npt.ArrayLike) -> Array:
        """Return the rows of ``keys``, read-only."""
        return self._loop.run(self._table.pull(keys))

    def push(self, keys: npt.ArrayLike, grads: npt.ArrayLike, *, weight: float = 1.0) -> None:
        """Have the server's optimizer apply gradients to rows."""
        self._loop.run(self._table.push(keys, grads, weight=weight))

    def push_pull(
        self,
        keys: npt.ArrayLike,
        grads: npt.ArrayLike,
        next_keys: npt.ArrayLike | None = None,
        *,
        weight: float = 1.0,
    ) -> Array:
        """Push, end this worker's step, and return the rows of ``next_keys``, or of ``keys``, after it."""
        return self._loop.run(self._table.push_pull(keys, grads, next_keys, weight=weight))
