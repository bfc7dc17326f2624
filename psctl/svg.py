"""Charts as SVG, for pages that are read without a network: lines, dots, and bars of shares. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Final

__all__ = ["COLOURS", "line_chart", "scatter", "share_bars"]

COLOURS: Final = ("#3b5bdb", "#0b8577", "#b25d00", "#7a3fc4", "#c5221f", "#5a6475", "#1b7fb5", "#7d8a00")
"""Told apart by people who see colours differently, on a light and on a dark page."""

_WIDTH: Final = 560
_HEIGHT: Final = 220
_LEFT: Final = 64
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 34
_BAR: Final = 22
_NAMES: Final = 120

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    show: Callable[[float], str],
    from_zero: bool = False,
    steps: bool = False,
) -> str:
    """Return a chart of one or more lines of (x, y).

    Args:
        title: read out by screen readers.
        lines: by name; what is not finite is left out.
        x_label: below the axis.
        show: writes a value of y.
        from_zero: begin the y axis at 0.
        steps: a value holds until the next.
    """
    finite = {name: [p for p in points if math.isfinite(p[0] + p[1])] for name, points in lines.items()}
    seen = [point for points in finite.values() for point in points]
    if not seen:
        return _nothing(title)
    drawn, place = _axes(title, seen, x_label=x_label, show_x=_place, show=show, from_zero=from_zero)
    for colour, (name, points) in zip(_colours(len(finite)), finite.items(), strict=True):
        drawn.append(_line([place(point) for point in points], colour, name, steps=steps))
    return "".join([*drawn, "</svg>"])


def scatter(
    title: str,
    points: Mapping[str, tuple[float, float]],
    *,
    x_label: str,
    show: Callable[[float], str],
    best: str,
    log: bool = False,
) -> str:
    """Return a dot at the (x, y) of each name.

    Args:
        title: read out by screen readers.
        points: by name, which is shown where a dot is pointed at; what is not finite is left out.
        x_label: below the axis.
        show: writes a value of y.
        best: the name whose dot is of another colour.
        log: draw the logarithm of x, which is above 0.
    """
    scale = math.log10 if log else float
    finite = {name: (scale(x), y) for name, (x, y) in points.items() if math.isfinite(x + y)}
    if not finite:
        return _nothing(title)
    show_x = (lambda x: _place(10**x)) if log else _place
    drawn, place = _axes(title, list(finite.values()), x_label=x_label, show_x=show_x, show=show)
    for name in sorted(finite, key=best.__eq__):  # the best above the others
        x, y = place(finite[name])
        colour = COLOURS[name == best]
        told = f"<title>{escape(name)}: {escape(show(finite[name][1]))}</title>"
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{told}</circle>')
    return "".join([*drawn, "</svg>"])


def share_bars(title: str, bars: Mapping[str, Mapping[str, float]], *, show: Callable[[float], str]) -> str:
    """Return a bar for each name, cut by what its parts are of the whole; parts have a colour in all bars."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    colours = dict(zip(parts, _colours(len(parts)), strict=True))
    height = len(bars) * (_BAR + 8) + 24
    drawn = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for number, (name, bar) in enumerate(bars.items()):
        total, x, y = sum(bar.values()), float(_NAMES), number * (_BAR + 8)
        drawn.append(f'<text x="{_NAMES - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        for part, value in bar.items():
            width = (value / total if total else 0.0) * (_WIDTH - _NAMES - 70)
            told = f"<title>{escape(f'{name}: {part} {show(value)}')}</title>"
            place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"'
            drawn.append(f'<rect {place} fill="{colours[part]}">{told}</rect>')
            x += width
        drawn.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{escape(show(total))}</text>')
    for number, part in enumerate(parts):
        x = _NAMES + number * 90
        drawn.append(f'<rect x="{x}" y="{height - 14}" width="10" height="10" fill="{colours[part]}"/>')
        drawn.append(f'<text x="{x + 14}" y="{height - 5}">{escape(part)}</text>')
    return "".join([*drawn, "</svg>"])


def _nothing(title: str) -> str:
    middle = f'x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle"'
    return f"{_head(title)}<text {middle}>nothing was measured</text></svg>"


def _head(title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'


def _axes(
    title: str,
    seen: Points,
    *,
    x_label: str,
    show_x: Callable[[float], str],
    show: Callable[[float], str],
    from_zero: bool = False,
) -> tuple[list[str], Callable[[tuple[float, float]], tuple[float, float]]]:
    """Return the beginning of a drawing, with axes around the points, and where a point is in it."""
    first, last = min(x for x, _ in seen), max(x for x, _ in seen)
    marks = _scale(
        min(0.0, *(y for _, y in seen)) if from_zero else min(y for _, y in seen), max(y for _, y in seen)
    )
    low, high = marks[0], marks[-1]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        along = (point[0] - first) / (last - first) if last > first else 0.5
        up = (point[1] - low) / (high - low)
        return (
            _LEFT + along * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    drawn = [_head(title)]
    for mark in marks:
        y = place((first, mark))[1]
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(show(mark))}</text>')
    ends = [(first, "start"), (last, "end")] if last > first else [(first, "middle")]
    drawn += [
        f'<text x="{place((x, low))[0]:.1f}" y="{_HEIGHT - 16}" text-anchor="{anchor}">{show_x(x)}</text>'
        for x, anchor in ends
    ]
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    drawn.append(f'<text x="{centre}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return drawn, place


def _place(x: float) -> str:
    """Return a value of x below the axis: three digits are enough."""
    return f"{x:,.0f}" if abs(x) >= 100 or x == int(x) else f"{x:.3g}"


def _colours(number: int) -> list[str]:
    return [COLOURS[one % len(COLOURS)] for one in range(number)]


def _line(places: Sequence[tuple[float, float]], colour: str, name: str, *, steps: bool) -> str:
    told = f"<title>{escape(name)}</title>"
    if len(places) == 1:
        x, y = places[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">{told}</circle>'
    path = "".join(
        f"{'M' if not number else 'L'}{x:.1f},{y:.1f}" if not steps or not number else f"H{x:.1f}V{y:.1f}"
        for number, (x, y) in enumerate(places)
    )
    return f'<path class="curve" d="{path}" stroke="{colour}">{told}</path>'


def _scale(low: float, high: float) -> list[float]:
    """Return four to seven round values that reach from ``low`` to ``high`` at least."""
    if high - low <= abs(high) * 1e-9:
        around = abs(high) / 2 or 1.0
        low, high = low - around, high + around
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(one * magnitude for one in (1, 2, 2.5, 5, 10) if one * magnitude >= rough)
    return [at * step for at in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
