"""Pods of the manifests as processes of this machine: what the kubelet starts, stops and asks.

with Pods(manifests, directory) as pods:
    pods.delete(1)
    pods.until_ready(1)
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from protocol.addresses import split_address
from tests.deploy.manifests import Manifests, Object, environment, expand
from tests.faults.restarts import free_addresses
from tests.integration.daemons import Daemon

NAMESPACE: Final = "asyncps"
LOOK_EVERY: Final = 0.05  # seconds
# What a pod has of its own, and a process of this machine shares. On loopback nothing is asked for a token.
_ELSEWHERE: Final = (
    "--host",
    "--checkpoint-dir",
    "--metrics-host",
    "--metrics-port",
    "--token-file",
    "--job",
)


class Pods:
    """The StatefulSet's pods, all started at once as `podManagementPolicy: Parallel` says."""

    def __init__(self, manifests: Manifests, directory: Path) -> None:
        self._set = manifests.of("StatefulSet")["psserver"]["spec"]
        self._job = manifests.of("Job")["psworker"]["spec"]
        self._scripts = manifests.of("ConfigMap")
        self._directory = directory
        self._addresses = free_addresses(self._set["replicas"])
        self._running: dict[int, Daemon] = {}
        self._logs: list[str] = []
        self._workers: list[Daemon] = []

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def address(self) -> str:
        """The coordinator's."""
        return self._addresses[0]

    def __enter__(self) -> Self:
        binaries = self._directory / "bin"
        binaries.mkdir()
        for name in ("psserver", "psworker"):
            (binaries / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {name} "$@"\n')
            (binaries / name).chmod(0o755)
        for number in range(len(self)):
            self._create(number)
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in (*self._running.values(), *self._workers):
            daemon.process.kill()
            daemon.log()
            assert daemon.process.stderr is not None
            daemon.process.stderr.close()

    # --- servers

    def delete(self, number: int) -> None:
        """Stop a pod as the kubelet does, within its grace period; start its successor with its volume."""
        daemon = self._running.pop(number)
        daemon.process.terminate()
        code = daemon.process.wait(self._set["template"]["spec"]["terminationGracePeriodSeconds"])
        self._logs.append(daemon.log())
        assert daemon.process.stderr is not None
        daemon.process.stderr.close()
        assert code == 128 + signal.SIGTERM, self._logs[-1]
        self._create(number)

    def until_ready(self, number: int) -> None:
        """Ask the readiness probe until it is content."""
        while not self.is_ready(number):
            assert self._running[number].process.poll() is None, self._running[number].log()
            time.sleep(LOOK_EVERY)

    def is_ready(self, number: int) -> bool:
        """Ask the readiness probe."""
        if not self._ready_file(number).exists():
            return False
        metrics = json.loads(self._ready_file(number).read_text())["metrics"]
        (container,) = self._set["template"]["spec"]["containers"]
        try:
            urllib.request.urlopen(
                f"http://{metrics}{container['readinessProbe']['httpGet']['path']}"
            ).close()
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True

    def _ready_file(self, number: int) -> Path:
        return self._directory / f"ready-{number}.json"

    def _create(self, number: int) -> None:
        pod = self._set["template"]["spec"]
        (container,) = pod["containers"]
        environ = environment(container, f"psserver-{number}", NAMESPACE)
        environ |= {"COORDINATOR": self.address, "ADDRESS": self._addresses[number]}
        host, port = split_address(self._addresses[number])
        volume = self._directory / f"volume-{number}"
        volume.mkdir(exist_ok=True)
        self._ready_file(number).unlink(missing_ok=True)
        own = (
            f"--host={host}",
            f"--port={port}",
            "--metrics-port=0",
            f"--checkpoint-dir={volume}",
            f"--ready-file={self._ready_file(number)}",
        )
        self._running[number] = self._start(container, environ, own, "script")

    # --- workers

    def add_workers(self, job: Path) -> list[Daemon]:
        """Start as many workers as the Job says; those that fail are not started again here."""
        (container,) = self._job["template"]["spec"]["containers"]
        environ = environment(container, "psworker-0-abcde", NAMESPACE)
        own = (f"--server={self.address}", f"--job={job}", "--metrics-port=0")
        self._workers = [self._start(container, environ, own, None) for _ in range(self._job["parallelism"])]
        return self._workers

    def _start(
        self, container: Object, environ: dict[str, str], own: Sequence[str], script: str | None
    ) -> Daemon:
        arguments = [
            expand(argument, environ) for argument in container["args"] if not argument.startswith(_ELSEWHERE)
        ]
        command = list(container["command"])
        if script is not None:
            command[-1] = self._script(command[-1])
        process = subprocess.Popen(
            [*command, *arguments, *own],
            env={**os.environ, **environ, "PATH": f"{self._directory}/bin:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return Daemon(process)

    def _script(self, path: str) -> str:
        name = Path(path).name
        (data,) = [one["data"] for one in self._scripts.values() if name in one["data"]]
        script = self._directory / name
        script.write_text(data[name])
        return str(script)

    def logs(self) -> str:
        """Return what all servers have logged."""
        return "\n".join([*self._logs, *(daemon.log_so_far() for daemon in self._running.values())])
