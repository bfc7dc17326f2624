"""Tensors that begin anew while a job runs: what they are is replaced, all of a request or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import NamedTuple

from protocol.connection import Array
from protocol.errors import BadRequest, BadTensor
from protocol.messages import Reset
from protocol.tables import Keys
from psserver.arriving import check_dense
from psserver.jobs import JobStore, Session
from psserver.store.dense import DenseBlock
from psserver.store.sparse import SparseBlock

__all__ = ["Begun", "begin_anew", "check_reset"]


class Begun(NamedTuple):
    """What has begun anew: dense blocks, and tables with the keys of the rows that they had."""

    blocks: list[DenseBlock]
    tables: list[tuple[SparseBlock, Keys]]


def check_reset(job: JobStore, request: Reset) -> None:
    """Refuse what cannot begin anew.

    Raises:
        BadRequest: the job keeps its workers together, so that gradients of before may be in a later step.
        BadTensor: values that are not a block's, a table that is none, or one that comes twice.
        UnknownTensor: there is no such block here.
    """
    if not job.clocks.is_asynchronous:
        raise BadRequest(
            "only tensors of an asynchronous job begin anew", field="staleness", value=job.clocks.staleness
        )
    check_dense(job, request.tensors, set())
    for name in request.tables:
        if not isinstance(job.block(name), SparseBlock):
            raise BadTensor("it is no table: send its values", field="tables", value=name)
    if len(set(request.tables)) != len(request.tables):
        raise BadTensor("a table is named once in a request", field="tables", value=request.tables)


async def begin_anew(
    job: JobStore, session: Session, request: Reset, arrays: Sequence[Array], threads: Executor
) -> Begun:
    """Give blocks new values and their optimizers' first slots, and drop the rows of tables.

    Raises:
        NotFinite: a value is not; nothing has changed.
        Fenced: the worker is out by now; nothing has changed.
    """
    loop = asyncio.get_running_loop()
    values: Mapping[str, Array] = {
        part.name: array for part, array in zip(request.tensors, arrays, strict=True)
    }
    async with AsyncExitStack() as locks:
        for name in sorted((*values, *request.tables)):
            await locks.enter_async_context(job.block(name).lock)
        firsts = []
        for name, array in values.items():
            block = job.dense(name)
            await block.check(array, threads)
            firsts.append((block, await loop.run_in_executor(threads, block.first_version, array)))
        job.worker(session)  # it may be out by now
        for block, version in firsts:
            block.begin_anew(version)
        tables = [table for table in job.tables() if table.name in request.tables]
        emptied = [(table, await loop.run_in_executor(threads, table.clear)) for table in tables]
        for read in job.read.values():
            for name in (*values, *request.tables):
                read.forget(name)
    return Begun([block for block, _ in firsts], emptied)
