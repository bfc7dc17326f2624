import json
from pathlib import Path

import pytest

from benchmarks.online import DRIFTING, Setting, Trial, problems, settings, table, trial_of
from benchmarks.online_detectors import DETECTORS
from benchmarks.online_streams import STREAMS, write

CHANGES = Setting(STREAMS[0], "adwin", "restart", 1)
GOOD = Trial(
    (DRIFTING + 48,), ((DRIFTING - 250, 0.7), (DRIFTING, 0.9), (DRIFTING + 500, 0.3), (20_000, 0.89))
)


def test_what_keeps_all_promises() -> None:
    assert problems([GOOD]) == []
    (row,) = table([(CHANGES, [[GOOD]])]).splitlines()[2:]
    assert row == "| SEA, reversed | adwin | restart | 1 | 20,000 | 1 | 0 | 1 | 48 | 90.0% | 89.0% |"


def test_several_runs_are_a_median_and_what_is_around_it() -> None:
    other = Trial((DRIFTING + 80,), ((DRIFTING, 0.8), (20_000, 0.91)))
    missed = Trial((5000,), ((DRIFTING, 0.9), (20_000, 0.4)))
    (row,) = table([(CHANGES, [[GOOD], [other], [missed]])]).splitlines()[2:]
    found = "3 | 1 | 2 | 64 (48 to 80) | 90.0% (80.0% to 90.0%) | 89.0% (40.0% to 91.0%) |"
    assert row == f"| SEA, reversed | adwin | restart | 1 | 20,000 | {found}"


@pytest.mark.parametrize(
    ("trial", "problem"),
    [
        (Trial((), GOOD.curve), "nobody has found the change"),
        (Trial((5000, DRIFTING + 48), GOOD.curve), "1 false alarms, at [5000]"),
        (
            Trial(GOOD.alarms, ((DRIFTING, 0.9), (20_000, 0.87))),
            "the accuracy was 90.0% and is 87.0%",
        ),
    ],
)
def test_promises_that_are_broken(trial: Trial, problem: str) -> None:
    assert problems([trial]) == [problem]


def test_what_a_log_tells() -> None:
    lines = [
        {"event": "stream.report", "examples": 256, "window": {"accuracy": 0.5}},
        {"event": "drift.detected", "examples": 300},
        {"event": "work.done"},
    ]
    assert trial_of("no JSON\n" + "\n".join(map(json.dumps, lines))) == Trial((300,), ((256, 0.5),))


def test_the_concept_changes_where_it_is_said_to(tmp_path: Path) -> None:
    assert write(tmp_path / "a.csv", STREAMS[0], (50, 50), 1) == 3
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    sums = [float(a) + float(b) for a, b, *_ in rows]
    right = [(total > -0.4) == (label == "1") for total, (*_, label) in zip(sums, rows, strict=True)]
    assert len(rows) == 100
    assert sum(right[:50]) > 35
    assert sum(right[50:]) < 15


def test_all_of_it_is_measured() -> None:
    assert {(one.stream, one.drift) for one in settings()} == {
        (stream, drift) for stream in STREAMS for drift in DETECTORS
    }
