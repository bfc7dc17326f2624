"""Jobs whose data is cut into parts: each worker trains on its own, and all of it is trained on."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from protocol.status import JobStatus
from psctl import LocalCluster
from psworker.asking import fetch_status
from psworker.data import Source, open_source
from psworker.job import load_job

WORKERS, EPOCHS, ROWS = 3, 4, 2000

JOB = """
[job]
name = "visits"
seed = 5
[model]
kind = "linear"
[data]
source = "{source}"
target = "minutes"
chunk-rows = 150
columns = ["a", "b"]
[train]
epochs = {epochs}
staleness = "inf"
[optimizer]
lr = 0.05
[eval]
every = "2 epochs"
holdout = 0.25
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2))
    y = x @ [2.0, -1.0] + 3
    lines = [f"user-{rng.integers(40)},{a:.6f},{b:.6f},{c:.6f}\n" for (a, b), c in zip(x, y, strict=True)]
    (tmp_path / "visits.csv").write_text("user,a,b,minutes\n" + "".join(lines))
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(source=tmp_path / "visits.csv", epochs=EPOCHS))
    return job


def job_status(cluster: LocalCluster) -> JobStatus:
    host, _, port = cluster.address.rpartition(":")
    (job,) = asyncio.run(fetch_status(host, int(port))).jobs
    return job


def train_rows(source: Source, partition: str, part: int) -> int:
    """How many rows of an epoch are of ``part``, from what the partitions are said to be."""
    chunks = source.chunks
    if partition.startswith("hash:"):
        return sum(len(source.read(chunk, "train", part)) for chunk in range(chunks))
    mine = {
        "contiguous": range(part * chunks // WORKERS, (part + 1) * chunks // WORKERS),
        "round-robin": range(part, chunks, WORKERS),
    }[partition]
    return sum(len(source.read(chunk, "train")) for chunk in mine)


@pytest.mark.parametrize(
    ("partition", "staleness"),
    [
        ("contiguous", "0"),
        pytest.param("contiguous", "inf", marks=pytest.mark.long),
        pytest.param("round-robin", "0", marks=pytest.mark.long),
        ("round-robin", "inf"),
        pytest.param("hash:user", "0", marks=pytest.mark.long),
        ("hash:user", "inf"),
    ],
)
def test_each_worker_trains_on_its_part_alone(job_file: Path, partition: str, staleness: str) -> None:
    settings = (f"train.workers={WORKERS}", f"train.staleness={staleness}", f"data.partition={partition}")
    job = load_job(job_file, settings)
    source = open_source(job.data, seed=job.seed, holdout=job.eval.holdout, parts=job.parts)
    with LocalCluster(servers=2, workers=WORKERS, job=job_file, overrides=settings) as cluster:
        cluster.wait(timeout=100)
        status = job_status(cluster)

    expected = [EPOCHS * train_rows(source, partition, part) for part in range(WORKERS)]
    held_out = sum(len(source.read(chunk, "holdout")) for chunk in range(source.chunks))
    assert sum(expected) == EPOCHS * (ROWS - held_out)
    # Parts are taken in the order of joining, and so are the workers' numbers.
    workers = sorted(status.workers, key=lambda worker: worker.worker)
    assert [worker.examples for worker in workers] == expected
    progress = status.progress
    assert progress is not None
    pieces = source.chunks * (WORKERS if partition == "hash:user" else 1)
    assert (progress.phase, progress.chunks, progress.chunks_done) == (
        "finished",
        EPOCHS * pieces,
        EPOCHS * pieces,
    )
    assert progress.train_examples == sum(expected)
    assert [(one.epoch, one.examples) for one in progress.evaluations] == [(2, held_out), (4, held_out)]
