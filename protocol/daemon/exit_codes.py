"""Exit codes of every asyncps command."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """Why a command ended; 128 + n is the signal n, after a clean stop."""

    DONE = 0
    USAGE = 2
    UNREACHABLE = 10
    REFUSED = 11
    JOB_MISMATCH = 12
    CHECKPOINT_UNUSABLE = 13
    DATA_UNREADABLE = 14
    CLUSTER_LOST = 15
    DIVERGED = 16
    CHECKPOINT_FAILED = 17
    INTERRUPTED = 130
    TERMINATED = 143
