"""Tokens and certificates with real processes: exit codes, what they say, and what a signal does."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.tls import TLS
from psctl import cli
from tests.certificates import Authority
from tests.cluster import cluster_in_thread
from tests.integration.daemons import Daemon, Starter, daemons
from tests.integration.points import write_points
from tests.integration.scrape import Metrics

ADMIN, WORKER = "an-admins-token-0", "worker:a-workers-token-0"


def write(file: Path, *lines: str) -> Path:
    """Write a token file in the place of a former one."""
    partial = file.with_name("partial")
    partial.write_text("\n".join(lines))
    partial.chmod(0o600)
    return partial.replace(file)


def tls_flags(files: TLS) -> list[str]:
    return ["--tls-ca", str(files.ca), "--tls-cert", str(files.cert), "--tls-key", str(files.key)]


@dataclass(frozen=True)
class Secured:
    """A server with tokens and certificates, and what its clients need."""

    start: Starter
    server: Daemon
    directory: Path
    authority: Authority
    tls: list[str]

    @property
    def address(self) -> str:
        return self.server.addresses()["address"]

    def failed(self) -> dict[str, float]:
        metrics = Metrics(self.server.addresses()["metrics"])
        name = "psserver_failed_hellos_total"
        return {labels[0][1]: metrics.value(name, **dict(labels)) for labels in metrics.labels(name)}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory)
    tokens = write(directory / "servers", WORKER, ADMIN)
    flags = ["--token-file", str(tokens), *tls_flags(authority.issue("server"))]
    with daemons() as start:
        server = start.server("--shards", "2", *flags)
        yield Secured(start, server, directory, authority, tls_flags(authority.issue("client")))


def psctl(secured: Secured, command: Sequence[str], *flags: str) -> int:
    """Run a command of an operator's in this process, and return its exit code."""
    return cli.main([*command, "--server", secured.address, *flags])


def test_11_real_programs_that_are_not_let_in(secured: Secured) -> None:
    before = secured.failed()
    start, address = secured.start, secured.address
    stranger = Authority(secured.directory / "stranger", "stranger").issue("worker")
    wrong = ["--token-file", str(write(secured.directory / "wrong", "nobodys-token-000"))]
    right = ["--token-file", str(write(secured.directory / "right", WORKER))]
    another_ca = tls_flags(TLS(secured.authority.file, stranger.cert, stranger.key))
    for_long = ("--reconnect-for", "60s")
    programs = {
        "proves none of the server's tokens": start.worker(address, *for_long, *secured.tls, *wrong),
        "the coordinator refuses: proof=wrong": start.server(
            "--join", address, *for_long, *secured.tls, *wrong
        ),
        "refuses this end's certificate": start.worker(address, *for_long, *another_ca, *right),
        "give --token-file": start("psctl", "status", "--server", address, *secured.tls),
        "token of an admin": start("psctl", "restore", "/x", "--server", address, *secured.tls, *right),
    }
    for says, program in programs.items():
        assert program.exit_code() == 11
        assert says in program.log()
        assert "Traceback" not in program.log()
        assert "a-workers-token-0" not in program.log()
    after = secured.failed()
    grown = {reason: after[reason] - before.get(reason, 0) for reason in ("token", "missing", "certificate")}
    assert grown == {"token": 2, "missing": 1, "certificate": 1}


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("top", "--format", "json"),
        ("set", "staleness=1"),
        ("checkpoint",),
        ("restore", "/nowhere"),
    ],
    ids=lambda command: command[0],
)
def test_11_every_command_of_an_operator_s(
    secured: Secured, command: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--token-file", str(write(secured.directory / "wrong", "nobodys-token-000"))]
    worker = ["--token-file", str(write(secured.directory / "worker", WORKER))]
    assert psctl(secured, command, *secured.tls) == 11
    assert "give --token-file" in capsys.readouterr().err
    assert psctl(secured, command, *secured.tls, *wrong) == 11
    assert "proves none" in capsys.readouterr().err
    assert psctl(secured, command, *worker) == 11
    assert "speaks TLS only" in capsys.readouterr().err
    if command[0] not in ("status", "top"):
        assert psctl(secured, command, *secured.tls, *worker) == 11
        assert "token of an admin" in capsys.readouterr().err


def test_11_tls_at_a_server_without_it(secured: Secured, capsys: pytest.CaptureFixture[str]) -> None:
    with cluster_in_thread() as plain:
        assert cli.main(["status", "--server", plain.address, *secured.tls]) == 11
        assert "does not speak TLS" in capsys.readouterr().err


def test_flags_come_from_the_environment_too(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = write(secured.directory / "worker", WORKER)
    monkeypatch.setenv("PSCTL_TOKEN_FILE", str(tokens))
    for flag, file in zip(secured.tls[::2], secured.tls[1::2], strict=True):
        monkeypatch.setenv("PSCTL_" + flag[2:].replace("-", "_").upper(), file)
    assert psctl(secured, ("status",)) == 0


def test_files_are_read_again_on_sighup_and_when_they_change(
    secured: Secured, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = secured.directory / "servers"
    new = ["--token-file", str(write(secured.directory / "new", "worker:a-new-workers-token"))]
    assert psctl(secured, ("status",), *secured.tls, *new) == 11
    write(tokens, WORKER, ADMIN, "worker:a-new-workers-token")
    secured.server.process.send_signal(signal.SIGHUP)
    secured.server.wait_for("read again: " + secured.tls[1])  # certificates come after the tokens
    assert psctl(secured, ("status",), *secured.tls, *new) == 0
    write(tokens, "short")
    secured.server.wait_for("stays in use")  # nobody said anything: it is looked at once a second
    assert psctl(secured, ("status",), *secured.tls, *new) == 0
    write(tokens, WORKER, ADMIN)


@pytest.mark.long
def test_a_cluster_trains_and_its_tokens_are_rotated_meanwhile(tmp_path: Path) -> None:
    """The servers' token file changes under two shards and a worker, and other workers come."""
    authority = Authority(tmp_path)
    tls = tls_flags(authority.issue("both"))
    servers = write(tmp_path / "servers", ADMIN, WORKER)
    old, new = write(tmp_path / "old", WORKER), write(tmp_path / "new", "worker:a-new-workers-token")
    job = ["--job", str(write_points(tmp_path)), "--set", "train.workers=1", "--set", "train.epochs=100000"]
    with daemons() as start:
        server_flags = ["--token-file", str(servers), *tls]
        first = start.server("--shards", "2", *server_flags)
        address = first.addresses()["address"]
        second = start.server("--join", address, *server_flags)
        worker = start.worker(address, *job, "--token-file", str(old), *tls)
        worker.wait_for("works on job")

        write(servers, ADMIN, "worker:a-new-workers-token")
        for server in (first, second):
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("read again: " + str(servers))
        refused = start.worker(address, *job, "--token-file", str(old), *tls)
        assert refused.exit_code() == 11
        newcomer = start.worker(address, *job, "--token-file", str(new), *tls)
        newcomer.wait_for("works on job")
        assert worker.process.poll() is None
        worker.process.send_signal(signal.SIGHUP)
        worker.wait_for("received SIGHUP")

        write(servers, ADMIN, WORKER)  # nobody says anything: it is looked at once a second
        os.utime(servers, (1, 1))
        refused = start.worker(address, *job, "--token-file", str(new), *tls)
        first.wait_for("read again")
        again = start.worker(address, *job, "--token-file", str(old), *tls)
        again.wait_for("works on job")
        for program in (newcomer, worker, again):
            program.process.terminate()
            assert program.exit_code() == 143
