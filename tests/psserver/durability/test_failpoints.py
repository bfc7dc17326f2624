import ast
import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import psserver
from psserver.durability.failpoints import NAMES, configure, failpoint


@pytest.fixture(autouse=True)
def off_afterwards() -> Iterator[None]:
    yield
    configure("")


def fails(name: str) -> bool:
    try:
        failpoint(name)
    except OSError:
        return True
    return False


def failing_hits(text: str, hits: int = 8) -> list[int]:
    configure(text)
    return [hit for hit in range(1, hits + 1) if fails("log.before-write")]


def test_nothing_happens_unless_configured() -> None:
    for name in (*NAMES, "nobody.registered-this"):
        failpoint(name)


@pytest.mark.parametrize(
    ("entry", "hits"),
    [
        ("log.before-write=error:EIO", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("log.before-write=error:EIO@3", [3]),
        ("log.before-write=error:EIO@2-5", [2, 3, 4, 5]),
        ("log.before-write=error:EIO@2;log.before-write=error:ENOSPC@7-7", [2, 7]),
        (" log.before-write=error:EIO@1 ; ", [1]),
        ("log.after-write=error:EIO", []),
        ("", []),
    ],
)
def test_fails_at_these_hits(entry: str, hits: list[int]) -> None:
    assert failing_hits(entry) == hits


def test_the_error_is_the_one_that_was_asked_for() -> None:
    configure("log.before-write=error:ENOSPC;log.after-write=error:EACCES")
    with pytest.raises(OSError, match=r"No space left on device \(failpoint log\.before-write\)") as caught:
        failpoint("log.before-write")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(PermissionError):
        failpoint("log.after-write")


def test_each_name_counts_its_own_hits_and_configuring_begins_anew() -> None:
    configure("log.before-write=error:EIO@2")
    assert not fails("log.after-write")
    assert not fails("log.before-write")
    assert fails("log.before-write")
    assert failing_hits("log.before-write=error:EIO@2") == [2]


def test_stalls_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    configure("cut.held=stall:250ms@2;cut.held=stall:2s@3")
    for _ in range(4):
        failpoint("cut.held")
    assert slept == [0.25, 2.0]


def test_kills_its_own_process_at_the_third_hit() -> None:
    program = (
        "from psserver.durability.failpoints import configure, failpoint\n"
        "configure('log.after-write=kill@3')\n"
        "for hit in range(1, 9):\n"
        "    print(hit, flush=True)\n"
        "    failpoint('log.after-write')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGKILL, "1\n2\n3\n", "")


def test_threads_are_counted_once_each() -> None:
    configure("log.before-write=error:EIO@1001-1500")
    with ThreadPoolExecutor(8) as threads:
        failed = threads.map(lambda _: sum(fails("log.before-write") for _ in range(500)), range(8))
    assert sum(failed) == 500


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("log.after-writ=kill", r'"log\.after-writ"; did you mean "log\.after-write"\?'),
        ("frobnicate=kill", r'"frobnicate"; known: log\.before-write, '),
        ("log.after-write", r"'log\.after-write' is no failpoint; write for example"),
        ("log.after-write=", r"is no failpoint; write for example"),
        ("log.after-write=kill@x", r"is no failpoint; write for example"),
        ("log.after-write=kill@0", r"'log\.after-write=kill@0': hits are counted from 1"),
        ("log.after-write=kill@3-2", r"the first comes first"),
        ("log.after-write=boom", r'"boom" is no action; known: kill, stall:DURATION, error:ERRNO'),
        ("log.after-write=kill:9", r'"kill:9" is no action'),
        ("log.after-write=stall:2", r"'2' is no duration; write for example 500ms"),
        ("log.after-write=stall", r"'' is no duration"),
        ("log.after-write=error:ENOSP", r'did you mean "ENOSPC"\?'),
        ("log.after-write=error", r'"" is no error number\'s name; write for example ENOSPC or EIO'),
    ],
)
def test_a_slip_is_named_and_changes_nothing(text: str, problem: str) -> None:
    configure("log.before-write=error:EIO@2")
    assert not fails("log.before-write")
    with pytest.raises(ValueError, match=problem):
        configure(f"log.before-write=error:EIO;{text}")
    assert fails("log.before-write")


def test_a_name_that_nobody_registered_is_noticed_when_failpoints_are_on() -> None:
    configure("log.before-write=error:EIO")
    with pytest.raises(ValueError, match=r'no failpoint "cut\.heldd"; did you mean "cut\.held"\?'):
        failpoint("cut.heldd")


def calls() -> Iterator[tuple[str, str | None]]:
    """Where ``failpoint`` is called in psserver, and with which text."""
    for file in sorted(Path(psserver.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="failpoint"), args=[ast.Constant(value=str(name))]):
                    yield f"{file.name}:{node.lineno}", name
                case ast.Call(func=ast.Name(id="failpoint") | ast.Attribute(attr="failpoint")):
                    yield f"{file.name}:{node.lineno}", None


def test_every_call_is_by_a_registered_name() -> None:
    assert [(where, name) for where, name in calls() if name not in NAMES] == []


def test_every_registered_name_is_called_and_says_what_is_true_there() -> None:
    assert NAMES.keys() - {name for _, name in calls()} == set()
    assert all(NAMES.values())
