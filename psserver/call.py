"""A request that is being answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from protocol.connection import Array, Connection
from protocol.errors import InternalError, PSError
from protocol.events import about
from protocol.messages import Pulled, Reply
from psserver.metrics import ServerMetrics

__all__ = ["Call", "Spawn"]

_log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs a coroutine in a task that somebody awaits."""


def _without_values(reply: Reply) -> Reply | None:
    """Return what is remembered of a reply with values, which are sent anew: that the worker was late."""
    if isinstance(reply, Pulled) and reply.clock is not None:
        return Pulled(reply.version, (), reply.clock)
    return None


class Outcomes(Protocol):
    """Where the answers of numbered requests are remembered."""

    def answered(self, seq: int, outcome: Reply | PSError | None) -> None:
        """Remember what number ``seq`` was answered with; None: with values, to be sent anew."""
        ...


class Call:
    """One request of one connection; answered exactly once, at once or later.

    A numbered request's answer is remembered, and a retry of it takes the call over.
    """

    __slots__ = ("_outcomes", "connection", "fingerprint", "metrics", "op", "request_id", "seq", "started")

    def __init__(self, connection: Connection, request_id: int, op: str, metrics: ServerMetrics) -> None:
        self.connection = connection
        self.request_id = request_id
        self.op = op
        self.metrics = metrics
        self.seq = self.fingerprint = 0
        self.started = time.perf_counter()
        self._outcomes: Outcomes | None = None

    def admitted(self, outcomes: Outcomes, seq: int, fingerprint: int) -> None:
        """Have the answer remembered as that of number ``seq``, whose content has this fingerprint."""
        self._outcomes, self.seq, self.fingerprint = outcomes, seq, fingerprint

    def redirect(self, retry: Call) -> None:
        """Answer a retry instead, unless it came on an older connection, which nobody listens to."""
        if retry.connection.opened >= self.connection.opened:
            self.connection, self.request_id = retry.connection, retry.request_id

    def age(self) -> float:
        """Return the seconds since the request arrived."""
        return time.perf_counter() - self.started

    def reply(self, reply: Reply, arrays: Sequence[Array] = ()) -> None:
        """Answer."""
        if self._outcomes is not None:
            self._outcomes.answered(self.seq, _without_values(reply) if arrays else reply)
        self.metrics.request(self.op, "ok", time.perf_counter() - self.started)
        self.connection.reply(self.request_id, reply, arrays)

    def fail(self, error: PSError) -> None:
        """Answer with an error."""
        if self._outcomes is not None:
            self._outcomes.answered(self.seq, error)
        self.connection.fail(self.request_id, self.op, error)

    async def answer_with(self, work: Awaitable[None]) -> None:
        """Run ``work``, which answers this call; if it raises, answer with its error."""
        connection = self.connection  # a retry may take the call over
        connection.awaited += 1
        try:
            await work
        except Exception as error:
            self.fail_with(error)
        finally:
            connection.awaited -= 1

    def fail_with(self, error: Exception) -> None:
        """Answer with an error of ours, or that this server has a defect, which is logged."""
        if isinstance(error, PSError):
            self.fail(error)
            return
        _log.exception(
            "%s from %s failed", self.op, self.connection.peer, exc_info=error,
            extra=about("request.failed"),
        )  # fmt: skip
        self.fail(InternalError(f"the server failed on this request: {type(error).__name__}; see its log"))
