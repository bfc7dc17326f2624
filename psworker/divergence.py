"""Whether training has run away: told from the losses of one worker's steps, and from nothing else."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["LossWatch"]

_LEAST_STEPS: Final = 100
_LEAST_EXAMPLES: Final = 5000  # single examples differ more than means of many


class LossWatch:
    """Looks at each loss, and says when they are no longer those of a model that learns.

    That is when a loss is not finite; or when the running mean of the losses is ``above`` times the best that
    it has been, and worse than where it began. The mean fades over 100 steps, or over as many as make 5,000
    examples, and is believed after these.

    Args:
        above: how many times the best; 0: only a loss that is not finite is too much.
        examples: of a step.
    """

    def __init__(self, above: float, examples: int) -> None:
        self._above = above
        self._steps = max(_LEAST_STEPS, -(-_LEAST_EXAMPLES // examples))
        self._seen = 0
        self._mean = 0.0
        self._first = math.nan
        self._best = math.inf

    def look(self, loss: float) -> str:
        """Return what is wrong with the losses up to this one; "" if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        self._seen += 1
        # The plain mean at first, then one that fades: no value of the beginning has more than its share.
        self._mean += (loss - self._mean) / min(self._seen, self._steps)
        if not self._above or self._seen < self._steps:
            return ""
        if self._seen == self._steps:
            self._first = self._mean
        self._best = min(self._best, self._mean)
        limit = self._best + (self._above - 1.0) * abs(self._best)
        if self._mean <= max(limit, self._first):
            return ""
        return f"the mean loss has risen to {self._mean:.4g}, and its best was {self._best:.4g}"
