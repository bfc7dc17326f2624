import json
from pathlib import Path

import pytest

from benchmarks.online import DRIFTING, Setting, Trial, problems, settings, table, trial_of
from benchmarks.online_streams import STREAMS, write

CHANGES = Setting(STREAMS[0], "adwin", "restart", 1, True)
QUIET = Setting(STREAMS[0], "adwin", "report", 1, False)
GOOD = Trial(
    (DRIFTING + 48,), ((DRIFTING - 250, 0.7), (DRIFTING, 0.9), (DRIFTING + 500, 0.3), (20_000, 0.89))
)


def test_what_keeps_all_promises() -> None:
    assert problems(CHANGES, [GOOD]) == []
    assert problems(QUIET, [Trial((), GOOD.curve)]) == []
    (row,) = table([(CHANGES, [GOOD])]).splitlines()[2:]
    assert row == "| SEA, reversed | adwin | restart | 1 | 20,000 | 0 | 48 | 90.0% | 89.0% |"


@pytest.mark.parametrize(
    ("setting", "trial", "problem"),
    [
        (CHANGES, Trial((), GOOD.curve), "nobody has found the change"),
        (CHANGES, Trial((5000, DRIFTING + 48), GOOD.curve), "1 false alarms, at [5000]"),
        (
            CHANGES,
            Trial(GOOD.alarms, ((DRIFTING, 0.9), (20_000, 0.87))),
            "the accuracy was 90.0% and is 87.0%",
        ),
        (QUIET, Trial((99_000,), GOOD.curve), "1 false alarms, at [99000]"),
    ],
)
def test_promises_that_are_broken(setting: Setting, trial: Trial, problem: str) -> None:
    assert problems(setting, [trial]) == [problem]


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
    assert {one.stream for one in settings() if one.changes} == set(STREAMS)
    assert {one.drift for one in settings() if not one.changes} == {"adwin", "page-hinkley"}
