"""Guarantee 9 with real workers: servers die in the midst of a training, and its result is right."""

import math
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.status import JobStatus
from tests.faults.pushing import told
from tests.faults.restarts import Mode, RestartableCluster
from tests.faults.training import Training, check_ledger, write_job
from tests.integration.daemons import Starter

CASES = [("log", 0.0), ("log", 3.0), ("log", math.inf), ("snapshot", 0.0), ("snapshot", math.inf)]


def train_while_servers_die(
    directory: Path, mode: Mode, staleness: float, workers: int, deaths: int, epochs: int, seed: int
) -> JobStatus:
    """Kill a server so many times, and start it again; return what the job has come to."""
    rng = random.Random(seed)
    job = write_job(directory, staleness, workers=workers, epochs=epochs, seed=seed)
    flags = ("--checkpoint-every", "300ms")
    with (
        RestartableCluster(directory / f"state-{deaths}", mode, flags=flags) as cluster,
        told(cluster, f"seed {seed}"),
        ExitStack() as stack,
    ):
        training = Training([], {}, cluster.address, job, Starter(stack))
        for number in range(workers):
            training.add_worker(f"worker-{number}")
        for number in range(deaths):
            progress = training.until(lambda job: job.progress is not None).progress
            assert progress is not None
            training.until_done(int(progress.chunks * (number + rng.random()) / (deaths + 1)))
            victim = rng.randrange(2)
            cluster.kill(victim)
            cluster.start(victim)
        for worker in training.workers.values():
            assert worker.exit_code() == 0, worker.log()
        for number in range(2):
            assert cluster.server(number).process.poll() is None
        return check_ledger(training, epochs)


def loss_of(job: JobStatus) -> float:
    assert job.progress is not None
    return next(mean.value for mean in job.progress.evaluations[-1].means if mean.name == "loss")


def test_servers_that_die_change_nothing_about_the_result(fault_seed: int, tmp_path: Path) -> None:
    def loss(deaths: int) -> float:
        job = train_while_servers_die(
            tmp_path, "log", 0.0, workers=1, deaths=deaths, epochs=1, seed=fault_seed
        )
        return loss_of(job)

    assert loss(deaths=2) == pytest.approx(loss(deaths=0), rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(("mode", "staleness"), CASES)
def test_every_chunk_counts_once_whichever_server_dies(
    mode: Mode, staleness: float, number: int, fault_seed: int, tmp_path: Path
) -> None:
    train_while_servers_die(
        tmp_path, mode, staleness, workers=3, deaths=3, epochs=10, seed=fault_seed + number
    )
