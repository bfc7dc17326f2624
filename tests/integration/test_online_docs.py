"""The example of docs/online.md works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import reserved_port

DOCUMENT = (Path(__file__).parents[2] / "docs" / "online.md").read_text()

# A shell that finds the programs of this environment, and what has been started in it ended with it.
SHELL = """
set -eu
trap 'kill $(jobs -p); wait' EXIT
python() { "$PYTHON" "$@"; }
psserver() { exec "$PYTHON" -m psserver "$@"; }  # in the background, so as the process that is killed
psworker() { python -m psworker "$@"; }
psctl() { python -m psctl "$@"; }
"""


@pytest.mark.long
def test_a_stream_whose_concept_changes(tmp_path: Path) -> None:
    example = re.findall(r"```\n(psserver &.*?)```", DOCUMENT, re.DOTALL)[0]
    with reserved_port() as port:
        address = f"127.0.0.1:{port}"
        settings = {
            "PYTHON": sys.executable, "PSSERVER_PORT": str(port), "PSSERVER_METRICS_PORT": "0",
            "PSWORKER_SERVER": address, "PSWORKER_METRICS_PORT": "0", "PSCTL_SERVER": address,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", SHELL + example],
            cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, timeout=110,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (drift,) = [line for line in done.stderr.splitlines() if "event=drift.detected" in line]
    examples = int(re.findall(r"after (\d+) examples", drift)[0])
    assert 10_000 < examples < 10_500
    assert "event=stream.report" in done.stderr
    left, right = (line.split() for line in done.stdout.splitlines())
    assert [left[0], right[0]] == ["0", "1"]  # as it is since the change
    assert float(left[1]) > 0.5 > float(right[1])
