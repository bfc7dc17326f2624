"""[eval]: on what, and when, the model is tried."""

import re
from dataclasses import dataclass
from typing import Any, Final

from psworker.job.sections import Keys

__all__ = ["KEYS", "EvalSettings", "Fold", "section"]

_MOST_FOLDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Fold:
    """The `number`th, from 1 on, of the `of` parts that all rows are cut into for cross-validation."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """Evaluate after each `every` epochs (0: never) on the fraction `holdout` of the rows, or on a `fold`."""

    every: int = 1
    holdout: float = 0.2
    fold: Fold | None = None

    @property
    def held_out(self) -> float | Fold:
        """What is held out; a fold goes before a fraction."""
        return self.holdout if self.fold is None else self.fold


def _every(value: object) -> int:
    if (value == 0 and not isinstance(value, bool)) or value == "never":
        return 0
    match = re.fullmatch(r"([1-9][0-9]{0,8}) epochs?", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('"1 epoch", "3 epochs" or "never"')
    return int(match[1])


def _holdout(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError("a number from 0 up to, but not including, 1")
    return float(value)


def _fold(value: object) -> Fold | None:
    if value == "":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", value) if isinstance(value, str) else None
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of or not 2 <= of <= _MOST_FOLDS:
        raise ValueError(
            f'"2/5" for the second of five folds, of at most {_MOST_FOLDS}, or "" to hold out a fraction'
        )
    return Fold(number, of)


KEYS: Final[Keys] = {"every": _every, "holdout": _holdout, "fold": _fold}


def section(evaluation: EvalSettings) -> dict[str, Any]:
    """The section as it is written."""
    return {
        "every": f"{evaluation.every} epochs" if evaluation.every else "never",
        "holdout": evaluation.holdout,
        "fold": "" if evaluation.fold is None else str(evaluation.fold),
    }
