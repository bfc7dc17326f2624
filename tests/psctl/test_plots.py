"""Curves on a terminal, with what is written around them."""

import io

import pytest
from rich.console import Console, Group, RenderableType

from protocol.status import Curve, History
from psctl.figures import count, figure
from psctl.plots import FRAME, Plot, plots_of, side_by_side, sparkline

FALLING = Curve(2.0, 0.0, (4.0, 3.0, 2.0, 1.0))
NEVER = Curve()


def drawn(what: RenderableType, width: int = 60) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(Group(what))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_plot_in_a_frame_says_what_it_is_of_and_since_when() -> None:
    lines = drawn(Plot("loss", FALLING, "cyan", figure).framed(40, 5, "last minutes"))
    assert len(lines) == 5 + FRAME
    assert {len(line) for line in lines} == {40}
    assert "loss  1.0000  last minutes" in lines[0]
    assert [line[2:11].strip() for line in lines[1:6]] == ["4.00", "", "2.00", "", "0.00"]
    assert lines[6].strip("│ ").split() == ["0:06", "ago", "now"]


def test_a_low_plot_has_no_mark_in_the_middle() -> None:
    lines = drawn(Plot("loss", FALLING, "cyan", figure).framed(40, 3, ""))
    assert [line[2:11].strip() for line in lines[1:4]] == ["4.00", "", "0.00"]


@pytest.mark.parametrize(
    ("high", "marks"),
    [
        (2_500_000.0, ["2.5M", "0M"]),
        (12_345.0, ["12,345", "0"]),
        (2.0, ["2.00", "0.00"]),
        (0.00345, ["0.00345", "0"]),
    ],
)
def test_figures_beside_a_curve_are_short(high: float, marks: list[str]) -> None:
    lines = drawn(Plot("x", Curve(1.0, 0.0, (0.0, high)), "cyan", figure).framed(40, 3, ""))
    assert [line[2:11].strip() for line in (lines[1], lines[3])] == marks


def test_a_plot_of_nothing() -> None:
    lines = drawn(Plot("loss", NEVER, "cyan", figure).framed(40, 3, "last minutes"))
    assert "loss  -  last minutes" in lines[0]
    assert lines[4].strip("│ ") == ""


def test_a_gap_is_not_the_latest() -> None:
    assert Plot("loss", Curve(1.0, 0.0, (2.0, None)), "cyan", figure).latest == "2.0000"


def test_there_is_no_rate_when_nobody_has_worked_for_a_while() -> None:
    over = Curve(1.0, 60.0, (5.0,))
    assert Plot("examples/s", over, "green", count, is_rate=True).latest == "-"
    assert Plot("loss", over, "cyan", figure).latest == "5.0000"
    assert "1:00 ago" in drawn(Plot("loss", over, "cyan", figure).framed(40, 3, ""))[4]


def test_a_plot_in_a_line() -> None:
    (line,) = drawn(Plot("loss", FALLING, "cyan", figure).in_a_line(30), 30)
    assert line.startswith("loss  1.0000  ⠉")
    assert len(line) == 30
    (short,) = drawn(Plot("loss", FALLING, "cyan", figure).in_a_line(10), 10)
    assert short == "loss  1.0…"


def test_plots_side_by_side_share_all_columns() -> None:
    plots = [Plot("loss", FALLING, "cyan", figure)] * 2
    lines = drawn(side_by_side(plots, 61, lambda plot, width: plot.framed(width, 3, "")), 61)
    assert {len(line) for line in lines} == {61}
    assert lines[0].count("loss") == 2


@pytest.mark.parametrize(("whole", "first"), [(False, "2.0000"), (True, "1.0000")])
def test_a_job_s_plots(whole: bool, first: str) -> None:
    one, two, three = (Curve(1.0, 0.0, (float(i),)) for i in (1, 2, 3))
    loss, speed = plots_of(History(one, three, two, three), whole=whole)
    assert (loss.title, loss.latest) == ("training loss", first)
    assert (speed.title, speed.latest) == ("examples/s", "3")


def test_a_sparkline_is_as_wide_as_asked_for() -> None:
    assert sparkline(FALLING, "cyan", 7, from_zero=True).cell_len == 7
    assert sparkline(NEVER, "cyan", 7, from_zero=True).plain.strip("⠀") == ""
