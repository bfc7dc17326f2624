"""The Kubernetes manifests as `kubectl` renders them, and what is looked at in them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"

Object = dict[str, Any]

WORKLOADS = ("StatefulSet", "Deployment", "Job")


def program(name: str) -> str | None:
    """Return a program that came with a package of this environment, or that the system has."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


@cache
def render(directory: Path) -> "Manifests":
    """Return what `kubectl apply -k` would send."""
    kubectl = program("kubectl")
    assert kubectl is not None
    done = subprocess.run(
        [kubectl, "kustomize", str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return Manifests(tuple(yaml.safe_load_all(done.stdout)))


@dataclass(frozen=True, slots=True)
class Manifests:
    """The objects of one overlay."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> dict[str, Object]:
        """Return those of a kind, by name."""
        return {one["metadata"]["name"]: one for one in self.objects if one["kind"] == kind}

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield the name and the pod template of everything that runs."""
        for one in self.objects:
            if one["kind"] in WORKLOADS:
                yield one["metadata"]["name"], one["spec"]["template"]

    def containers(self) -> Iterator[tuple[str, Object, Object]]:
        """Yield the workload's name, the pod template and the container of each container."""
        for name, pod in self.pods():
            for container in pod["spec"]["containers"]:
                yield name, pod, container


def is_selected(labels: dict[str, str], selector: Object) -> bool:
    """Return whether a selector with `matchLabels` and `matchExpressions` (In) selects labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def environment(container: Object, pod: str, namespace: str) -> dict[str, str]:
    """Return a container's environment as the kubelet would make it for a pod of that name."""
    fields = {"metadata.name": pod, "metadata.namespace": namespace}
    known: dict[str, str] = {}
    for entry in container.get("env", []):
        if "value" in entry:
            known[entry["name"]] = expand(entry["value"], known)
        else:
            known[entry["name"]] = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
    return known


def expand(text: str, environ: dict[str, str]) -> str:
    """Put in the variables that are known, as the kubelet does; the others stay as they are."""
    return re.sub(r"\$\((\w+)\)", lambda found: environ.get(found[1], found[0]), text)
