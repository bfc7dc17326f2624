"""A real Prometheus (Debian's package ``prometheus``) watches a cluster of real processes that trains."""

import math
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from protocol.addresses import split_address
from protocol.errors import NotFinite, UnknownTensor
from psctl import LocalCluster
from psctl.child import Child
from psworker.sync import SyncClient, connect
from tests.chapters import chapter
from tests.deploy.dashboard import DASHBOARD, metrics_in, queries
from tests.deploy.prometheus import (
    CONFIGURATION,
    Prometheus,
    fire_at_once,
    promtool,
    running,
    write_configuration,
)
from tests.integration.points import write_points
from tests.integration.scrape import Metrics, get

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="there is no Prometheus here: apt-get install prometheus",
    ),
    pytest.mark.xdist_group("prometheus"),  # or each process would start a cluster of its own
]

ENDLESS = ("train.epochs=1000000", "eval.every=never")
FLAGS = ("--heartbeat-interval", "200ms", "--dead-after", "10s", "--kernels", "numpy")
VALUES = {"__rate_interval": "5s", "server": ".*", "job": ".*"}


@dataclass(frozen=True)
class Watched:
    """A cluster that trains, and a Prometheus that scrapes it."""

    cluster: LocalCluster
    workers: tuple[str, ...]
    prometheus: Prometheus
    process: "subprocess.Popen[bytes]"
    directory: Path

    def pages(self) -> list[str]:
        """Return what each daemon shows."""
        return [get(address, "/metrics")[1] for address in (*self.cluster.metrics, *self.workers)]


def metrics_of(child: Child) -> str:
    """Return where a worker serves its metrics."""
    found = None
    while found is None:
        assert child.returncode is None, child.log_tail()
        found = re.search(r"ready metrics=(\S+)", child.log_tail(200))
    return found[1]


@contextmanager
def tables_are_trained(cluster: LocalCluster) -> Iterator[None]:
    """Have a second job, asynchronous and with a sparse table, be trained all the while."""
    stop = threading.Event()

    def push(client: SyncClient) -> None:
        rows = client.create_sparse("rows", dim=2)
        client.create("w", np.zeros(4, np.float32))
        number = 0
        while not stop.wait(0.02):
            keys = np.arange(number, number + 8, dtype=np.uint64)
            rows.push(keys, np.ones((8, 2), np.float32))
            client.push_pull({"w": np.ones(4, np.float32)})
            number += 8

    with connect(cluster.address, job="tables") as client:
        pushing = threading.Thread(target=push, args=(client,))
        pushing.start()
        try:
            yield
        finally:
            stop.set()
            pushing.join()


def make_trouble(cluster: LocalCluster) -> None:
    """Ask for what is not there, and send what is no frame."""
    with connect(cluster.address, job="tables", observe=True) as client, pytest.raises(UnknownTensor):
        client.pull("nothing")
    with socket.create_connection(split_address(cluster.address)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(1) == b""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("prometheus")
    cluster = LocalCluster(
        servers=2,
        workers=2,
        job=write_points(directory),
        overrides=ENDLESS,
        checkpoint_dir=directory / "state",
        durability="log",
        checkpoint_every="1s",
        server_flags=FLAGS,
        grace=0.0,  # nobody looks at it afterwards
    )
    with ExitStack() as stack:
        stack.enter_context(cluster)
        workers = tuple(metrics_of(worker) for worker in cluster.workers)
        write_configuration(directory / "etc", psserver=cluster.metrics, psworker=workers)
        prometheus = Prometheus(directory / "etc")
        process = stack.enter_context(running(prometheus))
        targets = len(cluster.metrics) + len(workers)
        prometheus.until(lambda: len(prometheus.query("up == 1")) == targets)
        with tables_are_trained(cluster):
            make_trouble(cluster)
            yield Watched(cluster, workers, prometheus, process, directory / "etc")


def test_the_files_are_what_prometheus_expects() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_metrics_are_as_prometheus_would_have_them(watched: Watched) -> None:
    for page in watched.pages():
        assert promtool("check", "metrics", given=page) == ""


def test_every_panel_has_data(watched: Watched) -> None:
    for query in queries():
        watched.prometheus.until(partial(has_data, watched.prometheus, query.with_values(**VALUES)))


def has_data(prometheus: Prometheus, expression: str) -> bool:
    return any(math.isfinite(sample.value) for sample in prometheus.query(expression))


def test_variables_have_values_and_a_job_is_the_one_that_is_trained(watched: Watched) -> None:
    expected = {"server": sorted(watched.cluster.metrics), "job": ["points", "tables"]}
    for variable in DASHBOARD["templating"]["list"][1:]:
        query = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert query is not None
        metric, label = query.groups()
        values = partial(watched.prometheus.label_values, label, of=metric)
        watched.prometheus.until(partial(are, values, expected.pop(variable["name"])))
    assert expected == {}


def are(values: Callable[[], list[str]], expected: list[str]) -> bool:
    return values() == expected


def test_every_metric_of_dashboard_and_alerts_is_one_that_daemons_have(watched: Watched) -> None:
    known: set[str] = set()
    for page in watched.pages():
        known |= set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    samples = {name + ending for name in known for ending in ("", "_bucket", "_sum", "_count")}
    asked = " ".join(query.expression for query in queries())
    asked += (CONFIGURATION / "alerts.yml").read_text()
    asked += (CONFIGURATION / "alerts_test.yml").read_text()
    assert metrics_in(asked) <= samples


def test_the_operators_are_told_of_every_metric(watched: Watched) -> None:
    exposed = set(re.findall(r"^# TYPE (ps\w+)", "\n".join(watched.pages()), re.MULTILINE))
    exposed = {name for name in exposed if not name.endswith("_created")}
    exposed.add("psworker_prequential")  # of a stream, from which nobody learns here
    assert exposed == metrics_in(chapter("operations.md", "Watching"))


def test_a_cluster_that_is_well_alerts_nobody(watched: Watched) -> None:
    def all_looked_at() -> bool:
        return all(rule["health"] == "ok" for rule in watched.prometheus.rules())

    watched.prometheus.until(all_looked_at)
    states = {rule["name"]: rule["state"] for rule in watched.prometheus.rules()}
    del states["AsyncpsDiskNearlyFull"]  # may well be so where this runs
    assert "firing" not in states.values()


# --- the last of these tests: the cluster is another one after them


def test_a_gradient_that_is_not_finite_is_alerted(watched: Watched) -> None:
    with connect(watched.cluster.address, job="tables", name="diverges") as client, pytest.raises(NotFinite):
        client.push({"w": np.full(4, np.nan, np.float32)})
    (alert,) = firing(watched, "AsyncpsLossNotFinite")
    assert Metrics(alert["instance"]).value("psserver_not_finite_total") == 1


def test_who_is_killed_is_missed(watched: Watched) -> None:
    cluster, prometheus = watched.cluster, watched.prometheus
    prometheus.until(lambda: prometheus.query('psserver_worker_deaths_total{job="points"} == 0'))
    fire_at_once(watched.directory, watched.process)
    cluster.workers[1].kill()
    (lost,) = firing(watched, "AsyncpsWorkerLost")
    assert lost["job"] == "points"
    assert Metrics(cluster.metrics[0]).value("psserver_workers", state="dead") == 1

    cluster.kill_server(1)
    (down,) = firing(watched, "AsyncpsShardDown")
    assert down["instance"] == cluster.metrics[0]
    (silent,) = firing(watched, "AsyncpsServerUnreachable")
    assert silent["instance"] == cluster.metrics[1]
    cluster.restart_server(1)
    prometheus.until(lambda: not alerts(watched, "AsyncpsShardDown"))


def firing(watched: Watched, name: str) -> list[dict[str, str]]:
    """Return the labels of an alert, as soon as it fires."""
    watched.prometheus.until(partial(alerts, watched, name))
    return alerts(watched, name)


def alerts(watched: Watched, name: str) -> list[dict[str, str]]:
    found = watched.prometheus.query(f'ALERTS{{alertstate="firing", alertname="{name}"}}')
    return [sample.labels for sample in found]
