"""A cluster of real ``psserver`` processes that keep their addresses, so that each can be started again.

with RestartableCluster(directory, "log", servers=2) as cluster:
    cluster.kill(1)
    cluster.start(1)
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Self

from protocol.addresses import join_address, split_address
from protocol.errors import ConnectionLost, PSError
from protocol.messages import Checkpoint, Checkpointed, Restore
from protocol.status import ClusterStatus
from psworker.asking import ask, fetch_status
from tests.faults.histories import Base
from tests.integration.daemons import Daemon

Mode = Literal["none", "snapshot", "log"]

ANSWERS_WITHIN: Final = 30.0  # seconds
_DEFECTS: Final = ("Traceback", "Task exception was never retrieved", "a task of this server failed")
_REPLACED: Final = re.compile(
    r"state was replaced by (?:nothing|checkpoint (\d+) of timeline (\d+)); timeline (\d+) begins"
)


class RestartableCluster:
    """Servers that keep their state in ``directory``; ``start`` starts one by its number, 0 the coordinator.

    As a context manager, all have been started, and are killed at the end; a log that tells of a defect fails
    the test.

    Args:
        directory: of the servers' checkpoints and logs.
        mode: ``--durability``.
        servers: how many.
        flags: further flags, of all servers.
        apart: each server has a directory of its own, as on machines of their own.

    Attributes:
        address: the coordinator's.
        kills: how many processes have been killed, also by themselves at a failpoint.
    """

    def __init__(
        self,
        directory: Path,
        mode: Mode,
        *,
        servers: int = 2,
        flags: tuple[str, ...] = (),
        apart: bool = False,
    ) -> None:
        self._directory = directory
        self._mode = mode
        self._flags = flags
        self._apart = apart
        self._addresses = free_addresses(servers)
        self._running: dict[int, Daemon] = {}
        self._logs: list[str] = []  # of those that have ended
        self.kills = 0

    @property
    def address(self) -> str:
        """The coordinator's address."""
        return self._addresses[0]

    def __len__(self) -> int:
        return len(self._addresses)

    def __enter__(self) -> Self:
        try:
            for number in range(len(self)):
                self.start(number)
            self.server(0).addresses()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end()
        if kind is None:
            self.check_logs()

    # --- processes

    def start(self, number: int, failpoints: str = "", *flags: str) -> Daemon:
        """Start a server that does not run; return at once."""
        assert number not in self._running
        host, port = split_address(self._addresses[number])
        role = ("--join", self.address, "--shard", str(number)) if number else ("--shards", str(len(self)))
        kept = () if self._mode == "none" else ("--checkpoint-dir", str(self.place(number)))
        place = ("--host", host, "--port", str(port), "--metrics-port", "0")
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-m", "psserver", *place, *role, *kept, "--durability", self._mode,
             "--insecure", *self._flags, *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PSSERVER_FAILPOINTS": failpoints},
        )  # fmt: skip
        self._running[number] = daemon = Daemon(process)
        return daemon

    def place(self, number: int) -> Path:
        """Return the directory of a server's state."""
        return self._directory / f"server-{number}" if self._apart else self._directory

    def server(self, number: int) -> Daemon:
        """Return the process that is this server now, or was it last."""
        return self._running[number]

    def kill(self, number: int) -> str:
        """Kill a server (SIGKILL), and return what it has logged."""
        self._running[number].process.kill()
        return self.ended(number)

    def ended(self, number: int) -> str:
        """Wait until a server has died at a failpoint, and return what it has logged.

        Raises:
            AssertionError: it ended in another way.
        """
        daemon = self._running[number]
        code = daemon.process.wait(ANSWERS_WITHIN)
        assert code == -signal.SIGKILL, f"server {number} ended with {code}:\n{self._forget(number)}"
        self.kills += 1
        return self._forget(number)

    def terminate(self, number: int) -> str:
        """Stop a server cleanly (SIGTERM), and return what it has logged."""
        self._running[number].process.terminate()
        code = self._running[number].exit_code()
        log = self._forget(number)
        # One that is still importing is ended by the signal itself, which is 143 to a shell as well.
        stopped = {128 + signal.SIGTERM} if log else {128 + signal.SIGTERM, -signal.SIGTERM}
        assert code in stopped, f"server {number} ended with {code}:\n{log}"
        return log

    def has_died(self, number: int) -> bool:
        """Return whether a server's process has ended."""
        return self._running[number].process.poll() is not None

    def _forget(self, number: int) -> str:
        daemon = self._running.pop(number)
        log = daemon.log()
        assert daemon.process.stderr is not None
        daemon.process.stderr.close()
        self._logs.append(f"--- server {number}, process {daemon.process.pid}\n{log}")
        return log

    def _end(self) -> None:
        for number in list(self._running):
            self._running[number].process.kill()
            self._forget(number)

    # --- what they say

    def logs(self) -> str:
        """Return what all processes have logged, those that run as far as they have."""
        return "\n".join(
            [*self._logs, *(f"--- server {n}\n{d.log_so_far()}" for n, d in self._running.items())]
        )

    def check_logs(self) -> None:
        """Check that no process has met a defect."""
        logs = self.logs()
        found = [defect for defect in _DEFECTS if defect in logs]
        assert not found, f"{found} in the logs:\n{logs}"

    async def status(self) -> ClusterStatus:
        """Return the cluster's status, as soon as the coordinator answers."""
        while True:
            try:
                return await fetch_status(*split_address(self.address), within=ANSWERS_WITHIN)
            except ConnectionLost:  # it died while it was asked
                continue

    async def checkpoint(self) -> Checkpointed | None:
        """Have a checkpoint taken; None if it was given up, or nobody knows."""
        try:
            reply, _ = await ask(
                *split_address(self.address),
                Checkpoint(),
                within=ANSWERS_WITHIN,
                answer_within=ANSWERS_WITHIN,
            )
        except (PSError, OSError):
            return None
        assert isinstance(reply, Checkpointed)
        return reply

    async def restore(self, checkpoint: int) -> None:
        """Have the cluster go back to a checkpoint, whether it does or dies of it."""
        with suppress(PSError, OSError):
            await ask(
                *split_address(self.address),
                Restore(str(self.place(0)), checkpoint, replace=True),
                within=ANSWERS_WITHIN,
                answer_within=ANSWERS_WITHIN,
            )

    async def all_there(self) -> None:
        """Return when all servers have joined."""
        while any(shard.state != "ready" for shard in (await self.status()).shards):
            pass

    def bases(self) -> dict[int, Base | None]:
        """Return from which checkpoint each timeline began, None for the first, as the servers say."""
        found: dict[int, Base | None] = {1: None}
        for number, before, timeline in _REPLACED.findall(self.logs()):
            found[int(timeline)] = Base(int(number), int(before)) if number else None
        return found

    async def killed(self, number: int) -> str:
        """As ``ended``, while the event loop goes on."""
        return await asyncio.to_thread(self.ended, number)


def free_addresses(count: int) -> list[str]:
    """Return addresses that are this process's own: nobody takes a port while a server is away."""
    pid = os.getpid()
    host = f"127.{64 + (pid >> 16) % 64}.{pid >> 8 & 255}.{pid & 255 or 1}"
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [join_address(*one.getsockname()) for one in sockets]
    finally:
        for one in sockets:
            one.close()
