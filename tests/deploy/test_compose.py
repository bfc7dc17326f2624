"""The Compose file is what Compose takes, and starts our programs as they want to be started."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from psserver import cli as psserver
from psworker import cli as psworker
from psworker.job import load_job
from tests.deploy.manifests import ROOT, program

DEPLOY = ROOT / "deploy"
OURS = ("server-0", "server-1", "worker")

Service = dict[str, Any]

pytestmark = pytest.mark.skipif(
    program("docker-compose") is None, reason="no docker-compose here: the extra [deploy] brings it"
)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """Return what Compose makes of the file; it needs no engine for that."""
    command = [
        program("docker-compose") or "",
        "-f",
        str(DEPLOY / "compose.yaml"),
        "config",
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "no warnings"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def services(composed: dict[str, Any]) -> dict[str, Service]:
    found: dict[str, Service] = composed["services"]
    return found


def flags_of(service: Service) -> list[str]:
    command = service["command"]
    return (shlex.split(command) if isinstance(command, str) else command)[1:]


def test_two_servers_three_workers_and_what_watches_them(services: dict[str, Service]) -> None:
    assert services.keys() == {*OURS, "prometheus", "grafana"}
    assert services["worker"]["deploy"]["replicas"] == 3


def test_the_servers_flags(services: dict[str, Service]) -> None:
    first, second = (psserver._parser().parse_args(flags_of(services[f"server-{n}"])) for n in (0, 1))
    assert (first.shards, first.join) == (2, None)
    assert (second.join, second.shard, second.advertise) == (("server-0", 7070), 1, ("server-1", 7070))
    for options in (first, second):
        assert options.durability == "log"
        assert options.token_file == "/run/secrets/server-tokens"
        assert not options.insecure


def test_the_workers_flags(services: dict[str, Service]) -> None:
    worker = services["worker"]
    options = psworker._parser().parse_args(flags_of(worker))
    assert options.server == ("server-0", 7070)
    assert options.token_file == "/run/secrets/worker-token"
    assert options.metrics_host == "0.0.0.0"
    assert options.name is None
    assert [config["target"] for config in worker["configs"]] == [str(options.job)]


def test_the_job_is_one_of_as_many_workers(composed: dict[str, Any]) -> None:
    job = load_job(Path(composed["configs"]["job"]["file"]), [])
    assert job.train.workers == composed["services"]["worker"]["deploy"]["replicas"]


def test_containers_may_do_little(services: dict[str, Service]) -> None:
    for name in OURS:
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["stop_grace_period"] in ("40s", "40000000000")
        assert "privileged" not in service


def test_a_worker_is_not_given_what_an_operator_has(composed: dict[str, Any]) -> None:
    services = composed["services"]
    given = {name: [secret["source"] for secret in services[name]["secrets"]] for name in OURS}
    assert given == {"server-0": ["server-tokens"], "server-1": ["server-tokens"], "worker": ["worker-token"]}
    assert composed["secrets"].keys() == {"server-tokens", "worker-token"}


def test_nothing_is_open_to_other_machines(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name


def test_what_is_mounted_is_there(services: dict[str, Service]) -> None:
    for name in ("prometheus", "grafana"):
        sources = [Path(one["source"]) for one in services[name]["volumes"] if one["type"] == "bind"]
        assert sources
        assert [source for source in sources if not source.exists()] == []


def test_prometheus_finds_all(composed: dict[str, Any]) -> None:
    services, project = composed["services"], composed["name"]
    said = {
        target
        for file in (DEPLOY / "docker" / "targets").iterdir()
        for group in yaml.safe_load(file.read_text())
        for target in group["targets"]
    }
    workers = range(1, services["worker"]["deploy"]["replicas"] + 1)
    servers = {f"{name}:9464" for name in services if name.startswith("server-")}
    assert said == servers | {f"{project}-worker-{number}:9465" for number in workers}
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    files = {
        name
        for job in config["scrape_configs"]
        for found in job["file_sd_configs"]
        for name in found["files"]
    }
    assert files == {f"targets/{file.name}" for file in (DEPLOY / "docker" / "targets").iterdir()}


def test_images_of_others_have_a_version(services: dict[str, Service]) -> None:
    for service in services.values():
        _, colon, tag = service["image"].rpartition(":")
        assert colon
        assert tag != "latest"
