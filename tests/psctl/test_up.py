import argparse
import time
from collections.abc import Callable

import pytest

from psctl import LocalCluster, cli, up

MakeCluster = Callable[..., LocalCluster]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch, fake_cluster: MakeCluster) -> Callable[..., None]:
    """Return what makes ``psctl up`` start fake daemons."""

    def install(servers: int, workers: int, **daemons: str) -> None:
        def cluster_from(options: argparse.Namespace, _: int, *, port: int) -> LocalCluster:
            assert port == 7070
            return fake_cluster(servers, workers, **daemons)

        monkeypatch.setattr(up, "cluster_from", cluster_from)

    return install


Clusters = Callable[..., None]


def test_it_says_where_it_is_and_stays_until_interrupted(
    clusters: Clusters, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    clusters(2, 0)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "time", argparse.Namespace(sleep=interrupted))
    assert cli.main(["up"]) == 130
    out, err = capsys.readouterr()
    assert out.startswith("2 servers at 127.0.0.1:7070; Ctrl-C stops all\n")
    assert out.count("/metrics\n") == 2
    assert out.count("  watch    http://127.0.0.1:") == 1
    assert "interrupted" in err


def test_it_says_when_the_workers_are_done_and_stays(
    clusters: Clusters, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    clusters(1, 1, worker="0")
    said = ""

    def look(seconds: float) -> None:
        nonlocal said
        said += capsys.readouterr().out
        if "all workers have finished" in said:
            raise KeyboardInterrupt
        time.sleep(0.001)

    monkeypatch.setattr(up, "time", argparse.Namespace(sleep=look))
    assert cli.main(["up"]) == 130
    assert said.count("all workers have finished") == 1


def test_it_ends_with_a_child_that_dies(clusters: Clusters, capsys: Output) -> None:
    clusters(1, 1, worker="14")
    assert cli.main(["up"]) == 14
    assert "why it ends" in capsys.readouterr().err


def test_a_wrong_job_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(up, "cluster_from", lambda *_, **__: pytest.fail("started"))
    assert cli.main(["up", "--workers", "1", "--set", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_greeting_can_be_pasted() -> None:
    text = up.greeting("127.0.0.1:4321", ("127.0.0.1:1", "127.0.0.1:2"), 3)
    assert text.startswith("2 servers with 3 workers at 127.0.0.1:4321")
    python = [line.removeprefix("  python").strip() for line in text.splitlines() if "connect" in line]
    compile("\n".join(python), "greeting", "exec")
    assert "psctl top --server 127.0.0.1:4321" in text
    assert "  watch    http://127.0.0.1:1/\n" in text


@pytest.mark.parametrize(
    ("setting", "code"),
    [("optimizer.lr=-1", 2), ("optimizer.name=sdg", 2), ("data.source=none.csv", 14)],
)
@pytest.mark.parametrize("command", ["up", "train"])
def test_what_every_worker_would_refuse_is_refused_before_anything_starts(
    command: str, setting: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("psctl.cluster_flags.LocalCluster", lambda *_, **__: pytest.fail("started"))
    assert cli.main([command, "--workers", "1", "--set", setting]) == code
    assert setting.partition("=")[2] in capsys.readouterr().err
