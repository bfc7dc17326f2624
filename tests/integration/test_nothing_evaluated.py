"""Nothing that arrives is unpickled or evaluated: no code of this project is able to."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import protocol
import psctl
import psserver
import psworker
from protocol.daemon.logs import Speaker
from psworker.daemon import WorkerSettings, work
from psworker.errors import JobError
from psworker.job import job_to_json, load_job
from psworker.metrics import WorkerMetrics
from tests.integration.points import write_points

PACKAGES = (protocol, psserver, psworker, psctl)

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "code",
    "jsonpickle",
}
"""Whoever loads what these wrote runs what it says."""

BUILT_IN = {"eval", "exec", "compile", "__import__"}
YAML = {"load", "load_all", "full_load", "unsafe_load"}
LOADS_BY_NAME = {"psworker/models/load.py", "psctl/cli.py"}
"""Import a module that a worker's own job file names, see below; and the one of a command, from a list."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        (root,) = package.__path__
        for file in sorted(Path(root).rglob("*.py")):
            name = f"{package.__name__}/{file.relative_to(root).as_posix()}"
            yield name, ast.parse(file.read_text())


def dangers(tree: ast.Module) -> Iterator[str]:
    """Yield what of a module could run or unpickle something, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names if alias.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                inner = [alias.name for alias in names]
                found = [module] if module.split(".")[0] in MODULES else []
                found += [name for name in inner if name in MODULES | {"import_module"}]
            case ast.Call(func=ast.Name(id=name)):
                found = [name] if name in BUILT_IN else []
            case ast.Call(func=ast.Attribute(value=ast.Name(id=of), attr=name), keywords=keywords):
                found = [f"yaml.{name}"] if of == "yaml" and name in YAML else []
                found += (
                    [f"{of}.{name}"]
                    if (of, name) in {("importlib", "import_module"), ("np", "fromfile")}
                    else []
                )
                found += [f"{of}.{name}"] if of in {"builtins", "runpy"} else []
                found += ["allow_pickle" for keyword in keywords if _allows_pickle(keyword)]
                found += [
                    f"{of}.{name}" for _ in [0] if (of, name) == ("np", "load") and not _refuses(keywords)
                ]
            case _:
                continue
        yield from (f"{name}, line {node.lineno}" for name in found)


def _allows_pickle(keyword: ast.keyword) -> bool:
    return keyword.arg == "allow_pickle" and not _is_false(keyword)


def _refuses(keywords: list[ast.keyword]) -> bool:
    return any(keyword.arg == "allow_pickle" and _is_false(keyword) for keyword in keywords)


def _is_false(keyword: ast.keyword) -> bool:
    return isinstance(keyword.value, ast.Constant) and keyword.value.value is False


def test_no_module_can_unpickle_or_evaluate_anything() -> None:
    seen = dict(sources())
    assert len(seen) > 100
    found = {name: list(dangers(tree)) for name, tree in seen.items()}
    by_name = {name for name, what in found.items() if any("import_module" in one for one in what)}
    assert by_name == LOADS_BY_NAME
    for name in LOADS_BY_NAME:
        found[name] = [one for one in found[name] if "import_module" not in one]
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "from multiprocessing import shelve",
        "eval('1')",
        "exec(text)",
        "__import__(name)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.save(file, array, allow_pickle=allowed)",
        "yaml.load(text)",
        "importlib.import_module(name)",
        "from importlib import import_module",
        "builtins.eval(text)",
        "runpy.run_path(file)",
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["np.load(file, allow_pickle=False)", "re.compile(text)", "json.load(file)", "yaml.safe_load(text)"],
)
def test_the_search_finds_nothing_else(code: str) -> None:
    assert not list(dangers(ast.parse(code)))


# --- models of one's own


async def test_a_class_that_the_cluster_names_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker without a job file takes the cluster's job: but not what code there is to run."""
    (tmp_path / "theirs.py").write_text("raise SystemExit('this was run')\n")
    monkeypatch.chdir(tmp_path)
    document = json.loads(job_to_json(load_job(None, ())))
    document["model"] = {"kind": "theirs:Model"}

    async def fetch_plan(*_: object, **__: object) -> object:
        return type("Plan", (), {"text": json.dumps(document)})

    monkeypatch.setattr("psworker.daemon.fetch_plan", fetch_plan)
    with pytest.raises(JobError, match="job file") as caught:
        await work(WorkerSettings("127.0.0.1:1", None, None, 0.0), WorkerMetrics(), Speaker())
    assert "theirs:Model" in str(caught.value)


async def test_the_same_class_is_loaded_from_a_job_file_of_the_worker_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ours_alone.py").write_text("raise RuntimeError('this was run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    job = load_job(write_points(tmp_path), ("model.kind=ours_alone:Model",))
    with pytest.raises(JobError, match="this was run"):
        await work(WorkerSettings("127.0.0.1:1", job, None, 0.0), WorkerMetrics(), Speaker())
