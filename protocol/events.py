"""What log lines tell of, by names that stay when their words change: operators and alerts look for these."""

from __future__ import annotations

from typing import Literal

__all__ = ["Event", "about"]

Event = Literal[
    # of every daemon
    "ready", "stopping", "failed",
    # of the coordinator: workers, servers, jobs, checkpoints
    "worker.joined", "worker.left", "worker.dead", "worker.disconnected", "worker.returned.late",
    "shard.joined", "shard.lost", "shard.late", "shard.heard", "shard.outdated",
    "job.changed", "job.diverged", "job.dropped", "checkpoint.taken",
    # of every server
    "wait.long", "peer.refused", "request.failed", "coordinator.lost", "coordinator.back", "state.replaced",
    "checkpoint.failed", "checkpoint.unusable", "log.unwritable", "log.writable",
    # of a worker
    "work.begins", "work.done", "work.stopped", "work.diverged", "worker.fenced", "worker.rejoined",
    "server.unreachable", "link.lost", "link.back", "push.delayed",
    # of a worker that learns from a stream
    "stream.report", "stream.unreachable", "stream.reached", "stream.lost", "drift.detected", "drift.over",
]  # fmt: skip
"""Names are added, never changed; ``docs/operations.md`` says what each means."""


def about(event: Event, **fields: object) -> dict[str, object]:
    """Return, as the ``extra`` of a log line, which event it tells of, and of whom and what.

    ``job``, ``worker`` and ``epoch`` are those that the line is about; ``shard`` is the server that says it,
    and need not be given.
    """
    return {"event": event, **fields}
