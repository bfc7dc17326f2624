"""Who keeps whom waiting, in words. Pure: what the shards report in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from protocol.status import Wait
from psctl.figures import count, names, printable

__all__ = ["felt", "sentence"]

_NAMED: Final = 16  # a shard names no more
_FELT: Final = 0.5  # seconds; every step waits for somebody for a moment


def felt(waits: Iterable[Wait]) -> list[Wait]:
    """Return the waits that last, the longest first.

    Shards that wait for the same thing count as one: what is shown is the longest of these waits, the most
    that wait in it, and everybody who is waited for.
    """
    by_what: dict[str, Wait] = {}
    for wait in waits:
        if wait.seconds >= _FELT:
            same = by_what.get(wait.what)
            by_what[wait.what] = wait if same is None else _together(same, wait)
    return sorted(by_what.values(), key=lambda wait: -wait.seconds)


def _together(one: Wait, other: Wait) -> Wait:
    return replace(
        one,
        waiting=max(one.waiting, other.waiting),
        waiting_for=tuple(dict.fromkeys((*one.waiting_for, *other.waiting_for))),
        seconds=max(one.seconds, other.seconds),
    )


def sentence(wait: Wait) -> str:
    """Return ``step 31: 3 wait for w3, w5 and 4 more (2.1 s)``."""
    verb = "waits" if wait.waiting == 1 else "wait"
    whom = names(wait.waiting_for, all_known=len(wait.waiting_for) < _NAMED)
    whom = f" for {whom}" if whom else ""
    return f"{printable(wait.what)}: {count(wait.waiting)} {verb}{whom} ({wait.seconds:.1f} s)"
