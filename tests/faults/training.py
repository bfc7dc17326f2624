"""A training of real processes that faults are done to, and what must hold of it afterwards."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from protocol.addresses import split_address
from protocol.status import ClusterStatus, JobStatus, WorkerStatus
from psworker.asking import fetch_status
from tests.integration.daemons import Daemon, Starter

JOB = "faults"
ROWS = 2000
EPOCHS = 16
WORKERS = 4
HEARTBEAT = 0.5
DEAD_AFTER = 2.5
LOOK_EVERY = 0.01  # seconds; each look takes the coordinator's time, and a processor's


@dataclass(frozen=True, slots=True)
class Training:
    """A cluster that trains: its servers, its workers by name, and how to look at it."""

    servers: list[Daemon]
    workers: dict[str, Daemon]
    address: str
    job: Path
    start: Starter

    def status(self) -> ClusterStatus:
        return asyncio.run(fetch_status(*split_address(self.address)))

    def job_status(self) -> JobStatus | None:
        return next((job for job in self.status().jobs if job.name == JOB), None)

    def until(self, condition: Callable[[JobStatus], bool]) -> JobStatus:
        """Ask for the status until the condition holds of the job."""
        while (job := self.job_status()) is None or not condition(job):
            for name, worker in self.workers.items():
                assert worker.process.poll() in (None, 0, -9), f"{name}: {worker.log()}"
            time.sleep(LOOK_EVERY)
        return job

    def until_done(self, chunks: int) -> JobStatus:
        """Ask until so many chunks are done."""
        return self.until(lambda job: job.progress is not None and job.progress.chunks_done >= chunks)

    def add_worker(self, name: str) -> Daemon:
        flags = ("--job", str(self.job), "--name", name)
        self.workers[name] = worker = self.start.worker(self.address, *flags, cwd=self.job.parent)
        return worker


def worker_of(job: JobStatus, name: str) -> WorkerStatus:
    (found,) = [worker for worker in job.workers if worker.name == name]
    return found


def write_job(
    directory: Path, staleness: float, *, workers: int = WORKERS, epochs: int = EPOCHS, seed: int = 0
) -> Path:
    """Write a linear regression whose chunks are many and small, and return its job file."""
    rng = random.Random(seed)
    rows = [[rng.gauss(0, 1) for _ in range(8)] for _ in range(ROWS)]
    lines = [",".join(f"{x:.4f}" for x in (*row, sum(row))) for row in rows]
    header = ",".join([*(f"x{i}" for i in range(8)), "y"])
    data = directory / "rows.csv"
    data.write_text("\n".join([header, *lines]) + "\n")
    dial = '"inf"' if staleness == float("inf") else f"{staleness:g}"
    job = directory / "job.toml"
    job.write_text(
        f"""
        [job]
        name = "{JOB}"
        [model]
        kind = "linear"
        [data]
        source = "{data}"
        target = "y"
        chunk-rows = 50
        [train]
        epochs = {epochs}
        batch-size = 10
        staleness = {dial}
        workers = {workers}
        [optimizer]
        lr = 0.001
        [eval]
        every = "10 epochs"
        holdout = 0.1
        """
    )
    return job


def start_training(
    stack: ExitStack, directory: Path, staleness: float, *, servers: int = 2, seed: int = 0
) -> Training:
    """Start servers and workers that train on ``write_job``'s job."""
    start = Starter(stack)
    flags = ("--heartbeat-interval", f"{HEARTBEAT:g}s", "--dead-after", f"{DEAD_AFTER:g}s")
    coordinator = start.server("--shards", str(servers), *flags)
    address = coordinator.addresses()["address"]
    others = [start.server("--join", address) for _ in range(servers - 1)]
    for server in others:
        server.addresses()
    job = write_job(directory, staleness, seed=seed)
    training = Training([coordinator, *others], {}, address, job, start)
    for number in range(WORKERS):
        training.add_worker(f"worker-{number}")
    return training


def check_ledger(training: Training, epochs: int = EPOCHS) -> JobStatus:
    """Check that every chunk was counted exactly once in every epoch, and return the job's status."""
    job = training.job_status()
    assert job is not None
    assert job.progress is not None
    assert job.progress.phase == "finished"
    assert job.progress.chunks_done == job.progress.chunks
    held_out = {evaluation.examples for evaluation in job.progress.evaluations}
    assert len(held_out) == 1, "each evaluation saw all that is held out"
    assert job.progress.train_examples == epochs * (ROWS - held_out.pop())
    return job
