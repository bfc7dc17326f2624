import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.daemon.exit_codes import ExitCode
from protocol.status import ClusterStatus
from psserver.membership import FailureSettings
from psworker.cli import main
from tests.cluster import Elsewhere, cluster_in_thread
from tests.ports import reserved_port

pytestmark = [
    pytest.mark.usefixtures("process_as_before"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered"),
]


@pytest.fixture
def cluster() -> Iterator[Elsewhere]:
    with cluster_in_thread(failure=FailureSettings(heartbeat=0.3)) as found:
        yield found


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file for y = 2 x + 1."""
    lines = [f"{x},{2 * x + 1}" for x in np.linspace(-1, 1, 40)]
    (tmp_path / "line.csv").write_text("\n".join(["x,y", *lines]) + "\n")
    path = tmp_path / "job.toml"
    path.write_text(
        f"""
        [model]
        kind = "linear"
        [data]
        source = "{tmp_path / "line.csv"}"
        target = "y"
        chunk-rows = 10
        [train]
        epochs = 3
        """
    )
    return path


def run(address: str, *flags: str | Path) -> int:
    return main(["--server", address, "--metrics-port", "0", "--reconnect-for", "0s", *map(str, flags)])


def test_done(cluster: Elsewhere, job: Path) -> None:
    assert run(cluster.address, "--job", job, "--set", "train.epochs=2", "--name", "me") == ExitCode.DONE
    (status,) = cluster.status().jobs
    assert status.progress is not None
    assert (status.progress.phase, status.progress.epochs) == ("finished", 2)
    assert [(worker.name, worker.state) for worker in status.workers] == [("me", "left")]


def test_a_latecomer_takes_the_job_from_the_cluster(cluster: Elsewhere, job: Path) -> None:
    assert run(cluster.address, "--job", job) == ExitCode.DONE
    assert run(cluster.address) == ExitCode.DONE


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--server", "nowhere"], "HOST:PORT"),
        (["--server", "127.0.0.1:0"], "HOST:PORT"),
        (["--set", "train.epochs=0"], "epochs"),
        (["--set", "train.epoch=3"], "epochs"),
        (["--set", "epochs"], "section.key=value"),
        (["--job", "nowhere.toml"], "nowhere.toml"),
        (["--name", "a/b"], "a/b"),
        (["--reconnect-for", "soon"], "soon"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--tls-cert", "a", "--tls-key", "b"], "--tls-ca"),
        (["--tls-key", "b", "--tls-ca", "ca"], "--tls-cert"),
        (["--set", "optimizer.lr=-1"], "lr"),
    ],
)
def test_bad_usage_is_exit_code_2_and_says_what(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ('model.kind="liner"', ExitCode.USAGE, "linear"),
        ('data.source="nowhere.csv"', ExitCode.DATA_UNREADABLE, "nowhere.csv"),
        ('data.target="z"', ExitCode.DATA_UNREADABLE, '"z"'),
        ("optimizer.lr=1e30", ExitCode.DIVERGED, "NaN or infinity"),
    ],
)
def test_what_is_wrong_with_the_job_has_its_exit_code_and_is_said(
    cluster: Elsewhere, job: Path, change: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster.address, "--job", job, "--set", change) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--token-file", "--tls-ca"])
def test_a_file_that_cannot_be_used_is_exit_code_2_and_named(
    cluster: Elsewhere, job: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster.address, "--job", job, flag, "nowhere") == ExitCode.USAGE
    assert f"{flag[2:]}=nowhere" in capsys.readouterr().err


def test_a_token_at_a_server_that_knows_none_is_exit_code_11(
    cluster: Elsewhere, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("a-token-that-is-long-enough\n")
    assert run(cluster.address, "--job", job, "--token-file", tmp_path / "token") == ExitCode.REFUSED
    assert "this server knows no tokens" in capsys.readouterr().err


def test_another_job_is_exit_code_12_and_names_the_key(
    cluster: Elsewhere, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster.address, "--job", job) == ExitCode.DONE
    assert run(cluster.address, "--job", job, "--set", "train.epochs=9") == ExitCode.JOB_MISMATCH
    assert "[train] epochs is 9 in one and 3 in the other" in capsys.readouterr().err


def test_no_job_is_exit_code_12(cluster: Elsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cluster.address) == ExitCode.JOB_MISMATCH
    assert "job" in capsys.readouterr().err


def test_no_server_is_exit_code_10(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert run(address, "--job", job) == ExitCode.UNREACHABLE
        assert address in capsys.readouterr().err


def test_a_metrics_port_in_use_is_exit_code_2(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--server", "127.0.0.1:1", "--job", str(job), "--metrics-port", port]) == ExitCode.USAGE
        assert f"--metrics-port {port}" in capsys.readouterr().err


def test_metrics_are_where_they_are_asked_to_be(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready, elsewhere = tmp_path / "ready", "127.0.0.2"
    with reserved_port() as free:
        flags = ("--job", job, "--metrics-host", elsewhere, "--ready-file", ready)
        assert run(f"127.0.0.1:{free}", *flags) == ExitCode.UNREACHABLE
    assert json.loads(ready.read_text())["metrics"].startswith(f"{elsewhere}:")
    nowhere = "203.0.113.1"  # no machine has it: it is for documentation
    assert run("127.0.0.1:1", "--job", job, "--metrics-host", nowhere) == ExitCode.USAGE
    assert f"--metrics-host {nowhere}" in capsys.readouterr().err


def meanwhile(
    cluster: Elsewhere, condition: Callable[[ClusterStatus], bool], act: Callable[[], object]
) -> threading.Thread:
    """Do something as soon as the cluster's status is so; ``main`` has the main thread."""

    def wait() -> None:
        cluster.until(condition)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def somebody_waits(status: ClusterStatus) -> bool:
    return bool(status.jobs and status.jobs[0].workers)


def is_under_way(status: ClusterStatus) -> bool:
    return bool(status.jobs and (progress := status.jobs[0].progress) and progress.chunks_done > 3)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_a_signal_ends_training_and_gives_the_leases_back(
    cluster: Elsewhere, job: Path, number: signal.Signals, code: int
) -> None:
    thread = meanwhile(cluster, is_under_way, lambda: os.kill(os.getpid(), number))
    assert run(cluster.address, "--job", job, "--set", "train.epochs=1000000") == code
    thread.join()
    (status,) = cluster.status().jobs
    assert status.progress is not None
    assert status.progress.chunks_leased == 0
    assert [worker.state for worker in status.workers] == ["left"]


def test_a_signal_ends_the_wait_for_other_workers(cluster: Elsewhere, job: Path) -> None:
    thread = meanwhile(cluster, somebody_waits, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(cluster.address, "--job", job, "--set", "train.workers=2") == ExitCode.TERMINATED
    thread.join()
    cluster.until(lambda status: status.jobs[0].workers[0].state == "left")


@pytest.mark.parametrize("limit", ["0s", "200ms"])
def test_a_lost_cluster_is_exit_code_15(
    cluster: Elsewhere, job: Path, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    thread = meanwhile(cluster, is_under_way, cluster.stop)
    flags = ["--job", str(job), "--set", "train.epochs=1000000", "--reconnect-for", limit]
    assert run(cluster.address, *flags) == ExitCode.CLUSTER_LOST
    thread.join()
    said = capsys.readouterr().err
    assert "the cluster is lost" in said
    assert cluster.address in said


def test_stop_with_stdin(cluster: Elsewhere, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        thread = meanwhile(cluster, is_under_way, lambda: os.close(writing))
        flags = ["--job", str(job), "--set", "train.epochs=1000000", "--stop-with-stdin"]
        assert run(cluster.address, *flags) == ExitCode.DONE
        thread.join()


def test_standard_input_cannot_be_a_stream_and_a_sign_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "stream.toml"
    job.write_text('[model]\nkind = "linear"\n[data]\ncolumns = ["x"]\n[stream]\nsource = "-"\n')
    with pytest.raises(SystemExit) as caught:
        main(["--job", str(job), "--stop-with-stdin"])
    assert caught.value.code == ExitCode.USAGE
    assert '[stream] source = "-"' in capsys.readouterr().err
