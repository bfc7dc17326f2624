"""Curves in Braille characters, each of two by four dots. Pure: values in, lines of text out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

__all__ = ["Scale", "chart", "scale_of"]

_BLANK: Final = 0x2800
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of the left half, and of the right
_FROM_ZERO: Final = 0.35  # a scale begins at 0 unless all values are above this share of the highest

Value = float | None


class Scale(NamedTuple):
    """The values at the lower and at the upper edge of a chart."""

    low: float
    high: float


def scale_of(values: Sequence[Value], *, from_zero: bool = False) -> Scale:
    """Return a scale for ``values``; None where nothing was measured, as in a ``Curve``.

    With ``from_zero`` it includes 0 whatever the values are.
    """
    seen = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    if from_zero or 0 < low < high * _FROM_ZERO:
        low, high = min(0.0, low), max(0.0, high)
    if low < high:
        return Scale(low, high)
    return Scale(low - (abs(low) / 2 if low else 0.0), high + (abs(high) / 2 or 1.0))


def chart(
    values: Sequence[Value], columns: int, rows: int, scale: Scale, *, filled: bool = False
) -> list[str]:
    """Return ``rows`` lines of ``columns`` characters, the uppermost first.

    Args:
        values: at equal distances; all of the width is for them, however many there are.
        columns: characters of a line, at least 1.
        rows: lines, at least 1.
        scale: of the values; what is beyond it is drawn at its edge.
        filled: down to the lower edge.
    """
    height = rows * 4
    cells = [[_BLANK] * columns for _ in range(rows)]
    before: int | None = None
    for x, value in enumerate(_resampled(values, columns * 2)):
        level = None if value is None else _level(value, scale, height)
        if level is not None:
            lowest = highest = level
            if filled:
                lowest = 0
            elif before is not None and before != level:  # joined with the one before
                lowest, highest = min(level, before + 1), max(level, before - 1)
            for y in range(lowest, highest + 1):
                cells[rows - 1 - y // 4][x // 2] |= _DOTS[x % 2][3 - y % 4]
        before = level
    return ["".join(map(chr, line)) for line in cells]


def _level(value: float, scale: Scale, height: int) -> int:
    share = (value / 2 - scale.low / 2) / (scale.high / 2 - scale.low / 2)  # halves cannot overflow
    return round(min(1.0, max(0.0, share)) * (height - 1))


def _resampled(values: Sequence[Value], count: int) -> list[Value]:
    """Return ``count`` values: means of several where there are more, or what is between two."""
    known = [value if value is not None and math.isfinite(value) else None for value in values]
    if not known:
        return []
    if len(known) >= count:
        edges = [i * len(known) // count for i in range(count + 1)]
        return [_mean(known[begin:end]) for begin, end in pairwise(edges)]
    step = (len(known) - 1) / (count - 1) if count > 1 else 0.0
    return [_between(known, i * step) for i in range(count)]


def _mean(values: Sequence[Value]) -> Value:
    seen = [value for value in values if value is not None]
    return sum(value / len(seen) for value in seen) if seen else None


def _between(values: Sequence[Value], place: float) -> Value:
    whole = min(int(place), len(values) - 1)
    one, other, share = values[whole], values[min(whole + 1, len(values) - 1)], place - whole
    if one is None or other is None:  # next to a gap: what is nearer
        return other if share > 0.5 else one
    return one * (1 - share) + other * share
