"""Curves over time as they are drawn on a terminal: in a frame, or as a line. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from protocol.status import Curve, History
from psctl.chart import chart, scale_of
from psctl.figures import count, figure, span

__all__ = ["FRAME", "Plot", "plots_of", "side_by_side", "sparkline"]

FRAME: Final = 3
"""Lines of a framed plot besides the curve: the frame, and the times."""

_LABEL: Final = 8  # columns of the figures beside a curve
_BESIDES: Final = _LABEL + 5  # columns: frame, and blanks
_OVER: Final = 3  # stretches of time without any measurement
_MARKED: Final = 5  # lines; in a higher curve, its middle is marked


@dataclass(frozen=True, slots=True)
class Plot:
    """A curve and what it is of. A rate is drawn filled, from 0 on, and there is none when nobody works."""

    title: str
    curve: Curve
    style: str
    show: Callable[[float], str]
    is_rate: bool = False

    @property
    def latest(self) -> str:
        """What was measured last."""
        seen = [value for value in self.curve.values if value is not None]
        is_over = self.is_rate and self.curve.ago > _OVER * self.curve.every
        return self.show(seen[-1]) if seen and not is_over else "-"

    def lines(self, columns: int, rows: int) -> list[str]:
        """Return the curve alone."""
        values = self.curve.values
        return chart(values, columns, rows, scale_of(values, from_zero=self.is_rate), filled=self.is_rate)

    def framed(self, width: int, rows: int, over: str) -> Panel:
        """Return the curve in ``rows`` lines, framed, with figures and times; ``over`` says which time."""
        columns = max(1, width - _BESIDES)
        scale = scale_of(self.curve.values, from_zero=self.is_rate)
        marks = {0: scale.high, rows - 1: scale.low}
        if rows >= _MARKED:
            middle = rows // 2
            marks[middle] = scale.high + (scale.low - scale.high) * middle / (rows - 1)
        drawn = Text(no_wrap=True)
        for number, line in enumerate(self.lines(columns, rows)):
            mark = _short(marks[number], scale.high) if number in marks else ""
            drawn.append(f"{mark:>{_LABEL}} ", "dim").append(f"{line}\n", self.style)
        drawn.append(f"{'':>{_LABEL}} {self._times(columns)}", "dim")
        heading = Text.assemble(
            (f"{self.title}  ", "not dim"), (self.latest, f"not dim bold {self.style}"), f"  {over}"
        )
        return Panel(
            drawn, title=heading, title_align="left", border_style="dim", width=width, padding=(0, 1)
        )

    def _times(self, columns: int) -> str:
        """Return when the curve begins and ends."""
        if not self.curve.values:
            return ""
        began = _ago(self.curve.ago + self.curve.every * (len(self.curve.values) - 1))
        return f"{began}{_ago(self.curve.ago):>{max(0, columns - len(began))}}"

    def in_a_line(self, width: int) -> Text:
        """Return the curve with its name and what was measured last, in a line."""
        line = Text.assemble(f"{self.title}  ", (self.latest, f"bold {self.style}"), "  ", no_wrap=True)
        line.overflow = "ellipsis"
        columns = width - line.cell_len
        return line.append(self.lines(columns, 1)[0], self.style) if columns > 0 else line


def plots_of(history: History, *, whole: bool) -> tuple[Plot, Plot]:
    """Return the loss and the speed of a job: of the ``whole`` run, or of the last minutes."""
    loss, speed = (history.loss, history.speed) if whole else (history.recent_loss, history.recent_speed)
    return Plot("training loss", loss, "cyan", figure), Plot(
        "examples/s", speed, "green", count, is_rate=True
    )


def sparkline(curve: Curve, style: str, columns: int, *, from_zero: bool) -> Text:
    """Return a curve as a cell of a table."""
    values = curve.values
    (line,) = chart(values, columns, 1, scale_of(values, from_zero=from_zero), filled=True)
    return Text(line, style=style)


def side_by_side(plots: Sequence[Plot], width: int, draw: Callable[[Plot, int], RenderableType]) -> Table:
    """Return what ``draw`` makes of each plot and of the columns that there are for it."""
    edges = [number * width // len(plots) for number in range(len(plots) + 1)]
    widths = [end - begin for begin, end in pairwise(edges)]
    row = Table.grid()
    for one in widths:
        row.add_column(width=one)
    row.add_row(*map(draw, plots, widths))
    return row


def _short(value: float, high: float) -> str:
    """Return a figure beside a curve; ``high`` is the highest there."""
    if high >= 1e6:
        return f"{value / 1e6:.4g}M"
    if high >= 100:
        return count(value)
    return f"{value:.2f}" if high >= 1 else f"{value:.3g}"


def _ago(seconds: float) -> str:
    return "now" if seconds < 2 else f"{span(seconds)} ago"
