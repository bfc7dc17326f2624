"""A real Prometheus that scrapes a cluster of a test, as the files in deploy/ tell it to."""

import json
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "prometheus"

_OFTEN = "500ms"


@dataclass(frozen=True)
class Sample:
    """One series at one moment."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """The configuration of deploy/ with other targets, at a quicker pace."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._address = ""
        self._log = directory / "log"

    def start(self) -> "subprocess.Popen[bytes]":
        command = (
            "prometheus",
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        )
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        """Return whether it answers, and from now on find it."""
        log = self._log.read_text()
        assert process.poll() is None, log
        found = re.search(r'msg="Listening on" address=(\S+)', log)
        self._address = found[1] if found else ""
        return bool(found) and "Server is ready" in log

    def query(self, expression: str) -> list[Sample]:
        """Return what an expression has as its value now."""
        found = self._get("query", query=expression)["result"]
        return [Sample(one["metric"], float(one["value"][1])) for one in found]

    def label_values(self, label: str, of: str) -> list[str]:
        """Return the values that a label of a metric has."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": of})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Return what is known of each alerting rule."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    @staticmethod
    def until(condition: Callable[[], object]) -> None:
        """Look, again and again, until the condition holds."""
        while not condition():
            time.sleep(0.05)  # what looks all the time keeps the cluster from its work


def write_configuration(directory: Path, **targets: Sequence[str]) -> None:
    """Write the configuration of deploy/ with these targets by the file that they are in."""
    shutil.copytree(CONFIGURATION, directory, dirs_exist_ok=True)
    configuration = directory / "prometheus.yml"
    configuration.write_text(re.sub(r"(_interval:) \w+", rf"\1 {_OFTEN}", configuration.read_text()))
    for name, addresses in targets.items():
        assert (directory / "targets" / f"{name}.yml").exists()
        (directory / "targets" / f"{name}.yml").write_text(json.dumps([{"targets": list(addresses)}]))


def fire_at_once(directory: Path, process: "subprocess.Popen[bytes]") -> None:
    """Have every alert fire as soon as its condition holds."""
    alerts = directory / "alerts.yml"
    alerts.write_text(re.sub(r"(\bfor:) \w+", r"\1 0s", alerts.read_text()))
    process.send_signal(signal.SIGHUP)


@contextmanager
def running(prometheus: Prometheus) -> Iterator["subprocess.Popen[bytes]"]:
    process = prometheus.start()
    try:
        prometheus.until(lambda: prometheus.is_ready(process))
        yield process
    finally:
        process.terminate()
        process.wait(60)


def promtool(*arguments: str, given: str = "") -> str:
    """Return what promtool says of files that are right, or of metrics that it is given."""
    done = subprocess.run(
        ["promtool", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=CONFIGURATION,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
