"""One training of many that are compared: a local cluster from the first example to its figures, unseen."""

from __future__ import annotations

from collections.abc import Callable

from protocol.status import ClusterStatus
from psctl.cluster import LocalCluster
from psctl.recording import Recording
from psctl.result import Result
from psctl.screen import Screen
from psctl.train import train
from psworker.asking import fetch_status
from psworker.job import Job

__all__ = ["run_trial"]

_BLIND = Screen(lambda status: None, lambda text: None)


def run_trial(
    cluster: LocalCluster, job: Job, recording: Recording, go_on: Callable[[], None] = lambda: None
) -> Result:
    """Run ``cluster``, which has no place for checkpoints, until its job is finished; show nothing.

    Args:
        cluster: not started yet; it is stopped at the end.
        job: what its workers train.
        recording: is told what is seen on the way.
        go_on: is called again and again; what it raises ends the training, and is raised.

    Raises:
        ProcessFailed: a process of the cluster ended in the middle of it.
        PSError: the cluster cannot say what came of it.
    """

    async def fetch(host: str, port: int) -> ClusterStatus:
        go_on()
        return await fetch_status(host, port)

    go_on()
    return train(cluster, job, _BLIND, fetch, None, recording)
