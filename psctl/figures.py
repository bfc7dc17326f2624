"""How numbers, durations and peers' texts read on a screen."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "count",
    "figure",
    "names",
    "plural",
    "printable",
    "silence",
    "size",
    "span",
    "togetherness",
]


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that a terminal might obey: it may come from a peer."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def count(number: float) -> str:
    """Return a number of things: ``12,345``."""
    return f"{number:,.0f}"


def plural(number: int, thing: str) -> str:
    """Return ``1 server``, ``2 servers``."""
    return f"{count(number)} {thing}" if number == 1 else f"{count(number)} {thing}s"


def names(who: Sequence[str], *, first: int = 3, all_known: bool = True) -> str:
    """Return ``w3``, ``w3 and w5``, ``w3, w5 and 4 more``: whoever is beyond the ``first`` is counted.

    With ``all_known`` False there may be others besides ``who``: ``w3, w5 and at least 4 more``.
    """
    shown = [printable(name) for name in who]
    if len(shown) > first:
        rest = len(shown) - (first - 1)
        return f"{', '.join(shown[: first - 1])} and {'' if all_known else 'at least '}{rest} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def togetherness(staleness: float) -> str:
    """Return in words how far apart a job's workers may be."""
    if staleness == 0:
        return "synchronous"
    if staleness == math.inf:
        return "asynchronous"
    return f"stale by at most {staleness:.0f} {'step' if staleness == 1 else 'steps'}"


def figure(value: float | None) -> str:
    """Return a loss or another measure: four decimals, or scientific where these would say little."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def span(seconds: float) -> str:
    """Return a duration: ``0:07``, ``2:05``, ``1:02:05``, ``3 d 01:02:05``; ``-`` where there is none."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def silence(seconds: float) -> str:
    """Return how long nothing was heard: ``0.4 s``, or as ``span`` from 100 seconds on."""
    return f"{seconds:.1f} s" if seconds < 100 else span(seconds)


def size(number: int) -> str:
    """Return a number of bytes: ``512 B``, ``1.5 MiB``."""
    value, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count(value)} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
