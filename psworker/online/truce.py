"""When a worker acts on a drift, so that several do not act on the same one again and again.

A state machine without I/O: its clock is the number of examples that the worker has learnt from.

- A worker watches once it has learnt from `quiet` examples: before, its model knows nothing.
- After each drift that was acted on, by itself or by another worker, it does not watch for `quiet` examples:
  what it would see is the same drift, or the recovery.
- What was raised for a while is lowered by everybody who knows of it, or who comes after it: the one that has
  raised it may have died.
"""

from __future__ import annotations

__all__ = ["Truce"]


class Truce:
    """What one worker knows of the drifts that were acted on.

    Args:
        quiet: examples.
        raised_for: examples after which what was raised is lowered.
        acted: drifts of the job that were acted on before this worker began, or joined again.
        since: how many examples it had learnt from then.
    """

    def __init__(self, quiet: int, raised_for: int, acted: int, since: int = 0) -> None:
        self._quiet = quiet
        self._raised_for = raised_for
        self.acted = acted
        self._quiet_until = since + quiet
        self._lower_at: int | None = since + raised_for if acted else None

    def hear(self, acted: int, examples: int) -> bool:
        """Hear how many drifts were acted on by anybody; return whether there was a new one."""
        if acted <= self.acted:
            return False
        self.acted = acted
        self._quiet_until = examples + self._quiet
        self._lower_at = examples + self._raised_for
        return True

    def watches(self, examples: int) -> bool:
        """Whether a rise of the error would be a drift, and news."""
        return examples >= self._quiet_until

    def lowers(self, examples: int) -> bool:
        """Whether it is time to lower what was raised; true once."""
        if self._lower_at is None or examples < self._lower_at:
            return False
        self._lower_at = None
        return True
