"""What is sent back of parameters: blocks as they are, and rows that are gathered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from protocol.buffers import BufferPool
from protocol.compression.halves import narrow
from protocol.connection import Array
from protocol.messages import Pulled
from protocol.tensors import DTYPES, Part
from psserver.arriving import Asked, WantedRows
from psserver.backups import Backups
from psserver.call import Call, Spawn
from psserver.jobs import JobStore, Session
from psserver.load_meter import LoadMeter
from psserver.store.sparse import LONG

__all__ = ["Answers"]


class Answers:
    """Answer those who ask for parameters.

    Args:
        pool: of memory for rows.
        meter: where keys are counted.
        spawn: runs a coroutine in a task that somebody awaits.
        clock: seconds, monotonic.
        threads: for what takes long.
    """

    def __init__(
        self, pool: BufferPool, meter: LoadMeter, spawn: Spawn, clock: Callable[[], float], threads: Executor
    ) -> None:
        self._pool = pool
        self._meter = meter
        self._spawn = spawn
        self._clock = clock
        self._threads = threads

    def send(
        self, call: Call, job: JobStore, session: Session | None, asked: Asked, clock: int | None
    ) -> None:
        """Answer ``call`` with what is ``asked`` for, now or, if that takes long, in a task.

        Args:
            call: the request.
            job: whose parameters they are.
            session: the worker's, if it may have to be known what it has read; else None.
            asked: blocks and rows.
            clock: for a worker that was late: the step that is open now; else None.
        """
        blocks = [job.dense(name) for name in asked.names]
        read = None if session is None else job.read_by(session)
        if read is not None:
            read.seen = job.updates
            for block in blocks:
                read.read(block)
        parts = [Part(b.name, b.spec.dtype, b.values.size) for b in blocks]
        arrays = [block.values for block in blocks]
        if not asked.rows:  # by far the most frequent
            call.reply(Pulled(job.updates, tuple(parts), clock), arrays)
            return
        self._meter.keys += sum(one.keys.size for one in asked.rows)
        effort = sum([one.block.effort(one.keys.size) for one in asked.rows])
        if effort > LONG or any(one.block.lock.locked() for one in asked.rows):
            call.connection.owe(asked.nbytes)
            later = self._send_later(call, Pulled(job.updates, tuple(parts), clock), arrays, read, asked)
            self._spawn(call.answer_with(later))
            return
        for one in asked.rows:
            rows = self._room_for(one)
            one.block.gather(one.keys, rows, self._clock())
            part, sent = _as_sent(read, one, rows)
            parts.append(part)
            arrays.append(sent)
        call.reply(Pulled(job.updates, tuple(parts), clock), arrays)

    async def _send_later(
        self, call: Call, reply: Pulled, arrays: list[Array], read: Backups | None, asked: Asked
    ) -> None:
        """Send rows that take their time, or are being changed: the event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        parts, connection = list(reply.tensors), call.connection
        try:
            for one in asked.rows:
                rows = self._room_for(one)
                async with one.block.lock:
                    await one.block.gather_in_threads(one.keys, rows, self._clock(), self._threads)
                if one.values == one.block.spec.dtype:
                    part, sent = _as_sent(read, one, rows)
                else:
                    part, sent = await loop.run_in_executor(self._threads, _as_sent, read, one, rows)
                parts.append(part)
                arrays.append(sent)
            call.reply(replace(reply, tensors=tuple(parts)), arrays)
        finally:
            connection.owe(-asked.nbytes)

    def _room_for(self, wanted: WantedRows) -> Array:
        keys, block = wanted.keys, wanted.block
        return self._pool.empty(keys.size * block.dim, DTYPES[block.spec.dtype]).reshape(keys.size, block.dim)


def _as_sent(read: Backups | None, wanted: WantedRows, rows: Array) -> tuple[Part, Array]:
    """Return rows, (n, dim), as they travel; what a worker has read may have to be known later."""
    if read is not None:
        read.read_rows(wanted.block, wanted.keys, rows)
    sent = narrow(rows.reshape(-1), wanted.values, wanted.block.name)
    return Part(wanted.block.name, sent.dtype.name, sent.size), sent
