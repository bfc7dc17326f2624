"""Rows that cannot be used: they end the work, or are left out and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from psworker.data.rows import Fault, Kind
from psworker.errors import DataError
from psworker.job import DataSettings

__all__ = ["BadRows", "skipped_kinds"]

_OR_SKIP: Final = 'or have such rows left out with [data] on-error = "skip"'

_log = logging.getLogger(__name__)

_ALL_KINDS: Final[frozenset[Kind]] = frozenset(("fields", "number", "missing", "target", "encoding", "entry"))


class BadRows:
    """What `[data] on-error` and `missing` say of bad rows, and those that were left out.

    Args:
        data: the settings.
        endless: whether rows come once and without an end, so that no piece of them is remembered.
    """

    def __init__(self, data: DataSettings, *, endless: bool = False) -> None:
        self._skipped = skipped_kinds(data)
        self._endless = endless
        self._counts: Counter[str] = Counter()
        self._of_pieces: dict[tuple[object, ...], Counter[str]] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """How many rows were left out for which reason. A chunk that is read again counts once."""
        return dict(self._counts)

    def of(self, piece: tuple[object, ...]) -> Mapping[str, int]:
        """How many rows of `piece` were left out for which reason when it was read."""
        return dict(self._of_pieces.get(piece, {}))

    def leave_out(
        self,
        faults: Sequence[Fault],
        piece: tuple[object, ...],
        error: Callable[[Fault], DataError],
        *,
        counted: bool = True,
    ) -> None:
        """Count the faults of `piece`, a chunk or part of one, if `counted`; log the first of each kind.

        Raises:
            DataError: of the first one that is not to be left out, as `error` makes it.
        """
        for fault in faults:
            if fault.kind not in self._skipped:
                raise error(replace(fault, reason=f"{fault.reason}; {_OR_SKIP}"))
        if not (faults and counted) or piece in self._of_pieces:
            return
        if not self._endless:
            self._of_pieces[piece] = Counter(fault.kind for fault in faults)
        for fault in faults:
            if not self._counts[fault.kind]:
                _log.warning('%s (this row is left out, and so are others of "%s")', error(fault), fault.kind)
            self._counts[fault.kind] += 1


def skipped_kinds(data: DataSettings) -> frozenset[Kind]:
    """What is wrong with rows that are left out."""
    if data.on_error == "skip":
        return _ALL_KINDS
    return frozenset(("missing",)) if data.missing == "skip" else frozenset()
