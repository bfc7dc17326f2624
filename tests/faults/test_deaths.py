"""Guarantees 7 to 9 on real processes: workers that die, hang, wake up, come late; a dead coordinator."""

import math
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.training import (
    DEAD_AFTER,
    HEARTBEAT,
    Training,
    check_ledger,
    start_training,
    worker_of,
)

STALENESS = [0.0, 3.0, math.inf]
CLUSTER_LOST = 15
RECONNECT_FOR = 1

# They start many processes and say what may take how long.
pytestmark = pytest.mark.xdist_group("timed")


def chunks_before(rng: random.Random, training: Training) -> int:
    """Draw after how many chunks something happens: not so late that it happens to a finished job."""
    job = training.until(lambda job: job.progress is not None)
    assert job.progress is not None
    return rng.randrange(1, job.progress.chunks * 6 // 10)


def a_worker_is_killed(seed: int, staleness: float, directory: Path) -> None:
    rng = random.Random(seed)
    with ExitStack() as stack:
        training = start_training(stack, directory, staleness, servers=rng.choice([1, 2]), seed=seed)
        training.until_done(chunks_before(rng, training))
        victim = rng.choice(sorted(training.workers))
        training.workers[victim].process.kill()
        for name, worker in training.workers.items():
            assert worker.exit_code() == (-signal.SIGKILL if name == victim else 0), worker.log()
        job = check_ledger(training)
        assert worker_of(job, victim).state == "dead", f"vacuous: seed {seed}\n{job}"
        assert job.longest_wait <= DEAD_AFTER + HEARTBEAT, f"seed {seed}"
        log = training.servers[0].wait_for(f"{victim} of job faults is dead")
        assert "did not come back" in log


@pytest.mark.long
def test_the_others_go_on_without_a_killed_worker(fault_seed: int, tmp_path: Path) -> None:
    a_worker_is_killed(fault_seed, STALENESS[fault_seed % 3], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("staleness", STALENESS)
def test_killed_20_times(fault_seed: int, staleness: float, number: int, tmp_path: Path) -> None:
    a_worker_is_killed(fault_seed + number, staleness, tmp_path)


def a_worker_hangs_and_wakes_up(seed: int, staleness: float, directory: Path) -> None:
    rng = random.Random(seed)
    with ExitStack() as stack:
        training = start_training(stack, directory, staleness, seed=seed)
        training.until_done(chunks_before(rng, training))
        victim = rng.choice(sorted(training.workers))
        process = training.workers[victim].process
        process.send_signal(signal.SIGSTOP)
        stack.callback(process.send_signal, signal.SIGCONT)
        dead = training.until(lambda job: worker_of(job, victim).state == "dead")
        process.send_signal(signal.SIGCONT)
        for worker in training.workers.values():
            assert worker.exit_code() == 0, worker.log()
        job = check_ledger(training)
        assert job.longest_wait <= DEAD_AFTER + HEARTBEAT, f"seed {seed}"
        assert "silent" in training.servers[0].wait_for(f"{victim} of job faults is dead")
        finished = dead.progress is not None and dead.progress.phase == "finished"
        if not finished:  # at inf the others may have done all before it was found dead
            assert worker_of(job, victim).incarnation == 2
            assert "is out of job faults" in training.workers[victim].log()


def test_a_hung_worker_is_told_that_it_is_out(fault_seed: int, tmp_path: Path) -> None:
    a_worker_hangs_and_wakes_up(fault_seed, STALENESS[fault_seed % 2], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("staleness", STALENESS)
def test_hung_10_times(fault_seed: int, staleness: float, number: int, tmp_path: Path) -> None:
    a_worker_hangs_and_wakes_up(fault_seed + number, staleness, tmp_path)


def test_without_a_coordinator_workers_end_with_exit_code_15(tmp_path: Path) -> None:
    with ExitStack() as stack:
        training = start_training(stack, tmp_path, 0.0)
        late = training.start.worker(
            training.address,
            "--job",
            str(training.job),
            "--name",
            "late",
            "--reconnect-for",
            f"{RECONNECT_FOR}s",
            cwd=tmp_path,
        )
        late.wait_for("late works on job")
        training.servers[0].process.kill()
        began = time.monotonic()
        assert late.exit_code() == CLUSTER_LOST, late.log()
        assert time.monotonic() - began <= RECONNECT_FOR + 5
        assert "unknown" in late.log(), "it says that it cannot tell what became of its requests"
        for worker in training.workers.values():
            assert worker.process.poll() is None, "the others have a minute"


@pytest.mark.long
@pytest.mark.parametrize("staleness", STALENESS)
def test_late_at_each_staleness(staleness: float, tmp_path: Path) -> None:
    a_worker_comes_late(staleness, tmp_path)


def a_worker_comes_late(staleness: float, tmp_path: Path) -> None:
    with ExitStack() as stack:
        training = start_training(stack, tmp_path, staleness)
        training.until_done(1)
        training.add_worker("late")
        training.servers[0].wait_for("late joined job faults")
        began = time.monotonic()
        training.until(lambda job: worker_of(job, "late").leases > 0)
        assert time.monotonic() - began <= 2
        for worker in training.workers.values():
            assert worker.exit_code() == 0, worker.log()
        job = check_ledger(training)
        assert worker_of(job, "late").examples > 0
        assert job.progress is not None
        assert sum(worker.examples for worker in job.workers) == job.progress.train_examples
