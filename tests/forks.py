"""Daemons for tests without the second that it takes to import them: forked from a process that has done so.

While ``forked_daemons`` lasts, a ``subprocess.Popen`` of this Python with ``-m psserver``, ``-m psworker`` or
``-m psctl`` gets a child of this process with its own arguments, environment, directory, files and session,
as if Python had been started. Two things differ: its command line in ``/proc`` is that of the process that it
was forked from, and what that one has imported it has imported, too. What a fork cannot give (other settings
of Python, another user) is started as ever, and so is what a forked process starts itself.

A daemon is forked twice, so that it is an orphan, and falls to this process, which for that moment is the one
that orphans below it fall to (``PR_SET_CHILD_SUBREAPER``): so it is a child that can be waited for.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

__all__ = ["forked_daemons"]

_PROGRAMS: Final = ("psserver", "psworker", "psctl")
_IMPORTS: Final = (
    "psserver.cli", "psworker.cli", "psctl.cli", "psctl.status", "psctl.top", "psctl.train", "psctl.up",
    "psctl.predict", "psctl.checkpoint", "psctl.restore", "psctl.inspect",
    "sklearn.datasets",  # for the digits
)  # fmt: skip
_TOO_LATE: Final = ("PYTHON", "OPENBLAS_", "OMP_", "MKL_", "NUMBA_")
"""How variables begin that are read when Python starts, or when something is imported."""

_LARGEST: Final = 1 << 20  # bytes of a request
_SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER: see prctl(2)
_ROOT: Final = Path(__file__).parents[1]


@contextmanager
def forked_daemons() -> Iterator[None]:
    """Have daemons forked that are started while this context lasts."""
    nursery = _Nursery()
    fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]

    def fork(*asked: Any) -> int:
        request = nursery.request(*asked)
        return fork_exec(*asked) if request is None else nursery.fork(request, asked)

    subprocess._fork_exec = fork  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]
        nursery.close()


class _Nursery:
    """The process that daemons are forked from; it is started for the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._prctl = ctypes.CDLL(None).prctl
        self._before = _read_early(os.environ)

    def request(
        self, words: Sequence[Any], _programs: Any, close_fds: bool, keep: Sequence[int],
        directory: Any, variables: Sequence[bytes] | None, *others: Any,
    ) -> dict[str, Any] | None:  # fmt: skip
        """Return how to fork what ``subprocess`` asks for; None: it is to be started as ever.

        The arguments are those of ``_posixsubprocess.fork_exec``.
        """
        session, *user = others[9:15]
        environment = dict(os.environ)
        if variables is not None:
            environment = dict(os.fsdecode(one).split("=", 1) for one in variables)
        place = Path(os.fsdecode(directory or Path.cwd()))
        ours = list(words[:2]) == [sys.executable, "-m"] and words[2] in _PROGRAMS
        plain = close_fds and len(keep) == 1 and user == [-1, None, None, None, -1] and others[15] is None
        if not (ours and plain and place.is_dir() and _read_early(environment) == self._before):
            return None
        return {
            "program": words[2],
            "flags": [os.fspath(word) for word in words[3:]],
            "directory": str(place.absolute()),
            "environment": environment,
            "session": bool(session),
        }

    def fork(self, request: Mapping[str, Any], asked: Sequence[Any]) -> int:
        """Fork what is asked for and return its process id."""
        files = [own if file == -1 else file for own, file in enumerate((asked[6], asked[9], asked[11]))]
        with self._lock:
            if self._process is None:
                self._start()
            self._prctl(_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], files)
                return int(self._socket.recv(_LARGEST))
            finally:
                self._prctl(_SUBREAPER, 0, 0, 0, 0)

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, cwd=_ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def close(self) -> None:
        """End the process; what was forked from it goes on."""
        if self._process is not None:
            self._socket.close()
            self._process.wait()


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_TOO_LATE)}


# --- in the process that daemons are forked from


def _main(asked: socket.socket) -> None:
    for module in _IMPORTS:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(asked, _LARGEST, 3)
        if not message:
            return
        request = json.loads(message)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                asked.detach()
                _become(request, files)
                return
            os.write(writing, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)  # from now on the daemon is an orphan
        asked.send(os.read(reading, 32))
        for file in (reading, writing, *files):
            os.close(file)


def _become(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Do what ``Popen`` and the start of Python would have done, and run the program."""
    if request["session"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 256)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin, sys.stdout, sys.stderr = map(_opened_as, (0, 1, 2), (sys.stdin, sys.stdout, sys.stderr))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv[1:] = request["flags"]
    sys.orig_argv[2:] = [request["program"], *request["flags"]]
    sys.path[0] = request["directory"]
    runpy.run_module(request["program"], run_name="__main__", alter_sys=True)


def _opened_as(number: int, former: Any) -> io.TextIOWrapper:
    """Open a standard file anew: the former one may believe that it is of another kind."""
    buffering = 0 if former.write_through else -1
    binary = open(number, "wb" if number else "rb", buffering, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        binary, former.encoding, former.errors, None if number == 0 else "\n",
        line_buffering=number == 2 or binary.isatty(), write_through=former.write_through,
    )  # fmt: skip


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
