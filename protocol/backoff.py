"""How long to wait before trying again, so that many do not come at once."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Backoff"]

_FIRST: Final = 0.05  # seconds
_LONGEST: Final = 2.0


class Backoff:
    """Pauses that grow exponentially, with full jitter: uniform from 0 to the bound (Brooker 2015).

    Args:
        rng: None: of its own.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 (no secret)
        self._bound = _FIRST

    def pause(self, most: float) -> float:
        """Return the next pause in seconds, at most ``most``."""
        found = self._rng.uniform(0, self._bound)
        self._bound = min(2 * self._bound, _LONGEST)
        return max(0.0, min(found, most))
