"""Early stopping: when evaluations have stopped getting better. A state machine without I/O.

best value so far ─ better by more than min_delta ─> that is the best, and nothing has been in vain
                  └ otherwise, also NaN ─> one more in vain; after ``patience`` of them it is enough
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.measures import MORE_IS_BETTER
from protocol.messages import Plan

__all__ = ["EarlyStop"]


class EarlyStop:
    """Watches one measure of the held-out data.

    Args:
        plan: names the measure, how much of an improvement counts, and how many evaluations are waited for
            one; 0: for ever.

    Attributes:
        best: the best value so far; None: there was none.
        in_vain: evaluations since then.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.best: float | None = None
        self.in_vain = 0

    def look(self, means: Mapping[str, float]) -> str:
        """Take an evaluation; return why it is enough now, or "". One that lacks the measure says nothing."""
        plan, value = self._plan, means.get(self._plan.monitor)
        if not plan.patience or value is None:
            return ""
        if self._improves(value):
            self.best, self.in_vain = value, 0
            return ""
        self.in_vain += 1
        if self.in_vain < plan.patience:
            return ""
        best = "there was no number" if self.best is None else f"the best was {self.best:.6g}"
        return f"{plan.monitor} has not improved in {plan.patience} evaluations ({best})"

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return value == value  # NaN is no value to improve on  # noqa: PLR0124
        gain = value - self.best if self._plan.monitor in MORE_IS_BETTER else self.best - value
        return gain > self._plan.min_delta
