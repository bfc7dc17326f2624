import argparse
import io
import json
import os
import signal
from collections.abc import Callable

import pytest

from protocol.errors import Unreachable
from protocol.status import ClusterStatus
from psctl import LocalCluster, ProcessFailed, cli, train
from psworker.job import load_job

MakeCluster = Callable[..., LocalCluster]
MakeStatus = Callable[..., ClusterStatus]
Output = pytest.CaptureFixture[str]
JOB = load_job(None, ())


@pytest.fixture
def trained(
    monkeypatch: pytest.MonkeyPatch, fake_cluster: MakeCluster, make_status: MakeStatus
) -> Callable[..., argparse.Namespace]:
    """Return what makes ``psctl train`` start fake daemons; it returns the flags that it then sees."""

    def install(**daemons: str) -> argparse.Namespace:
        seen = argparse.Namespace()

        def cluster_from(options: argparse.Namespace) -> LocalCluster:
            vars(seen).update(vars(options))
            return fake_cluster(1, 1, **daemons)

        async def fetch_status(host: str, port: int) -> ClusterStatus:
            return make_status(phase="finished", epoch=10, chunks_done=80)

        monkeypatch.setattr(train, "cluster_from", cluster_from)
        monkeypatch.setattr(train, "fetch_status", fetch_status)
        return seen

    return install


Trained = Callable[..., argparse.Namespace]


def test_the_last_status_is_of_a_time_when_workers_are_done_and_servers_are_not(
    fake_cluster: MakeCluster, make_status: MakeStatus
) -> None:
    cluster = fake_cluster(2, 2, worker="0")
    returncodes: list[tuple[int | None, ...]] = []
    shown: list[ClusterStatus | None] = []

    async def fetch(host: str, port: int) -> ClusterStatus:
        assert f"{host}:{port}" == cluster.address
        returncodes.append(tuple(child.returncode for child in (*cluster.workers, *cluster.servers)))
        return make_status()

    result = train.train(cluster, JOB, shown.append, fetch)
    assert returncodes[-1] == (0, 0, None, None)
    assert result.examples == 4500
    assert shown[0] is None
    assert shown[-1] == make_status()


def test_a_server_that_does_not_answer_is_the_cluster_s_to_explain(fake_cluster: MakeCluster) -> None:
    cluster = fake_cluster(1, 1)
    calls = 0

    async def fetch(host: str, port: int) -> ClusterStatus:
        nonlocal calls
        calls += 1
        if calls == 1:
            cluster.servers[0].terminate()
        raise Unreachable("no server answers")

    with pytest.raises(ProcessFailed, match="server-0 ended with exit code 143"):
        train.train(cluster, JOB, lambda status: None, fetch)


def test_a_worker_that_is_killed_is_said_and_the_others_finish(
    fake_cluster: MakeCluster, make_status: MakeStatus, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = fake_cluster(1, 2)

    async def fetch(host: str, port: int) -> ClusterStatus:
        one, other = cluster.workers
        if one.returncode is None:
            os.kill(one.pid, signal.SIGKILL)
        elif other.returncode is None and caplog.messages and "flags" in other.log_tail():
            os.kill(other.pid, signal.SIGUSR1)  # it is done
        return make_status()

    assert train.train(cluster, JOB, lambda status: None, fetch).examples == 4500
    assert caplog.messages == ["worker-0 was killed by SIGKILL; the job goes on without it"]


def test_json_is_one_object_and_nothing_else(trained: Trained, capsys: Output) -> None:
    trained(worker="0")
    assert cli.main(["train", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert json.loads(out)["metrics"] == {"accuracy": 0.75}
    assert err == ""  # it is no terminal


def test_text_is_plain_lines_and_a_table(
    trained: Trained, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    trained(worker="0")
    assert cli.main(["train"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits · softmax · synchronous\nepoch 10/10, 80/80 chunks")
    assert "accuracy" in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)


def test_a_terminal_gets_bars(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    trained(worker="0")
    assert cli.main(["train"]) == 0
    assert "\x1b[" in terminal.getvalue()
    assert "━" in terminal.getvalue()


@pytest.mark.parametrize(
    ("worker", "code"),
    [("2", 2), ("10", 10), ("12", 12), ("14", 14), ("15", 15), ("16", 16), ("1", 1), ("77", 1), ("143", 1)],
)
def test_a_worker_s_exit_code_is_ours_if_it_means_something(
    worker: str, code: int, trained: Trained, capsys: Output
) -> None:
    trained(worker=worker)
    assert cli.main(["train"]) == code
    err = capsys.readouterr().err
    assert f"worker-0 ended with exit code {worker}" in err
    assert "why it ends" in err


@pytest.mark.parametrize(("server", "code"), [("2", 2), ("1", 15), ("0", 15)])
def test_a_server_that_ends_is_a_cluster_lost(server: str, code: int, trained: Trained) -> None:
    trained(server=server)
    assert cli.main(["train"]) == code


def test_an_interrupt_stops_the_cluster(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    trained()

    def interrupted(cluster: LocalCluster, timeout: float) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LocalCluster, "wait", interrupted)
    assert cli.main(["train"]) == 130


def test_sigterm_stops_the_cluster(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    trained()

    def terminated(cluster: LocalCluster, timeout: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(LocalCluster, "wait", terminated)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train"])
    assert ended.value.code == 143


def test_a_wrong_job_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(train, "cluster_from", lambda options: pytest.fail("started"))
    assert cli.main(["train", "--set", "train.epoch=3"]) == 2
    assert "epochs" in capsys.readouterr().err
    assert cli.main(["train", "--job", "no-such-job.toml"]) == 2
    assert "no-such-job.toml" in capsys.readouterr().err
