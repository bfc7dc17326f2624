"""The examples of docs/python.md work as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCUMENT, re.DOTALL))


def printed_by(example: str, directory: Path) -> str:
    """Run an example as a script and return what it prints."""
    (directory / example).write_text(EXAMPLES[example])
    done = subprocess.run(
        [sys.executable, example], cwd=directory, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_clients(tmp_path: Path) -> None:
    assert printed_by("blocking.py", tmp_path) == "[0.94 1.88 2.81]\n"


@pytest.mark.long
def test_the_asyncio_client(tmp_path: Path) -> None:
    assert printed_by("awaiting.py", tmp_path) == "[1.5]\n[1.5]\n"


@pytest.mark.long
def test_the_estimators(tmp_path: Path) -> None:
    assert float(printed_by("digits.py", tmp_path).removeprefix("accuracy ")) > 0.93


@pytest.mark.long
def test_ratings(tmp_path: Path) -> None:
    assert float(printed_by("ratings.py", tmp_path).partition(",")[0].removeprefix("R2 ")) > 0.9


@pytest.mark.long
def test_a_data_frame_in_a_search(tmp_path: Path) -> None:
    found = re.fullmatch(
        r"\{'regressor__settings': \{'l2': 0.0\}\} \{'rooms': .*?(\d+)\.0.*, 'area': .*?(\d+)\.0.*\}\n",
        printed_by("houses.py", tmp_path),
    )
    assert found is not None
    rooms, area = map(float, found.groups())  # of columns that are scaled to a deviation of 1
    assert rooms == pytest.approx(30 * 2.3, abs=10)
    assert area == pytest.approx(4 * 81, abs=20)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_torch_network(tmp_path: Path) -> None:
    assert float(printed_by("train.py", tmp_path).removeprefix("accuracy ")) > 0.88
    assert (tmp_path / "network.pt").stat().st_size > 1000


def test_each_example_is_run_here() -> None:
    assert len(re.findall("```python", DOCUMENT)) == len(EXAMPLES) == 6
