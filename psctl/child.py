"""One process of a local cluster: how it starts, what it says, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import IO, Final

__all__ = ["Child", "ProcessFailed", "how_it_ended", "stop_all"]

_KEPT: Final = 200  # log lines
_LONGEST_LINE: Final = 8192  # characters; what is longer is kept as several lines
_READY: Final = re.compile(r"ready .*\bmetrics=(\S+)")
_DRAIN: Final = 1.0  # seconds in which the log of a process that has ended is read to its end


class ProcessFailed(Exception):
    """A process of the cluster ended although it was needed.

    Attributes:
        name: of the process, such as ``worker-1``.
        returncode: its exit code; negative: the signal that killed it.
        log: its last log lines.
    """

    def __init__(self, name: str, returncode: int, log: str) -> None:
        super().__init__(name, returncode, log)
        self.name = name
        self.returncode = returncode
        self.log = log

    def __str__(self) -> str:
        said = f"its last log lines:\n{self.log}" if self.log else "it logged nothing"
        return f"{self.name} {how_it_ended(self.returncode)}; {said}"


def how_it_ended(returncode: int) -> str:
    """Return ``ended with exit code 3`` or ``was killed by SIGKILL``, which is -9."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-returncode}"


class Child:
    """A process that was started with a pipe as its standard input, so that it can notice our end.

    It is in a session of its own: Ctrl-C in a terminal reaches only this process, which then stops
    its children in order.

    Args:
        name: what it is called in messages.
        command: program and arguments.
        echo: pass its log lines on to our standard error, with its name before each.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], *, echo: bool = False) -> None:
        self.name = name
        self._log: deque[str] = deque(maxlen=_KEPT)
        self._metrics: str | None = None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # what a model prints is part of the log, and never of our output
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe)
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        self._stdin = self._process.stdin
        self._pump = threading.Thread(
            target=self._read_log, args=(self._process.stdout, echo), name=f"log of {name}", daemon=True
        )
        self._pump.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs, negative if a signal killed it."""
        return self._process.poll()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log, at most 200; complete once the process has ended."""
        if self.returncode is not None:
            self._pump.join(_DRAIN)
        return "\n".join(list(self._log.copy())[-lines:])

    def metrics(self) -> str | None:
        """Return where it serves its metrics, as its log says; None: it has not said so yet."""
        if self._metrics is None:
            found = _READY.search("\n".join(self._log.copy()))
            self._metrics = found[1] if found else None
        return self._metrics

    def failure(self) -> ProcessFailed:
        """Return the error that says how the process, which has ended, did so."""
        return ProcessFailed(self.name, self._process.wait(), self.log_tail())

    def terminate(self) -> None:
        """Ask the process to end, if it runs."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill the process, as SIGKILL does, and wait for its end."""
        self._process.kill()
        self.end(0.0)

    def end(self, within: float) -> None:
        """Wait ``within`` seconds for the process to end, then kill it; free what belongs to it."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdin.close()
        self._pump.join(_DRAIN)

    def _read_log(self, stream: IO[str], echo: bool) -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self._log.append(line.rstrip("\n"))
                if echo:
                    print(f"{self.name}: {line.rstrip()}", file=sys.stderr, flush=True)


def stop_all(children: Iterable[Child], grace: float) -> None:
    """Ask all ``children`` to end, and kill those that have not after ``grace`` seconds in all."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + grace
    for child in children:
        child.end(max(0.0, deadline - time.monotonic()))
