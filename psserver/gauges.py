"""What is not counted but looked at when somebody scrapes a server; from another thread than the server's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from protocol.status import Wait
from psserver.checkpoints import Checkpoints
from psserver.coordinator import Coordinator
from psserver.jobs import JobStore
from psserver.links import SHARD_STATES
from psserver.membership import STATES
from psserver.persistence import Persistence
from psserver.shard import Shard

__all__ = ["Values", "of_checkpoints", "of_coordinator", "of_shard", "of_storage"]

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and labels."""

_NAMED_WORKERS: Final = 100  # workers of a job with metric labels of their own
_NAMED_TABLES: Final = 100  # tables of a job, too


def of_shard(shard: Shard, waits: Iterable[Wait]) -> Values:
    """Return what is looked at on every server; ``waits`` are those for steps that it knows of."""
    found: Values = {}
    jobs = dict(shard.jobs)
    for job in jobs.values():
        of_job = (("job", job.label),)
        _add(found, "psserver_parameters_bytes", of_job, job.nbytes)
        _add(found, "psserver_barrier_waiting_seconds", of_job, 0.0)
        scale = ("psserver_learning_rate_scale", of_job)
        found[scale] = min(found.get(scale, job.clocks.rate), job.clocks.rate)
        for number, table in enumerate(job.tables()):
            name = table.name if number < _NAMED_TABLES else "other"
            _add(found, "psserver_sparse_rows", (*of_job, ("table", name)), table.rows)
    for wait in waits:
        if wait.job in jobs:
            waiting = ("psserver_barrier_waiting_seconds", (("job", jobs[wait.job].label),))
            found[waiting] = max(found[waiting], wait.seconds)
    found["psserver_membership_epoch", ()] = max((job.epoch for job in jobs.values()), default=0)
    if shard.journal.log is not None:
        found["psserver_log_unwritable", ()] = float(bool(shard.log_problem))
    return found


def _add(found: Values, name: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
    """Add to what jobs or tables that share a label have together."""
    found[name, labels] = found.get((name, labels), 0.0) + value


def of_storage(persistence: Persistence) -> Values:
    """Return how much room there is for checkpoints and log, where that can be known."""
    space = persistence.space()
    if space is None:
        return {}
    return {
        ("psserver_disk_free_bytes", ()): space.free,
        ("psserver_disk_total_bytes", ()): space.total,
    }


def of_checkpoints(checkpoints: Checkpoints, every: float) -> Values:
    """Return how the checkpoints of the cluster are getting on, of which there is one ``every`` seconds."""
    found: Values = {
        ("psserver_checkpoint_every_seconds", ()): every,
        ("psserver_checkpoint_unsaved_seconds", ()): checkpoints.unsaved,
    }
    if checkpoints.last is not None:
        found["psserver_checkpoint_last_success_timestamp_seconds", ()] = checkpoints.finished
    return found


def of_coordinator(coordinator: Coordinator, jobs: Mapping[str, JobStore]) -> Values:
    """Return what only the coordinator knows: of servers and workers; ``jobs`` are those of its shard."""
    found: Values = {}
    servers, workers = coordinator.links.states(), coordinator.worker_states()
    for state in SHARD_STATES:
        found["psserver_shards", (("state", state),)] = servers[state]
    for state in STATES:
        found["psserver_workers", (("state", state),)] = workers[state]
    for name, worker, lag, speed in coordinator.workers_at_work():
        job = jobs.get(name)  # which may be dropped at any moment
        if worker < _NAMED_WORKERS and job is not None:
            labels = (("job", job.label), ("worker", str(worker)))
            found["psserver_worker_lag_steps", labels] = lag
            found["psserver_worker_examples_per_second", labels] = speed
    return found
