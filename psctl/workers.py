"""Which of a job's workers are shown, and in what order: a job may have had thousands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from protocol.status import WorkerStatus

__all__ = ["GONE", "by_name", "live_first"]

GONE: Final = ("left", "dead")
"""The states of workers that take part no longer."""


def by_name(workers: Iterable[WorkerStatus]) -> list[WorkerStatus]:
    """Return ``workers`` in the order of their names, worker-2 before worker-10."""
    return sorted(workers, key=lambda worker: (len(worker.name), worker.name))


def live_first(workers: Sequence[WorkerStatus], most: int | None, most_gone: int) -> list[WorkerStatus]:
    """Return the live workers by name, and then those that are gone, the dead first.

    Args:
        workers: of a job, all of them.
        most: how many are returned at most; None: any number.
        most_gone: how many of these have gone at most.
    """
    live = by_name(worker for worker in workers if worker.state not in GONE)
    gone = sorted(by_name(worker for worker in workers if worker.state in GONE), key=_died, reverse=True)
    return [*live, *gone[:most_gone]][:most]


def _died(worker: WorkerStatus) -> bool:
    return worker.state == "dead"
