"""Daemons started one by one, for what a whole local cluster would hide."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class Daemon:
    """A running process whose standard error is collected line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    def log(self) -> str:
        """Return all that a daemon that has ended has logged."""
        self.process.wait(60)
        self._reader.join(10)
        return "".join(self._lines)

    def log_so_far(self) -> str:
        """Return what a daemon has logged until now."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, text: str) -> str:
        """Return the first line that contains ``text``, as soon as it has been logged."""

        def found() -> bool:
            return any(text in line for line in self._lines) or not self._reader.is_alive()

        with self._changed:
            assert self._changed.wait_for(found, timeout=60), "".join(self._lines)
            return next(line for line in self._lines if text in line)

    def addresses(self) -> dict[str, str]:
        """Return what the daemon announces once it is bound."""
        words = self.wait_for(": ready ").split(": ready ", 1)[1].split(" [", 1)[0].split()
        return dict(word.split("=", 1) for word in words)

    def exit_code(self) -> int:
        """Return the exit code once the process has ended."""
        return self.process.wait(60)


@contextmanager
def daemons() -> Iterator["Starter"]:
    """Yield a function that starts a daemon; all are gone at the end."""
    with ExitStack() as stack:
        yield Starter(stack)


class Starter:
    """Start ``psserver`` and ``psworker`` processes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, program: str, *flags: str, cwd: Path | None = None) -> Daemon:
        """Start a program of this project; it is killed at the end if it still runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", program, *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd,
        )  # fmt: skip
        daemon = Daemon(process)
        self._stack.callback(self._end, daemon)
        return daemon

    def server(self, *flags: str) -> Daemon:
        """Start a server on free ports."""
        return self("psserver", "--port", "0", "--metrics-port", "0", *flags)

    def worker(self, server: str, *flags: str, cwd: Path | None = None) -> Daemon:
        """Start a worker."""
        return self("psworker", "--server", server, "--metrics-port", "0", *flags, cwd=cwd)

    @staticmethod
    def _end(daemon: Daemon) -> None:
        daemon.process.kill()
        daemon.log()
        assert daemon.process.stderr is not None
        daemon.process.stderr.close()


def read_ready_file(path: Path) -> dict[str, object]:
    """Return what a daemon wrote to its ready file."""
    content: dict[str, object] = json.loads(path.read_text())
    return content
