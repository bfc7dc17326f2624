"""The README is true: its files, commands and examples work as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.messages import Pull, Pulled, encode_reply, encode_request
from protocol.tensors import Part
from psctl import LocalCluster

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """Return the one code block of the README that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [one for one in blocks if containing in one]
    return str(found)


def python(code: str, directory: Path) -> str:
    """Run an example in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    python(block("python", "# make_data.py"), tmp_path)
    (tmp_path / "job.toml").write_text(block("toml", "# job.toml"))
    (tmp_path / "mymodels.py").write_text(block("python", "class Huber"))
    return tmp_path


@pytest.mark.parametrize("changes", [[], ["model.kind=mymodels:Huber", "model.delta=0.5"]])
def test_the_first_job_and_the_own_model(houses: Path, changes: list[str]) -> None:
    flags = [flag for change in changes for flag in ("--set", change)]
    command = ["--servers", "2", "--workers", "3", "--job", "job.toml", "--format", "json", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "psctl", "train", *command],
        cwd=houses, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["job"] == "houses"
    assert result["loss"] < 0.02  # the noise's variance is 0.01


def test_the_first_job_is_short() -> None:
    settings = [line for line in block("toml", "# job.toml").splitlines() if "=" in line]
    assert len(settings) < 20


def test_the_asyncio_example(tmp_path: Path) -> None:
    with LocalCluster(servers=1) as cluster:
        code = block("python", "asyncio.run(main())").replace("127.0.0.1:7070", cluster.address)
        assert python(code, tmp_path) == "-0.2\n"


def test_the_example_with_its_own_cluster(tmp_path: Path) -> None:
    assert python(block("python", "1_000_000"), tmp_path) == "[-0.01 -0.01 -0.01 ... -0.01 -0.01 -0.01]\n"


def test_the_sparse_example(tmp_path: Path) -> None:
    assert float(python(block("python", "create_sparse"), tmp_path)) == pytest.approx(0.15, abs=0.01)


def test_each_example_is_run_here() -> None:
    assert len(re.findall("```python", README)) == 5
    assert len(re.findall("```toml", README)) == 1


def test_the_commands_of_the_makefile_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_worked_example_of_the_protocol_is_what_is_sent() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    request = encode_request(7, Pull(("w",)))
    reply = encode_reply(7, Pulled(2, (Part("w", "float32", 2),)))
    for header in (request, reply):
        assert f"H = {len(header)}," in text
        assert f"01 00  00 00  {len(header):02x} 00 00 00" in text


def files_in(directory: str) -> list[Path]:
    return [path for path in ROOT.glob(f"{directory}/**/*") if path.is_file()]


def test_no_path_of_a_machine_is_in_the_documents() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *files_in("deploy")):
        assert not re.search(r"/(?:work|tmp|home|root)/", document.read_text()), document
        assert os.fspath(ROOT) not in document.read_text()
