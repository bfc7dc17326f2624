"""Guarantee 7 on a network that loses packets, both ways and one way."""

import asyncio
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.status import JobStatus
from psworker.asking import fetch_status
from tests.faults.namespaces import Network, PartitionDirection, network
from tests.faults.training import DEAD_AFTER, HEARTBEAT, LOOK_EVERY, WORKERS, write_job
from tests.integration.daemons import Daemon

SERVER, FAR = 0, 1  # the machines; workers 0 and 1 are beside the server, 2 and 3 are far
PORT = 7070

# They start many processes and say what may take how long.
pytestmark = pytest.mark.xdist_group("timed")


def start(net: Network, stack: ExitStack, machine: int, program: str, *flags: str) -> Daemon:
    daemon = Daemon(
        net.start(
            machine,
            [sys.executable, "-m", program, "--metrics-port", "0", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    )

    def end() -> None:
        daemon.process.kill()
        daemon.log()
        assert daemon.process.stderr is not None
        daemon.process.stderr.close()

    stack.callback(end)
    return daemon


def job_status(net: Network) -> JobStatus | None:
    time.sleep(LOOK_EVERY)
    with net.inside(SERVER):
        status = asyncio.run(fetch_status(net.addresses[SERVER], PORT))
    return next(iter(status.jobs), None)


def states(job: JobStatus, *names: str) -> set[tuple[str, int]]:
    return {(worker.state, worker.incarnation) for worker in job.workers if worker.name in names}


DIRECTIONS: list[PartitionDirection] = ["both", "a->b", "b->a"]


def test_workers_that_are_cut_off_delay_nobody_for_long(fault_seed: int, tmp_path: Path) -> None:
    cut_off_and_healed(fault_seed, DIRECTIONS[fault_seed % 3], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_cut_off_each_way(
    direction: PartitionDirection, number: int, fault_seed: int, tmp_path: Path
) -> None:
    cut_off_and_healed(fault_seed + number, direction, tmp_path)


def cut_off_and_healed(seed: int, direction: PartitionDirection, tmp_path: Path) -> None:
    rng = random.Random(seed)
    job_file = write_job(tmp_path, rng.choice([0.0, 3.0]), seed=seed)
    with network(2) as net, ExitStack() as stack:
        address = f"{net.addresses[SERVER]}:{PORT}"
        flags = ("--heartbeat-interval", f"{HEARTBEAT:g}s", "--dead-after", f"{DEAD_AFTER:g}s")
        server = start(net, stack, SERVER, "psserver", "--host", net.addresses[SERVER], "--insecure", *flags)
        server.addresses()
        near_and_far = [SERVER if number < WORKERS // 2 else FAR for number in range(WORKERS)]
        workers = [
            start(net, stack, machine, "psworker", "--server", address, "--job", str(job_file),
                  "--name", f"worker-{number}")
            for number, machine in enumerate(near_and_far)
        ]  # fmt: skip
        job: JobStatus | None = None
        while job is None or job.progress is None or job.progress.chunks_done < 20:
            job = job_status(net)
        net.partition(SERVER, FAR, direction)
        while states(job, "worker-2", "worker-3") != {("dead", 1)}:
            job = job_status(net)
            assert job is not None
        assert net.dropped > 0, "vacuous: nothing was lost"
        net.heal()
        for worker in workers:
            assert worker.exit_code() == 0, worker.log()
        job = job_status(net)
    assert job is not None
    assert job.progress is not None
    assert (job.progress.phase, job.progress.chunks_done) == ("finished", job.progress.chunks)
    assert job.longest_wait <= DEAD_AFTER + HEARTBEAT
    assert {incarnation for _, incarnation in states(job, "worker-0", "worker-1")} == {1}
    for name in ("worker-2", "worker-3"):
        assert f"{name} of job faults is dead: it was silent" in server.log_so_far()
