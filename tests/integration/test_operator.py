"""What an operator does to a cluster of real processes that trains: look, turn the dial, lose a worker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.addresses import split_address
from protocol.status import ClusterStatus, JobStatus
from psctl import LocalCluster
from psctl.result import result_of
from psworker.asking import fetch_status
from psworker.job import load_job
from tests.integration.points import EPOCHS, ROWS, write_points

ENDLESS = ("train.epochs=1000000", "eval.every=never")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_points(tmp_path)


def psctl(cluster: LocalCluster, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "psctl", *arguments, "--server", cluster.address]


def output(cluster: LocalCluster, *arguments: str) -> str:
    command = psctl(cluster, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def status_of(cluster: LocalCluster) -> ClusterStatus:
    return asyncio.run(fetch_status(*split_address(cluster.address)))


def job_when(cluster: LocalCluster, condition: Callable[[JobStatus], bool]) -> JobStatus:
    """Look, again and again, until the condition holds of the only job."""
    while not (jobs := status_of(cluster).jobs) or not condition(jobs[0]):
        cluster.poll()
        time.sleep(0.01)  # what looks all the time keeps the cluster from its work
    return jobs[0]


def trains(job: JobStatus) -> bool:
    return job.progress is not None and job.progress.chunks_done > 0


# --- the dial


def test_the_dial_is_turned_while_a_job_trains(job: Path) -> None:
    with LocalCluster(servers=2, workers=2, job=job, overrides=ENDLESS) as cluster:
        assert job_when(cluster, trains).staleness == 0
        assert output(cluster, "set", "staleness=3") == (
            "job points: stale by at most 3 steps (staleness 3)\n"
        )
        turned = job_when(cluster, lambda now: now.step > 0)
        assert (turned.staleness, turned.backup_workers) == (3.0, 0)
        job_when(cluster, lambda now: now.step > turned.step + 10)  # and it goes on

        said = output(cluster, "set", "staleness=0", "backup-workers=1", "--job", "points")
        assert said == "job points: synchronous (staleness 0), 1 backup worker\n"
        back = job_when(cluster, lambda now: now.backup_workers == 1)
        job_when(cluster, lambda now: now.step > back.step + 10)


def test_a_job_that_is_not_there_is_not_changed() -> None:
    with LocalCluster(servers=1) as cluster:
        for flags in ((), ("--job", "nobody")):
            command = psctl(cluster, "set", "staleness=3", *flags)
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout) == (12, "")
            assert done.stderr.startswith("psctl set: ")


# --- looking


def test_a_step_that_waits_says_for_whom(job: Path) -> None:
    patient = ("--heartbeat-interval", "10s", "--dead-after", "100s")
    with LocalCluster(workers=2, job=job, overrides=ENDLESS, server_flags=patient) as cluster:
        job_when(cluster, trains)
        os.kill(cluster.workers[1].pid, signal.SIGSTOP)
        try:
            while ": 1 waits for worker-1 (" not in (text := output(cluster, "status")):
                cluster.poll()
        finally:
            os.kill(cluster.workers[1].pid, signal.SIGCONT)
    assert "\n  step " in text
    assert "synchronous (staleness 0)" in text


@contextmanager
def top(cluster: LocalCluster, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        psctl(cluster, "top", "--every", "100ms", *flags),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_top_follows_a_job(job: Path) -> None:
    with LocalCluster(workers=1, job=job, overrides=ENDLESS) as cluster:
        job_when(cluster, trains)
        for number, code in ((signal.SIGINT, 0), (signal.SIGTERM, 143)):
            with top(cluster, "--format", "json") as process:
                assert process.stdout is not None
                steps = [json.loads(process.stdout.readline())["jobs"][0]["step"] for _ in range(3)]
                process.send_signal(number)
                assert process.wait(60) == code
            assert 0 < steps[0] <= steps[1] <= steps[2]


def test_top_outlives_the_cluster() -> None:
    with LocalCluster() as cluster, top(cluster, "--format", "json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["jobs"] == []
        cluster.stop()
        assert "no answer since" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_top_on_a_terminal_follows_its_size_and_ends_with_q() -> None:
    master, slave = os.openpty()
    sized = ("COLUMNS", "LINES")  # would be believed more than the terminal
    environment = {name: value for name, value in os.environ.items() if name not in sized}
    termios.tcsetwinsize(slave, (24, 80))
    with LocalCluster() as cluster:
        command = [*psctl(cluster, "top"), "--every", "1h"]
        environment["TERM"] = "xterm-256color"
        process = subprocess.Popen(command, stdin=slave, stdout=slave, env=environment)

        def read_until(text: bytes) -> bytes:
            shown = b""
            while text not in shown:
                shown += os.read(master, 65536)
            return shown

        try:
            wide = read_until(b"requests/s")
            termios.tcsetwinsize(slave, (24, 60))
            process.send_signal(signal.SIGWINCH)
            narrow = read_until(b"requests/s")
            os.write(master, b"q")
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(slave)
            os.close(master)
    assert b"1 server, 0 jobs" in wide
    assert b"q or Ctrl-C ends" in wide
    assert b"parameters" in wide
    assert b"parameters" not in narrow


# --- losing a worker


def test_a_synchronous_job_goes_on_without_a_worker_that_was_killed(
    caplog: pytest.LogCaptureFixture, job: Path
) -> None:
    quick = ("--heartbeat-interval", "100ms", "--dead-after", "2s")
    with LocalCluster(workers=3, job=job, server_flags=quick) as cluster:
        job_when(cluster, trains)
        os.kill(cluster.workers[2].pid, signal.SIGKILL)
        cluster.wait(timeout=100)
        status = status_of(cluster)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("psctl")]
    assert said == ["worker-2 was killed by SIGKILL; the job goes on without it"]
    result = result_of(status, load_job(job, ()))
    assert (result.workers, result.died) == (3, 1)
    assert status.jobs[0].progress is not None
    (held_out,) = {evaluation.examples for evaluation in status.jobs[0].progress.evaluations}
    assert result.examples == EPOCHS * (ROWS - held_out)  # its chunks were done by others, and counted once
    assert result.metrics["accuracy"] >= 0.95
