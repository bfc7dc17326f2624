"""Killing, stopping and resuming a process that this one has started, or that its children have.

with Child(process.pid) as server:
    server.stop()          # SIGSTOP: it keeps its sockets and says nothing
    server.resume()
    server.kill()          # kill -9
"""

import os
import select
import signal
import time
from pathlib import Path
from typing import Final, Self

_LIMIT: Final = 20.0  # seconds for the kernel to do what it was told
_POLL: Final = 0.001  # seconds
_STOPPED: Final = "T"


class NotOurs(Exception):
    """A process that this one has not started: not to be touched."""


class Child:
    """A process by its ``pid``, held so that the number cannot come to mean another one.

    As a context manager it is resumed and killed at the end, however that comes. Waiting for its exit code
    stays the business of who started it.

    Raises:
        NotOurs: it is not a descendant of this process, is this process, or there is none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise NotOurs(f"pid: there is no process {pid!r}: {error}") from error
        # Asked after the process is held: what is asked about is what is held.
        if not _descends_from(pid, os.getpid()):
            os.close(self._fd)
            raise NotOurs(f"pid: {pid!r} is no child of this process, nor of its children")

    def kill(self) -> None:
        """Kill it, stopped or not (SIGKILL), and return once it has ended; one that has ended stays so."""
        self._signal(signal.SIGKILL)
        self.wait_ended()

    def stop(self) -> None:
        """Stop it where it is (SIGSTOP), and return once it stands still.

        Raises:
            NotOurs: it has ended.
            TimeoutError: it does not stop.
        """
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _LIMIT
        while self.running and not self.stopped:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} has not stopped within {_LIMIT} s")
            time.sleep(_POLL)
        if not self.running:
            raise NotOurs(f"pid: {self.pid} has ended, so it cannot be stopped")

    def resume(self) -> None:
        """Let it go on (SIGCONT); one that runs or has ended is left as it is."""
        self._signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether it has not ended; also true of one that is stopped."""
        return not select.select([self._fd], [], [], 0)[0]

    @property
    def stopped(self) -> bool:
        """Whether all of it stands still."""
        states = [_field(task, "State") for task in Path(f"/proc/{self.pid}/task").glob("*")]
        return bool(states) and all(state.startswith(_STOPPED) for state in states)

    def wait_ended(self) -> None:
        """Return once it has ended.

        Raises:
            TimeoutError: it has not, after 20 seconds.
        """
        if not select.select([self._fd], [], [], _LIMIT)[0]:
            raise TimeoutError(f"process {self.pid} has not ended within {_LIMIT} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.resume()
            self.kill()
        finally:
            os.close(self._fd)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:  # a process that has ended and was waited for cannot be signalled
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                return  # it has just ended by itself


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        pid = int(_field(Path(f"/proc/{pid}"), "PPid") or 0)
        if pid == ancestor:
            return True
    return False


def _field(process: Path, name: str) -> str:
    """Return a field of a process's or thread's ``status``, empty if it is gone."""
    try:
        lines = (process / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))
