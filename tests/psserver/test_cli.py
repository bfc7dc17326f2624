import asyncio
import io
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.run import announce_ready
from psserver.cli import main, start
from psserver.server import Server, ServerSettings
from tests.certificates import Authority
from tests.cluster import cluster_in_thread, holds

WhenReady: TypeAlias = Callable[[Callable[[dict[str, str]], object]], None]

pytestmark = pytest.mark.usefixtures("process_as_before")

FREE_PORTS = ["--port", "0", "--metrics-port", "0"]


@pytest.fixture
def when_ready(monkeypatch: pytest.MonkeyPatch) -> Iterator[WhenReady]:
    """Have something done in a thread as soon as ``main`` has announced its addresses."""
    threads: list[threading.Thread] = []

    def do(act: Callable[[dict[str, str]], object]) -> None:
        def announce(ready_file: str | None, **addresses: str) -> None:
            announce_ready(ready_file, **addresses)
            threads.append(threading.Thread(target=act, args=(addresses,)))
            threads[-1].start()

        monkeypatch.setattr("psserver.cli.announce_ready", announce)

    yield do
    for thread in threads:
        thread.join()


@contextmanager
def port_in_use() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shards", "0"], "--shards 0"),
        (["--max-connections", "0"], "--max-connections 0"),
        (["--max-connections-per-address", "0"], "--max-connections-per-address 0"),
        (["--idle-timeout", "500ms"], "--idle-timeout 0.5s"),
        (["--write-timeout", "0s"], "--write-timeout 0s"),
        (["--shard", "1"], "--shard 1 goes with --join"),
        (["--shard", "0", "--join", "127.0.0.1:7070"], "count from 1"),
        (["--heartbeat-interval", "2s", "--dead-after", "1s"], "--dead-after 1s"),
        (["--heartbeat-interval", "1ms"], "10ms or more"),
        (["--dead-after", "soon"], "soon"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "0.0.0.0", "--tls-cert", "a", "--tls-key", "b"], "--token-file"),
        (["--tls-cert", "a.pem"], "goes with --tls-key"),
        (["--tls-key", "a.key"], "goes with --tls-cert"),
        (["--tls-ca", "ca.pem"], "goes with --tls-cert and --tls-key"),
        (["--port", "65536"], "65536"),
        (["--port", "http"], "http"),
        (["--join", "nowhere"], "HOST:PORT"),
        (["--max-frame", "lots"], "lots"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_usage_is_exit_code_2_and_says_what(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_in_use_is_exit_code_2_and_named(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"--port": "0", "--metrics-port": "0"}
    with port_in_use() as port:
        flags[flag] = str(port)
        assert main([word for pair in flags.items() for word in pair]) == ExitCode.USAGE
        assert f"{flag} {port}" in capsys.readouterr().err


async def test_who_is_told_to_stop_need_not_wait_until_it_has_started() -> None:
    """A coordinator may not answer for a long time, or a log take long to be read."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(ServerSettings(port=0, join=free.getsockname(), reconnect_for=600.0))
        stop = asyncio.Event()
        starting = asyncio.create_task(start(server, stop))
        await holds(lambda: server._listener is not None)  # it has begun
        stop.set()
        assert await starting is None
        await server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_coordinator_is_exit_code_10(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        join = f"{host}:{free.getsockname()[1]}"
        assert main([*FREE_PORTS, "--join", join, "--reconnect-for", "200ms"]) == ExitCode.UNREACHABLE
        assert join in capsys.readouterr().err


def test_a_coordinator_that_refuses_is_exit_code_11(capsys: pytest.CaptureFixture[str]) -> None:
    with cluster_in_thread() as cluster:
        code = main([*FREE_PORTS, "--join", cluster.address])
    assert code == ExitCode.REFUSED
    assert "--shards" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--token-file", "--tls-cert"])
def test_a_file_that_cannot_be_used_is_exit_code_2_and_named(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ["--tls-key", "nowhere"] if flag == "--tls-cert" else []
    assert main([*FREE_PORTS, flag, "nowhere", *key]) == ExitCode.USAGE
    assert f"{flag[2:]}=nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("with_tokens", "tls", "warning"),
    [
        (True, (), "tokens without TLS"),
        (False, ("--insecure",), "may do anything"),
        (False, ("ca", "cert", "key"), ""),
        (True, ("cert", "key"), ""),
    ],
    ids=["tokens", "insecure", "mutual TLS", "TLS and tokens"],
)
def test_others_are_let_in_when_they_are_asked_who_they_are(
    tmp_path: Path,
    when_ready: WhenReady,
    with_tokens: bool,
    tls: tuple[str, ...],
    warning: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*FREE_PORTS, "--host", "0.0.0.0"]
    files = Authority(tmp_path).issue("server")
    for name in tls:
        flags += [name] if name.startswith("-") else [f"--tls-{name}", str(getattr(files, name))]
    if with_tokens:
        (tmp_path / "tokens").write_text("a-token-that-is-long-enough")
        (tmp_path / "tokens").chmod(0o600)
        flags += ["--token-file", str(tmp_path / "tokens")]
    when_ready(lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert main(flags) == ExitCode.TERMINATED
    said = capsys.readouterr().err
    assert warning in said
    assert ("WARNING" in said) == bool(warning)


def test_from_ready_to_sigterm(tmp_path: Path, when_ready: WhenReady) -> None:
    ready = tmp_path / "ready.json"
    pages: dict[str, int] = {}

    def look_and_stop(addresses: dict[str, str]) -> None:
        try:
            assert json.loads(ready.read_text()) == {**addresses, "pid": os.getpid()}
            for page in ("metrics", "healthz", "readyz"):
                with urllib.request.urlopen(f"http://{addresses['metrics']}/{page}") as answer:
                    pages[page] = answer.status
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    when_ready(look_and_stop)
    assert main([*FREE_PORTS, "--ready-file", str(ready)]) == ExitCode.TERMINATED
    assert pages == {"metrics": 200, "healthz": 200, "readyz": 200}


def test_not_ready_before_all_shards_have_joined(when_ready: WhenReady) -> None:
    codes: list[int] = []

    def look_and_stop(addresses: dict[str, str]) -> None:
        try:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://{addresses['metrics']}/readyz")
            codes.append(caught.value.code)
            caught.value.close()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    when_ready(look_and_stop)
    assert main([*FREE_PORTS, "--shards", "2"]) == ExitCode.INTERRUPTED
    assert codes == [503]


def test_a_lost_coordinator_is_exit_code_15(
    when_ready: WhenReady, capsys: pytest.CaptureFixture[str]
) -> None:
    with cluster_in_thread(shards=2, started=1) as cluster:
        when_ready(lambda _: cluster.stop())
        arguments = [*FREE_PORTS, "--join", cluster.address, "--reconnect-for", "100ms"]
        assert main(arguments) == ExitCode.CLUSTER_LOST
        assert "coordinator is gone" in capsys.readouterr().err


def test_stop_with_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(writing)  # standard input that has ended
    with io.TextIOWrapper(io.FileIO(reading, "r")) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main([*FREE_PORTS, "--stop-with-stdin"]) == ExitCode.DONE
