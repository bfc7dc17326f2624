"""Local clusters of real processes train on real data to a result that can be checked."""

import asyncio
import json
import math
import subprocess
import sys

import pytest

from protocol.status import JobStatus
from psctl import LocalCluster
from psworker.asking import fetch_status
from tests.integration.scrape import Metrics, get, total

EPOCHS = 20
EPOCHS_OF_THE_DEMO = 60
ROWS = 1797
HELD_OUT = 343


def job_status(cluster: LocalCluster) -> JobStatus:
    host, _, port = cluster.address.rpartition(":")
    (job,) = asyncio.run(fetch_status(host, int(port))).jobs
    return job


@pytest.mark.parametrize(
    ("servers", "workers", "staleness"),
    [
        (3, 2, "0"),
        pytest.param(1, 4, "0", marks=pytest.mark.long),
        pytest.param(3, 2, "inf", marks=pytest.mark.long),
        (1, 4, "inf"),
    ],
)
def test_a_cluster_learns_the_digits(servers: int, workers: int, staleness: str) -> None:
    overrides = (f"train.staleness={staleness}", f"train.epochs={EPOCHS}")
    with LocalCluster(servers=servers, workers=workers, overrides=overrides) as cluster:
        cluster.wait(timeout=100)
        job = job_status(cluster)
        metrics = [Metrics(address) for address in cluster.metrics]

    assert job.progress is not None
    last = job.progress.evaluations[-1]
    assert (last.epoch, last.examples) == (EPOCHS, HELD_OUT)
    assert {mean.name: mean.value for mean in last.means}["accuracy"] >= 0.92

    # The ledger has no gap and no double.
    assert job.progress.phase == "finished"
    assert job.progress.chunks_done == job.progress.chunks
    assert job.progress.train_examples == EPOCHS * (ROWS - HELD_OUT)
    assert sum(worker.examples for worker in job.workers) == EPOCHS * (ROWS - HELD_OUT)
    assert [worker.state for worker in job.workers] == ["left"] * workers

    check_metrics(metrics, job, synchronous=staleness == "0")


def check_metrics(metrics: list[Metrics], job: JobStatus, *, synchronous: bool) -> None:
    steps = sum(worker.clock for worker in job.workers)
    pushes = total(metrics, "psserver_requests_total", op="push_pull", status="ok")
    assert pushes == steps * len(metrics)  # every step ends on every server
    if synchronous:
        assert total(metrics, "psserver_updates_total", job="digits") == job.step * len(metrics)
        assert total(metrics, "psserver_barrier_wait_seconds_count") == pushes
        assert total(metrics, "psserver_staleness_steps_sum") == 0
    else:
        assert total(metrics, "psserver_updates_total", job="digits") == pushes
        assert total(metrics, "psserver_staleness_steps_count") == pushes
    assert total(metrics, "psserver_parameters_bytes", job="digits") == (64 * 10 + 10) * 4
    assert metrics[0].value("psserver_workers", state="left") == len(job.workers)
    assert metrics[0].value("psserver_membership_epoch") == job.epoch == 2 * len(job.workers)
    assert total(metrics, "psserver_request_seconds_count", op="push_pull") == pushes
    assert total(metrics, "psserver_received_bytes_total") > pushes * 64
    assert total(metrics, "psserver_sent_bytes_total") > pushes * 64
    refused = {labels for one in metrics for labels in one.labels("psserver_requests_total")}
    assert {dict(labels)["status"] for labels in refused} == {"ok"}


def test_psctl_train_prints_its_result_as_json() -> None:
    command = [sys.executable, "-m", "psctl", "train", "--servers", "1", "--workers", "2", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["job"], result["model"], result["servers"], result["workers"]) == (
        "digits",
        "softmax",
        1,
        2,
    )
    assert result["examples"] == EPOCHS_OF_THE_DEMO * (ROWS - HELD_OUT)
    assert result["metrics"]["accuracy"] >= 0.95
    assert result["loss"] < 0.3
    assert result["checkpoint"] is None
    assert result["steps"] > 0
    assert math.isfinite(result["seconds"])


def test_health_readiness_and_status() -> None:
    with LocalCluster(servers=2) as cluster:
        for address in cluster.metrics:
            assert get(address, "/healthz") == (200, "alive\n")
            assert get(address, "/readyz") == (200, "ready\n")
            assert get(address, "/nothing")[0] == 404
        command = [sys.executable, "-m", "psctl", "status", "--server", cluster.address, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        shards = json.loads(done.stdout)["shards"]
        assert [shard["state"] for shard in shards] == ["ready", "ready"]
