"""[train]: how to train."""

import math
import re
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from psworker.errors import JobError
from psworker.job.evaluation import EvalSettings
from psworker.job.sections import Keys
from psworker.job.values import identifier, integer

__all__ = ["KEYS", "TrainSettings", "check", "section"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. `staleness` is 0 (synchronous), a number of steps, or `math.inf` (asynchronous).

    The job starts when `workers` workers have joined. At staleness 0, a step does not wait for the gradients
    of the slowest `backup_workers`.

    A push is of one mini-batch, of the mean of the gradients of `accumulate`, or of `local_steps` steps that
    the worker takes on its own copy. `shuffle` is the order of the rows in each epoch: "chunk", "window:N"
    or "none".

    With `patience` training stops when so many evaluations in a row have not bettered `monitor` by more than
    `min_delta`. `on_divergence` says what to do when the running mean of the losses is `diverged_above` (0:
    never) times its best, or one of them not finite: "stop", or "lower-rate", which goes back to the last
    checkpoint and on with the learning rate times `rate_factor`, at most `returns` times.
    """

    epochs: int = 5
    batch_size: int = 64
    staleness: float = math.inf
    workers: int = 1
    backup_workers: int = 0
    local_steps: int = 1
    accumulate: int = 1
    shuffle: str = "chunk"
    patience: int = 0
    min_delta: float = 0.0
    monitor: str = "loss"
    on_divergence: str = "stop"
    diverged_above: float = 10.0
    rate_factor: float = 0.5
    returns: int = 5

    @property
    def unit_rows(self) -> int:
        """Rows of a push."""
        return self.batch_size * max(self.local_steps, self.accumulate)


def _staleness(value: object) -> float:
    if value in ("inf", math.inf):
        return math.inf
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError('0 (synchronous), a number of steps that a worker may be ahead, or "inf"')
    return float(value)


def _above(value: object) -> float:
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if not _is_number(value) or not 1 < value < math.inf:
        raise ValueError("a number above 1, or 0 for no limit")
    return float(value)


def _factor(value: object) -> float:
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError("a number between 0 and 1, not either of them")
    return float(value)


def _least(value: object) -> float:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError("a finite number, 0 or more")
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shuffle(value: object) -> str:
    written = value if isinstance(value, str) else ""
    if written not in ("chunk", "none") and not re.fullmatch("window:[1-9][0-9]{0,8}", written):
        raise ValueError('"chunk", "window:N" with a number of rows, or "none"')
    return written


def _on_divergence(value: object) -> str:
    if value not in ("stop", "lower-rate"):
        raise ValueError('"stop" or "lower-rate"')
    return str(value)


KEYS: Final[Keys] = {
    "epochs": integer(1),
    "batch-size": integer(1),
    "staleness": _staleness,
    "workers": integer(1),
    "backup-workers": integer(0, 2**20),
    "local-steps": integer(1, 2**20),
    "accumulate": integer(1, 2**20),
    "shuffle": _shuffle,
    "patience": integer(0, 2**31),
    "min-delta": _least,
    "monitor": identifier,
    "on-divergence": _on_divergence,
    "diverged-above": _above,
    "rate-factor": _factor,
    "returns": integer(0, 1000),
}


def section(train: TrainSettings) -> dict[str, Any]:
    """The section as it is written."""
    return {
        "epochs": train.epochs,
        "batch-size": train.batch_size,
        "staleness": "inf" if math.isinf(train.staleness) else int(train.staleness),
        "workers": train.workers,
        "backup-workers": train.backup_workers,
        "local-steps": train.local_steps,
        "accumulate": train.accumulate,
        "shuffle": train.shuffle,
        "patience": train.patience,
        "min-delta": train.min_delta,
        "monitor": train.monitor,
        "on-divergence": train.on_divergence,
        "diverged-above": train.diverged_above,
        "rate-factor": train.rate_factor,
        "returns": train.returns,
    }


def check(train: TrainSettings, evaluation: EvalSettings) -> None:
    """Raise JobError for keys that do not go together."""
    if train.local_steps > 1 and train.accumulate > 1:
        raise JobError(
            f"[train] local-steps = {train.local_steps} and accumulate = {train.accumulate} exclude each "
            "other: take a larger batch-size in place of accumulate"
        )
    if train.patience and not (evaluation.every and evaluation.held_out):
        raise JobError(
            f"[train] patience = {train.patience} counts evaluations, and there are none; set [eval] every "
            "and holdout"
        )
