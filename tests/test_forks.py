import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = ("psserver", "--port", "0", "--metrics-port", "0")
TRULY = ("-X", "faulthandler")
"""With a setting of Python, a program is started as ever."""


def start(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, options: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *options, "-m", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        cwd=cwd, env=env, start_new_session=True,
    )  # fmt: skip


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """The process, which does not outlive a test that fails."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def command_line(process: "subprocess.Popen[str]") -> str:
    return Path(f"/proc/{process.pid}/cmdline").read_text()


@pytest.mark.parametrize("options", [(), TRULY], ids=["forked", "started"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_daemon_is_a_process_of_its_own(
    options: tuple[str, ...], number: int, code: int, tmp_path: Path
) -> None:
    with ended(start(*SERVER, cwd=tmp_path, options=options)) as process:
        assert process.stderr is not None
        assert ": ready " in process.stderr.readline()
        assert ("tests.forks" in command_line(process)) == (not options)
        assert os.getsid(process.pid) == process.pid
        assert f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{process.pid}/status").read_text()
        assert Path(f"/proc/{process.pid}/cwd").resolve() == tmp_path.resolve()
        process.send_signal(number)
        assert process.wait(60) == code


@pytest.mark.parametrize("options", [(), TRULY], ids=["forked", "started"])
def test_it_notices_the_end_of_its_standard_input(options: tuple[str, ...], tmp_path: Path) -> None:
    with ended(start(*SERVER, "--stop-with-stdin", cwd=tmp_path, options=options)) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "standard input has ended" in said


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("psctl",), {}),
        (("psctl", "no-such-command"), {}),
        (("psserver", "--port", "none"), {}),
        (("psworker", "--job", "absent.toml"), {}),
        (("psserver",), {"PSSERVER_PORT": "none"}),
        (("psctl", "status", "--server", "127.0.0.1:1"), {}),
    ],
)
def test_it_says_the_same_and_ends_the_same(
    words: tuple[str, ...], variables: Mapping[str, str], tmp_path: Path
) -> None:
    environment = os.environ | variables
    forked, started = (
        start(*words, cwd=tmp_path, env=environment, options=options) for options in ((), TRULY)
    )
    with forked, started:
        assert forked.communicate(timeout=60) == started.communicate(timeout=60)
    assert forked.returncode == started.returncode


def test_what_python_reads_when_it_starts_needs_a_start(tmp_path: Path) -> None:
    with ended(start(*SERVER, cwd=tmp_path, env=os.environ | {"PYTHONDEVMODE": "1"})) as process:
        assert "tests.forks" not in command_line(process)
