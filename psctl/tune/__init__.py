"""``psctl tune``: a search for the settings of a job with which it learns best. See docs/tuning.md."""

from psctl.tune.command import flags, run

__all__ = ["flags", "run"]
