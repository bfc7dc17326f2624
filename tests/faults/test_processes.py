import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.processes import Child, NotOurs

# Says every line that it is told, and has a second thread.
ECHO = """
import sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
for line in sys.stdin:
    print(line, end="", flush=True)
"""
# Starts another such program, says its pid, and waits for it.
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {ECHO!r}])
print(child.pid, flush=True)
child.wait()
"""


def start(program: str) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", program]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> int:
    """Close the pipes, and return the exit code."""
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.kill()
    return process.wait(20)


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    running = start(ECHO)
    say(running, "hello")
    assert hear(running) == "hello"
    yield running
    end(running)


def test_stopped_it_is_silent_and_resumed_it_goes_on(process: "subprocess.Popen[str]") -> None:
    with Child(process.pid) as child:
        for word in ("one", "two"):
            assert not child.stopped
            child.stop()
            assert child.stopped
            assert child.running
            say(process, word)
            assert child.stopped  # still, now that there is something to do
            child.resume()
            assert hear(process) == word
        child.resume()  # of one that runs: nothing
        say(process, "three")
        assert hear(process) == "three"


@pytest.mark.parametrize("stopped", [False, True])
def test_killed(process: "subprocess.Popen[str]", stopped: bool) -> None:
    with Child(process.pid) as child:
        if stopped:
            child.stop()
        child.kill()
        assert not child.running
        assert process.wait(20) == -signal.SIGKILL
        child.kill()  # has no effect on one that has ended and was waited for
        child.resume()
        with pytest.raises(NotOurs, match=f"{process.pid} has ended"):
            child.stop()


def test_at_the_end_it_is_killed_even_if_stopped(process: "subprocess.Popen[str]") -> None:
    def fail() -> None:
        with Child(process.pid) as child:
            child.stop()
            raise RuntimeError("a test that fails")

    with pytest.raises(RuntimeError, match="a test that fails"):
        fail()
    assert process.wait(20) == -signal.SIGKILL


def test_a_child_of_a_child() -> None:
    parent = start(PARENT)
    try:
        grandchild = int(hear(parent))
        with Child(grandchild) as child:
            child.stop()
            say(parent, "word")  # its standard input is the grandchild's too
            assert child.stopped
            child.resume()
            assert hear(parent) == "word"
            child.kill()
        assert parent.wait(20) == 0
    finally:
        end(parent)


def test_processes_of_others_are_not_touched() -> None:
    for pid in (1, os.getppid(), os.getpid()):
        with pytest.raises(NotOurs, match=f"{pid} is no child"):
            Child(pid)


def test_a_process_that_is_none() -> None:
    ended = start("")
    end(ended)
    for pid in (ended.pid, 0, -1, 1 << 40):
        with pytest.raises(NotOurs, match=f"there is no process {pid}"):
            Child(pid)
