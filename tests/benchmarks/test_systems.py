import math
import os

import pytest

from benchmarks.isolated import SystemFailed, isolated
from benchmarks.rounds import Settings, points_of, run
from benchmarks.systems.interface import Operation
from benchmarks.systems.registry import CEILING, ENTRIES, Entry
from tests.benchmarks.processes import all_ended, spawned_by

KILOBYTE = 1000
SETTINGS = Settings(sizes=(KILOBYTE,), repeat=2, seconds=0.001)


@pytest.mark.parametrize("name", ["raw-tcp", "raw-tcp-streaming", "uvloop-echo"])
def test_figures_are_positive_and_processes_end(name: str) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == name)
    with isolated(entry.build) as measure:
        figures = [measure(operation, KILOBYTE, 0.0) for operation in entry.operations]
        processes = spawned_by(os.getpid())
    assert all(figure > 0 and math.isfinite(figure) for figure in figures)
    assert len(processes) == 2
    assert all_ended(processes)


class Broken:
    """A system that cannot be started."""

    def start(self) -> None:
        raise OSError("no such luck")

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        raise NotImplementedError

    def stop(self) -> None:
        return


class BreaksLater(Broken):
    """A system that fails when it is measured for the second time."""

    def __init__(self) -> None:
        self._measured = 0

    def start(self) -> None:
        return

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        self._measured += 1
        if self._measured == 2:
            raise OSError("enough")
        return 1.0


class Dies(BreaksLater):
    """A system whose process ends without a word."""

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        os._exit(3)


def test_system_that_does_not_start_says_why() -> None:
    with pytest.raises(SystemFailed, match="OSError: no such luck"), isolated(Broken):
        pytest.fail("it must not be handed out")


def test_others_go_on_when_a_system_fails_or_is_not_installed() -> None:
    entries = (
        CEILING,
        Entry("broken", "broken", Broken),
        Entry("later", "later", BreaksLater),
        Entry("dies", "dies", Dies),
        Entry("absent", "absent", Broken, needs="no_such_package_anywhere"),
    )
    progress: list[str] = []
    report = run(entries, SETTINGS, progress.append)
    assert [row.name for row in report.rows] == ["raw-tcp"]
    assert {point: len(series) for point, series in report.rows[0].seconds.items()} == dict.fromkeys(
        points_of([KILOBYTE]), SETTINGS.repeat
    )
    assert report.failed == {
        "broken": "OSError: no such luck",
        "later": "OSError: enough",
        "dies": "its process ended unexpectedly",
    }
    assert report.skipped == {"absent": "not installed, skipped (pip install 'asyncps[peers]')"}
    assert spawned_by(os.getpid()) == []


def test_systems_take_turns_in_each_round() -> None:
    echo = next(entry for entry in ENTRIES if entry.name == "uvloop-echo")
    progress: list[str] = []
    run((CEILING, echo), SETTINGS, progress.append)
    one_round = [
        "raw TCP (ceiling), starting",
        "raw TCP (ceiling), 1 KB push",
        "raw TCP (ceiling), 1 KB pull",
        "raw TCP (ceiling), 1 KB push_pull",
        "uvloop echo, starting",
        "uvloop echo, 1 KB push_pull",
    ]
    assert progress == [f"round {number} of 2: {turn}" for number in (1, 2) for turn in one_round]


def test_nothing_is_measured_without_the_ceiling() -> None:
    broken_ceiling = Entry(CEILING.name, CEILING.label, Broken)
    with pytest.raises(SystemFailed, match="no such luck"):
        run((broken_ceiling,), SETTINGS, lambda line: None)
