"""The image: its file is sound, and what it runs, runs; no engine is needed for that."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.manifests import ROOT, program
from tests.integration.daemons import daemons

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
LINES = [line for line in re.sub(r"\\\n\s*", " ", TEXT).splitlines() if line and not line.startswith("#")]
ENVIRONMENT = "/opt/asyncps"  # where the image has it
EXTRAS = dict(re.findall(r"^ARG (\w+)=(.*)", TEXT, re.MULTILINE))["EXTRAS"]


def instructions(name: str) -> list[str]:
    """Return the arguments of all instructions of that name."""
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(f"{name} ")]


def test_the_linter_finds_nothing() -> None:
    hadolint = program("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here: the extra [deploy] brings it")
    done = subprocess.run(
        [hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_not_roots_and_has_a_health_check() -> None:
    assert len(instructions("FROM")) == 2
    final = TEXT[TEXT.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE), "a number: Kubernetes knows no names"
    assert "HEALTHCHECK" in final
    assert "pip" not in final
    assert "--only-binary=:all:" in TEXT, "nothing is compiled"
    assert not re.search(r"apt|apk|gcc|build-essential", TEXT)


def test_all_that_is_copied_is_there_and_nothing_else_is_sent() -> None:
    copied = {
        source
        for line in instructions("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert set(packages["wheel"]["packages"]) <= copied


def test_each_package_in_it_is_pinned() -> None:
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    waiting, needed = [("asyncps", frozenset(EXTRAS.split(",")))], set()
    while waiting:
        name, extras = waiting.pop()
        try:
            required = requires(name) or []
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed here; the extra [dev] brings all that the image has")
        for requirement in map(Requirement, required):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            found = canonicalize_name(requirement.name), frozenset(requirement.extras)
            if found not in needed:
                needed.add(found)
                waiting.append(found)
    assert {name for name, _ in needed} - {"asyncps"} <= pinned


def health_check(port: str) -> list[str]:
    """Return the image's own command, for this interpreter and another port."""
    (check,) = instructions("HEALTHCHECK")
    program, *words = re.findall(r'"([^"]*)"', check.partition("CMD ")[2])
    assert program == "python"
    return [sys.executable, *(word.replace(":9464/", f":{port}/") for word in words)]


def test_the_health_check_tells_a_server_from_none() -> None:
    with daemons() as start:
        server = start.server()
        port = server.addresses()["metrics"].rpartition(":")[2]
        assert (
            subprocess.run(health_check(port), capture_output=True, check=False, timeout=30).returncode == 0
        )
        server.process.terminate()
        server.exit_code()
        assert (
            subprocess.run(health_check(port), capture_output=True, check=False, timeout=30).returncode == 1
        )


def test_without_a_token_it_serves_nobody() -> None:
    """`docker run` without anything must not open a server to the network."""
    (command,) = instructions("CMD")[-1:]
    program, *flags = re.findall(r'"([^"]*)"', command)
    with daemons() as start:
        server = start(program, *flags, "--port", "0", "--metrics-port", "0")
        assert server.exit_code() == 2
        assert "--token-file" in server.log()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_commands_that_build_it_make_an_environment_that_trains(tmp_path: Path) -> None:
    """What the image's first stage does, in a directory, and then a cluster out of it; takes a registry."""
    context, place = tmp_path / "context", tmp_path / "opt"
    context.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            if source.is_dir():
                shutil.copytree(source, context / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, context)
    (build,) = [run for run in instructions("RUN") if "pip" in run]
    script = build.replace(ENVIRONMENT, str(place)).replace("python -m", f"{shlex.quote(sys.executable)} -m")
    environ = {**os.environ, "EXTRAS": "digits"}
    done = subprocess.run(["sh", "-ec", script], cwd=context, env=environ, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()

    bare = {"PATH": f"{place}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    for command in ("psserver", "psworker", "psctl"):
        found = subprocess.run(
            [f"{place}/bin/{command}", "--version"], env=bare, cwd=tmp_path, capture_output=True, check=True
        )
        assert found.stdout.startswith(command.encode())
    assert not (place / "bin" / "pip").exists()
    train = [f"{place}/bin/psctl", "train", "--set", "train.epochs=1", "--servers", "2", "--workers", "3"]
    done = subprocess.run(train, env=bare, cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
