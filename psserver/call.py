"""A request that is being answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence

from protocol.connection import Array, Connection
from protocol.errors import InternalError, PSError
from protocol.messages import Reply
from psserver.metrics import ServerMetrics

__all__ = ["Call"]

_log = logging.getLogger(__name__)


class Call:
    """One request of one connection; answered exactly once, at once or later."""

    __slots__ = ("connection", "metrics", "op", "request_id", "started")

    def __init__(self, connection: Connection, request_id: int, op: str, metrics: ServerMetrics) -> None:
        self.connection = connection
        self.request_id = request_id
        self.op = op
        self.metrics = metrics
        self.started = time.perf_counter()

    def reply(self, reply: Reply, arrays: Sequence[Array] = ()) -> None:
        """Answer."""
        self.metrics.request(self.op, "ok", time.perf_counter() - self.started)
        self.connection.reply(self.request_id, reply, arrays)

    def fail(self, error: PSError) -> None:
        """Answer with an error."""
        self.connection.fail(self.request_id, self.op, error)

    async def answer_with(self, work: Awaitable[None]) -> None:
        """Run ``work``, which answers this call; if it raises, answer with its error."""
        try:
            await work
        except Exception as error:
            self.fail_with(error)

    def fail_with(self, error: Exception) -> None:
        """Answer with an error of ours, or that this server has a defect, which is logged."""
        if isinstance(error, PSError):
            self.fail(error)
            return
        _log.exception("%s from %s failed", self.op, self.connection.peer, exc_info=error)
        self.fail(InternalError(f"the server failed on this request: {type(error).__name__}; see its log"))
