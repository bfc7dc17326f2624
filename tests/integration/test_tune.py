"""psctl tune with real servers and workers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.daemon.exit_codes import ExitCode
from tests.integration.points import write_points

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

TUNE = (sys.executable, "-m", "psctl", "tune", "--workers", "1")


def tuned(job: Path, *arguments: str) -> dict[str, object]:
    """Return what a search finds."""
    command = (*TUNE, "--job", str(job), "--format", "json", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_halving_finds_a_rate_with_which_points_are_learned(tmp_path: Path) -> None:
    job, best = write_points(tmp_path), tmp_path / "best.toml"
    found = tuned(
        job, "--measure", "accuracy", "--try", "optimizer.lr=1e-4..1:log",
        "--search", "halving", "--trials", "6", "--parallel", "2",
        "--set", "train.epochs=9", "--output", str(best),
    )  # fmt: skip
    trials = found["trials"]
    assert isinstance(trials, list)
    assert sorted(trial["settings"]["train.epochs"] for trial in trials) == [3, 3, 3, 3, 3, 3, 9, 9]
    values = [trial["value"] for trial in trials]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 0.2 > 0.2
    command = (
        sys.executable,
        "-m",
        "psctl",
        "train",
        "--job",
        str(best),
        "--workers",
        "1",
        "--format",
        "json",
    )
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["metrics"]["accuracy"] == values[0], "one worker: the same to the digit"


def test_folds_are_trained_apart_and_what_diverges_is_the_last(tmp_path: Path) -> None:
    found = tuned(
        write_points(tmp_path), "--try", "optimizer.lr=100,0.05", "--set", "train.epochs=4", "--folds", "3",
        "--search", "grid", "--set", "model.kind=linear", "--set", "data.classes=[]",
    )  # fmt: skip
    trials = found["trials"]
    assert isinstance(trials, list)
    assert [trial["settings"]["optimizer.lr"] for trial in trials] == [0.05, 100]
    assert len(set(trials[0]["folds"])) > 1, "other rows, other figures"
    assert trials[0]["deviation"] > 0
    assert trials[1]["value"] is None
    assert len(trials[1]["folds"]) == 1, "one is enough"


def test_an_interrupt_leaves_the_trials_that_are_over_and_no_process(tmp_path: Path) -> None:
    command = (*TUNE, "--job", str(write_points(tmp_path)), "--try", "train.epochs=1,1000000")
    with subprocess.Popen((*command, "--search", "grid"), stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        assert search.stdout.readline().startswith("trial 1/2: train.epochs=1: loss")
        os.kill(search.pid, signal.SIGINT)
        out = search.stdout.read()  # ends when no process has it open
        assert search.wait() == ExitCode.INTERRUPTED
    assert "best" in out
    assert "--set train.epochs=1\n" in out
    assert str(tmp_path) not in subprocess.run(
        ("ps", "-eo", "args"), capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
