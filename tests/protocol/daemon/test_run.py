import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.run import announce_ready

PREAMBLE = """
import asyncio, sys
from protocol.daemon.run import run, watch_stdin

async def main(stop):
    print("running", flush=True)
"""


@contextmanager
def daemon(body: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that runs ``body`` as its main coroutine, once it does."""
    script = PREAMBLE + "".join(f"    {line}\n" for line in body.splitlines()) + "sys.exit(run(main))\n"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> int:
    return process.wait(20)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_a_signal_stops_the_daemon_cleanly(number: signal.Signals, code: int) -> None:
    with daemon("await stop.wait()\nprint('clean', flush=True)\nreturn 0") as process:
        process.send_signal(number)
        assert ended(process) == code == 128 + number
        assert process.stdout is not None
        assert process.stdout.read() == "clean\n"


def test_a_failure_while_stopping_is_not_hidden_by_the_signal() -> None:
    with daemon("await stop.wait()\nreturn 15") as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process) == ExitCode.CLUSTER_LOST


def test_a_second_signal_ends_a_daemon_that_does_not_stop() -> None:
    with daemon(
        "await stop.wait()\nprint('stopping', flush=True)\nawait asyncio.Event().wait()\nreturn 0"
    ) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == ExitCode.INTERRUPTED
        assert process.stdout.read() == ""


@pytest.mark.parametrize("code", [0, 2, 10, 13])
def test_the_exit_code_is_what_main_returns(code: int) -> None:
    with daemon(f"return {code}") as process:
        assert ended(process) == code


def test_a_defect_is_a_traceback_and_not_done() -> None:
    with daemon("raise RuntimeError('a defect')") as process:
        assert ended(process) == 1
        assert process.stderr is not None
        assert "RuntimeError: a defect" in process.stderr.read()


def test_the_end_of_standard_input_can_be_waited_for() -> None:
    with daemon("await watch_stdin()\nreturn 7") as process:
        assert process.stdin is not None
        process.stdin.write("ignored\n")
        process.stdin.flush()
        process.stdin.close()
        assert ended(process) == 7


def test_exit_codes_are_the_documented_ones() -> None:
    documented = {
        "DONE": 0, "USAGE": 2, "UNREACHABLE": 10, "REFUSED": 11, "JOB_MISMATCH": 12,
        "CHECKPOINT_UNUSABLE": 13, "DATA_UNREADABLE": 14, "CLUSTER_LOST": 15,
        "INTERRUPTED": 130, "TERMINATED": 143,
    }  # fmt: skip
    assert documented.items() <= {code.name: code.value for code in ExitCode}.items()


# --- the ready file


def test_the_ready_file_says_addresses_and_pid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ready.json"
    with caplog.at_level(logging.INFO):
        announce_ready(str(path), address="127.0.0.1:7070", metrics="127.0.0.1:9464")
    assert json.loads(path.read_text()) == {
        "address": "127.0.0.1:7070", "metrics": "127.0.0.1:9464", "pid": os.getpid(),
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]
    [record] = caplog.records
    assert record.getMessage() == "ready address=127.0.0.1:7070 metrics=127.0.0.1:9464"


def test_a_ready_file_of_an_earlier_start_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    path.write_text("x" * 10_000)
    announce_ready(str(path), address="a:1")
    assert json.loads(path.read_text()) == {"address": "a:1", "pid": os.getpid()}


def test_who_sees_the_ready_file_sees_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    announce_ready(str(path), address="first")
    done = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(300):
        announce_ready(str(path), address=f"{number}" * 500)
    done.set()
    thread.join()
    assert seen
    assert {json.loads(text)["pid"] for text in seen} == {os.getpid()}


def test_without_a_ready_file_only_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        announce_ready(None, address="a:1")
    assert [record.getMessage() for record in caplog.records] == ["ready address=a:1"]
