"""Incarnations of workers: which are of now, and what those are told that are not.

An incarnation is a number that the coordinator issues when a worker joins. Those of one timeline are above
all of the timelines before it, and those of a job above all of the jobs of its name that were dropped. So
whatever somebody still sends who is out can be told from what those send who are in.
"""

from __future__ import annotations

from typing import Final

from protocol.errors import Fenced, JobDropped

__all__ = ["fenced", "first_incarnation", "is_of_dropped", "job_dropped"]

_LIVES: Final = 1 << 32
"""Incarnations on one timeline: those of the next one are above all of them."""


def first_incarnation(timeline: int) -> int:
    """Return the first incarnation of a timeline."""
    return (timeline - 1) * _LIVES + 1


def is_of_dropped(incarnation: int, timeline: int, issued: int, born: int | None) -> bool:
    """Return whether a worker's incarnation is of a job that was dropped.

    Args:
        incarnation: the worker's.
        timeline: of the cluster's state; 0: there is none. What went with a former one was not dropped.
        issued: no incarnation above it was of a job that was dropped. What is not there for another reason
            was lost: the servers keep nothing, or their machine had a power failure.
        born: that of the job that has the name now; None: there is none.
    """
    limit = issued if born is None else min(issued, born)
    return timeline > 0 and first_incarnation(timeline) <= incarnation <= limit


def fenced(worker: int) -> Fenced:
    """Return the error for a worker's incarnation that is out."""
    return Fenced(
        "this incarnation of the worker is out: it was declared dead, was replaced, or has left, or the "
        "cluster went back to a checkpoint; join again",
        field="worker",
        value=worker,
    )


def job_dropped(job: str) -> JobDropped:
    """Return the error for those who work on a job that was dropped."""
    return JobDropped(
        "the job was dropped (psctl drop), and nothing of it is left; who still wants it begins it anew",
        field="job",
        value=job,
    )
