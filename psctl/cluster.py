"""A cluster of real processes on this machine that ends with the process that started it."""

from __future__ import annotations

import http.client
import json
import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from protocol.credentials import Access
from protocol.daemon.exit_codes import ExitCode
from protocol.tls import TLS
from psctl.child import Child, how_it_ended, stop_all

__all__ = ["LocalCluster", "sigterm_raises"]

_log = logging.getLogger(__name__)

_PAUSE: Final = 0.02  # seconds between two looks at what is waited for
_START_WITHIN: Final = 60.0  # seconds; a loaded machine takes its time to import NumPy
_ANSWER_WITHIN: Final = 1.0  # seconds
_GRACE: Final = 10.0  # seconds
_LONG_GRACE: Final = 30.0  # seconds; servers give up a last checkpoint after 25

_SERVER: Final = (sys.executable, "-m", "psserver")
_WORKER: Final = (sys.executable, "-m", "psworker")


class LocalCluster:
    """Servers and workers of one job, as a context manager.

        with LocalCluster(servers=2, workers=4, job="job.toml") as cluster:
            cluster.wait()

    On entering, all servers are up and ready and the workers are started. On leaving, whatever the
    reason, no process stays behind: workers are stopped first, the coordinator last. While the context
    lasts, a SIGTERM that nobody else handles raises ``SystemExit(143)``, so that it is left, too. If this
    process is killed, the children notice the end of their standard input and stop by themselves.

    A worker that a signal kills (``os.kill(cluster.workers[0].pid, signal.SIGKILL)``) is logged as a warning,
    and the job goes on without it. A server that ends is missed, unless ``kill_server`` has ended it.

    Args:
        servers: how many, at least 1.
        workers: how many, and how many the job starts with; 0: the job's settings say when it starts.
        job: job file, relative to the current directory; None: the built-in demo job.
        overrides: settings of the job, such as ``train.epochs=3``.
        port: the coordinator's TCP port; 0: a free one.
        echo_logs: pass the processes' logs on to standard error, each line after its process's name.
        reconnect_for: how long a worker tries while no server answers, such as ``60s``.
        checkpoint_dir: directory or URL of the servers' checkpoints and update logs; a cluster that is
            started with what another one left there goes on from it. None: nothing outlives the servers.
        durability: what outlives a server that is killed: ``snapshot`` (the last checkpoint) or ``log``
            (every acknowledged update). None: ``snapshot`` with a ``checkpoint_dir``, else nothing.
        checkpoint_every: time between two checkpoints, such as ``30s``, which is what None means.
        access: token and certificates that servers and workers have in common, and their clients need; None:
            nobody asks for any.
        server_flags: more flags for each server; they beat those given here.
        worker_flags: more flags for each worker; they beat those given here.
        grace: seconds that workers, other servers and coordinator each have to end before they are killed;
            None: 10, or 30 with a ``checkpoint_dir``: servers take a last checkpoint.
        server_command: program and first arguments of a server; flags follow.
        worker_command: program and first arguments of a worker; flags follow.

    Attributes:
        address: the coordinator's ``HOST:PORT``; ``""`` before the start.
        metrics: ``HOST:PORT`` of each server's metrics, in the order of ``servers``.
        checkpoint_dir: the directory, as an absolute path, or URL of the checkpoints; None: there is none.

    Raises:
        ValueError: no server, or a negative number of workers.
        ProcessFailed: on entering, a process ended instead of getting ready.
        TimeoutError: on entering, the servers did not get ready within a minute.
        OSError: on entering, a program cannot be started.
    """

    def __init__(
        self,
        servers: int = 1,
        workers: int = 0,
        job: str | Path | None = None,
        overrides: Sequence[str] = (),
        *,
        port: int = 0,
        echo_logs: bool = False,
        reconnect_for: str = "60s",
        checkpoint_dir: str | Path | None = None,
        durability: str | None = None,
        checkpoint_every: str | None = None,
        access: Access | None = None,
        server_flags: Sequence[str] = (),
        worker_flags: Sequence[str] = (),
        grace: float | None = None,
        server_command: Sequence[str] = _SERVER,
        worker_command: Sequence[str] = _WORKER,
    ) -> None:
        if servers < 1:
            raise ValueError(f"servers={servers}: a cluster has at least 1 server")
        if workers < 0:
            raise ValueError(f"workers={workers}: expected 0 or more")
        self.address = ""
        self.metrics: tuple[str, ...] = ()
        self._server_count = servers
        self._worker_count = workers
        self.checkpoint_dir = None if checkpoint_dir is None else _absolute(checkpoint_dir)
        self._access_flags = () if access is None else _access_flags(access)
        self._job_flags = ("--reconnect-for", reconnect_for, *_job_flags(job, overrides, workers))
        self._server_flags = (
            *_flag("--checkpoint-dir", self.checkpoint_dir),
            *_flag("--durability", durability),
            *_flag("--checkpoint-every", checkpoint_every),
            *server_flags,
        )
        self._worker_flags = tuple(worker_flags)
        self._port = port
        self._echo_logs = echo_logs
        self._grace = (_GRACE if checkpoint_dir is None else _LONG_GRACE) if grace is None else grace
        self._server_command = server_command
        self._worker_command = worker_command
        self._servers: list[Child] = []
        self._addresses: list[tuple[str, str]] = []  # of each server, and of its metrics
        self._down: set[Child] = set()  # servers that ``kill_server`` has killed
        self._workers: list[Child] = []
        self._missed: set[Child] = set()  # killed by a signal, and said to be
        self._exit = ExitStack()

    @property
    def servers(self) -> tuple[Child, ...]:
        """The server processes; the first is the coordinator."""
        return tuple(self._servers)

    @property
    def workers(self) -> tuple[Child, ...]:
        """The worker processes, those that have ended included."""
        return tuple(self._workers)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(sigterm_raises())
            ready_files = tempfile.TemporaryDirectory(prefix="asyncps-")
            stack.callback(ready_files.cleanup)
            stack.callback(self.stop)
            self._start_servers(Path(ready_files.name))
            ready_files.cleanup()  # already here, so that not even SIGKILL leaves a directory behind
            for _ in range(self._worker_count):
                self.add_worker()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()

    def __deepcopy__(self, memo: object) -> Self:
        """Return the same cluster: there is no other. (Estimators are copied with what they were given.)"""
        return self

    def add_worker(self, name: str | None = None) -> Child:
        """Start one more worker, called ``worker-N`` unless named, and return it without waiting for it."""
        name = name or f"worker-{len(self._workers)}"
        flags = ("--server", self.address, "--name", name, *self._job_flags)
        worker = self._start(name, (*self._worker_command, *flags), self._worker_flags)
        self._workers.append(worker)
        return worker

    def worker_metrics(self) -> dict[str, str]:
        """Return where each worker that runs serves its metrics, ``HOST:PORT`` by name, once it does."""
        running = (worker for worker in self._workers if worker.returncode is None)
        found = ((worker.name, worker.metrics()) for worker in running)
        return {name: address for name, address in found if address is not None}

    def kill_server(self, index: int) -> None:
        """Kill a server, as ``kill -9`` does, and return when it has ended; it is not missed from then on."""
        server = self._servers[index]
        self._down.add(server)
        server.kill()

    def restart_server(self, index: int, *, wait: bool = True) -> Child:
        """Start a server anew, at its former address and with its flags, and return it.

        Args:
            index: of the server; 0 is the coordinator. If it runs, it is stopped first as by SIGTERM.
            wait: until all servers are ready. Without it, several may be started that wait for each other.

        Raises:
            ProcessFailed: it ended instead of getting ready.
            TimeoutError: the servers did not get ready within a minute.
        """
        former = self._servers[index]
        stop_all([former], self._grace)
        self._down.discard(former)
        address, metrics = self._addresses[index]
        more = ("--port", address.rpartition(":")[2], "--metrics-port", metrics.rpartition(":")[2])
        self._servers[index] = self._start_server(index, more)
        if wait:
            self.wait_until_ready()
        return self._servers[index]

    def wait_until_ready(self) -> None:
        """Return when all servers serve, with the state that they should have.

        Raises:
            ProcessFailed: a process has ended that should not have.
            TimeoutError: that took more than a minute.
        """
        for (_, metrics), server in zip(self._addresses, self._servers, strict=True):
            self._await(f"{server.name} is ready", partial(_is_ready, metrics))

    def poll(self) -> bool:
        """Return whether all workers have ended with exit code 0, but for those that a signal killed.

        Raises:
            ProcessFailed: a worker ended with another exit code, all were killed, or a server ended at all.
        """
        failed = [
            child for child in self._servers if child.returncode is not None and child not in self._down
        ]
        ended = [(child, child.returncode) for child in self._workers]
        failed += [child for child, code in ended if code is not None and code > 0]
        killed = [child for child, code in ended if code is not None and code < 0]
        if killed and len(killed) == len(ended):
            failed += killed
        if failed:
            # "Cluster lost" is what the others say when one of them is gone: name the one.
            raise min(failed, key=lambda child: child.returncode == ExitCode.CLUSTER_LOST).failure()
        finished = all(code is not None for _, code in ended)
        self._miss(killed, "the others have finished the job" if finished else "the job goes on without it")
        return finished

    def wait(self, timeout: float | None = None) -> None:
        """Return when all workers have ended with exit code 0, but for those that a signal killed.

        Raises:
            ProcessFailed: as soon as a worker ends with another exit code, all are killed, or a server ends.
            TimeoutError: ``timeout`` seconds have passed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.poll():
            if deadline is not None and time.monotonic() >= deadline:
                at_work = [child.name for child in self._workers if child.returncode is None]
                raise TimeoutError(f"{', '.join(at_work)} still at work after {timeout} s")
            time.sleep(_PAUSE)

    def stop(self) -> None:
        """Stop all processes: workers, then servers, the coordinator last. May be called again."""
        try:
            for group in (self._workers, self._servers[1:], self._servers[:1]):
                stop_all(group, self._grace)
        finally:  # interrupted: who asks a second time is in a hurry
            for child in (*self._workers, *self._servers):
                child.end(0.0)

    def _miss(self, killed: Sequence[Child], outcome: str) -> None:
        """Say once of each worker that it was killed."""
        for child in killed:
            if child not in self._missed and child.returncode is not None:
                self._missed.add(child)
                _log.warning("%s %s; %s", child.name, how_it_ended(child.returncode), outcome)

    def _start(self, name: str, command: Sequence[str], more_flags: Sequence[str]) -> Child:
        flags = ("--metrics-port", "0", "--stop-with-stdin", "--log-format", "text", *self._access_flags)
        return Child(name, (*command, *flags, *more_flags), echo=self._echo_logs)

    def _start_servers(self, ready_files: Path) -> None:
        """Start all servers, and return when the coordinator says that all have joined."""
        for shard in range(self._server_count):
            port = str(0 if shard else self._port)
            ready_file = str(ready_files / f"server-{shard}")
            self._servers.append(self._start_server(shard, ("--port", port, "--ready-file", ready_file)))
            if not shard:
                self._addresses.append(self._await_ready_file(self._servers[0], ready_files))
                self.address = self._addresses[0][0]
        self._addresses += [self._await_ready_file(other, ready_files) for other in self._servers[1:]]
        self.metrics = tuple(metrics for _, metrics in self._addresses)
        self._await("the servers have joined", lambda: _is_ready(self.metrics[0]))

    def _start_server(self, shard: int, more: Sequence[str]) -> Child:
        place = ("--join", self.address, "--shard", str(shard)) if shard else ()
        flags = ("--host", "127.0.0.1", "--shards", str(self._server_count), *place)
        return self._start(f"server-{shard}", (*self._server_command, *flags), (*more, *self._server_flags))

    def _await_ready_file(self, server: Child, ready_files: Path) -> tuple[str, str]:
        """Return a server's address and that of its metrics."""
        ready_file = ready_files / server.name
        self._await(f"{server.name} is bound", ready_file.exists)
        addresses = json.loads(ready_file.read_text())
        return addresses["address"], addresses["metrics"]

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_WITHIN
        while not condition():
            self.poll()
            if time.monotonic() >= deadline:
                logs = "\n".join(server.log_tail() for server in self._servers)
                raise TimeoutError(f"waited {_START_WITHIN:g} s until {what}; the log says:\n{logs}")
            time.sleep(_PAUSE)


def _flag(name: str, value: str | None) -> tuple[str, ...]:
    return () if value is None else (name, value)


def _access_flags(access: Access) -> tuple[str, ...]:
    tls = access.tls or TLS()
    given = {
        "--token-file": access.token_file,
        "--tls-ca": tls.ca,
        "--tls-cert": tls.cert,
        "--tls-key": tls.key,
    }
    return tuple(word for name, file in given.items() if file is not None for word in (name, str(file)))


def _absolute(directory: str | Path) -> str:
    """Return a directory as the servers, and others, can name it; URLs as they are."""
    return str(directory) if "://" in str(directory) else str(Path(directory).absolute())


def _job_flags(job: str | Path | None, overrides: Sequence[str], workers: int) -> tuple[str, ...]:
    settings = (*overrides, f"train.workers={workers}") if workers else overrides
    return (
        *(() if job is None else ("--job", str(job))),
        *(flag for setting in settings for flag in ("--set", setting)),
    )


def _is_ready(metrics: str) -> bool:
    connection = http.client.HTTPConnection(metrics, timeout=_ANSWER_WITHIN)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Have SIGTERM unwind the stack; by default it would end this process before any clean-up."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # others may set no handlers
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(int(ExitCode.TERMINATED))
