"""The lists of keys that the server at the other end of a connection remembers: sent once, then named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from protocol.connection import Array
from protocol.messages import Pull, Push, PushPull, Request
from protocol.tables import KEY_CACHE, KNOWN_FROM, Rows
from protocol.tensors import Part

__all__ = ["Keyed", "KnownKeys", "names_keys"]

_WITHIN: Final = KEY_CACHE // 2
_KEY_BYTES: Final = 8

Keyed = Pull | Push | PushPull
"""A request that may name keys."""


def names_keys(request: Request) -> bool:
    """Return whether a request names keys of tables."""
    kind = type(request)
    if kind is Push:
        return bool(request.rows)  # type: ignore[union-attr]
    if kind is PushPull:
        return bool(request.rows or request.wanted)  # type: ignore[union-attr]
    return kind is Pull and bool(request.wanted)  # type: ignore[union-attr]


class KnownKeys:
    """What was sent on one connection; the server remembers more, and forgets in the same order.

    Args:
        within: bytes of lists that are taken to be remembered.
    """

    def __init__(self, within: int = _WITHIN) -> None:
        self._within = within
        self._lists: OrderedDict[str, int] = OrderedDict()  # digest -> bytes
        self._bytes = 0

    def clear(self) -> None:
        """Take nothing to be remembered any more."""
        self._lists.clear()
        self._bytes = 0

    def shorten(self, request: Keyed, arrays: Sequence[Array], *, whole: bool) -> tuple[Keyed, list[Array]]:
        """Return a request, to be sent now, without the keys that are known; from now on all of them are.

        Args:
            request: with all its keys.
            arrays: its payload.
            whole: leave out only what stands twice in the request itself.
        """
        carried: set[str] = set()

        def is_known(rows: Rows) -> bool:
            known = self._note(rows) and (not whole or rows.digest in carried)
            carried.add(rows.digest)
            return known

        pushed = () if isinstance(request, Pull) else request.rows
        wanted = () if isinstance(request, Push) else request.wanted
        payload = _Payload(request.tensors, arrays, dense=len(arrays) - 2 * len(pushed) - len(wanted))
        rows = tuple(payload.take(one, is_known(one), then=1) for one in pushed)
        asked = tuple(payload.take(one, is_known(one), then=0) for one in wanted)
        tensors = tuple(payload.parts)
        if isinstance(request, Pull):
            return replace(request, tensors=tensors, wanted=asked), payload.arrays
        if isinstance(request, Push):
            return replace(request, tensors=tensors, rows=rows), payload.arrays
        return replace(request, tensors=tensors, rows=rows, wanted=asked), payload.arrays

    def _note(self, rows: Rows) -> bool:
        """Return whether a list is known; it is from now on, if it is worth it."""
        size = rows.keys * _KEY_BYTES
        if rows.keys < KNOWN_FROM or size > self._within:
            return False
        if rows.digest in self._lists:
            self._lists.move_to_end(rows.digest)
            return True
        self._lists[rows.digest] = size
        self._bytes += size
        while self._bytes > self._within:
            self._bytes -= self._lists.popitem(last=False)[1]
        return False


class _Payload:
    """A payload that is copied part by part, its first ``dense`` parts at once."""

    def __init__(self, parts: Sequence[Part], arrays: Sequence[Array], dense: int) -> None:
        self._from = parts, arrays
        self._place = dense
        self.parts, self.arrays = list(parts[:dense]), list(arrays[:dense])

    def take(self, rows: Rows, known: bool, *, then: int) -> Rows:
        """Take the keys, unless ``known``, and ``then`` so many parts after them; return the description."""
        begin, end = self._place + known, self._place + 1 + then
        parts, arrays = self._from
        self.parts += parts[begin:end]
        self.arrays += arrays[begin:end]
        self._place = end
        return replace(rows, coding="known") if known else rows
