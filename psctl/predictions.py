"""Predictions as text, a line for each row, and what is said of rows that have none."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from psworker.unlabelled import Lost

__all__ = ["Predicted", "Tally", "header", "in_order", "text_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Predicted:
    """One row: what is predicted, and how probable each class is if that was asked; or why it is not."""

    value: str | int | float | None
    probabilities: Sequence[float] = ()
    lost: Lost | None = None


def in_order(
    predicted: Array, probabilities: Array | None, lost: Mapping[int, Lost], classes: Sequence[str]
) -> list[Predicted]:
    """Return all rows of a piece in their order.

    Args:
        predicted: (n,) class indices or numbers, of those that could be read.
        probabilities: (n, classes) of them; None: nobody has asked.
        lost: the others, by their place among all.
        classes: names by index; empty: they have none.
    """
    rows = [()] * len(predicted) if probabilities is None else probabilities.tolist()
    found = iter([
        Predicted(_shown(value, classes), row) for value, row in zip(predicted.tolist(), rows, strict=True)
    ])  # fmt: skip
    return [
        Predicted(None, (), lost[place]) if place in lost else next(found)
        for place in range(len(predicted) + len(lost))
    ]


def _shown(value: float, classes: Sequence[str]) -> str | int | float:
    """A class by its name, if it has one."""
    if isinstance(value, int):
        return classes[value] if classes else value
    return float(f"{value:.7g}")  # as many digits as a float32 has


def header(form: str, names: Sequence[str]) -> str:
    """Return what comes before the first row; ``names``: of the classes whose probabilities are told."""
    return _csv_lines([["prediction", *(f"p({name})" for name in names)]]) if form == "csv" else ""


def text_of(form: str, rows: Iterable[Predicted], names: Sequence[str]) -> str:
    """Return a line for each row. One without a prediction is empty, or has empty fields, or null.

    Args:
        form: "text", "csv" or "json".
        rows: in their order.
        names: of the classes whose probabilities are told.
    """
    if form == "json":
        return "".join(json.dumps(_object(row, names), ensure_ascii=False) + "\n" for row in rows)
    lines = [_cells(row, names) for row in rows]
    return _csv_lines(lines) if form == "csv" else "".join(f"{' '.join(line).strip()}\n" for line in lines)


def _cells(row: Predicted, names: Sequence[str]) -> list[str]:
    if row.value is None:
        return [""] * (1 + len(names))
    return [str(row.value), *(f"{one:.6g}" for one in row.probabilities)]


def _csv_lines(lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _object(row: Predicted, names: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {"prediction": _strict(row.value)}
    if names:
        rounded = [_strict(float(f"{one:.6g}")) for one in row.probabilities]
        found["probabilities"] = None if row.value is None else dict(zip(names, rounded, strict=True))
    if row.lost is not None:
        found |= {"reason": row.lost.kind, "error": str(row.lost.error)}
    return found


def _strict(value: object) -> object:
    """What JSON has no number for is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Tally:
    """Counts rows, and those without a prediction by what is wrong with them."""

    def __init__(self) -> None:
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, rows: Iterable[Predicted]) -> None:
        """Count some rows."""
        for row in rows:
            self._rows += 1
            if row.lost is not None:
                self._reasons[row.lost.kind] += 1
                self._first.setdefault(row.lost.kind, str(row.lost.error))

    def text(self, form: str) -> str:
        """Return how many rows have no prediction, and why; "" if all have one. ``form`` "json": in JSON."""
        lost = self._reasons.total()
        if not lost:
            return ""
        reasons = sorted(self._reasons.items())
        if form == "json":
            told = {kind: {"rows": count, "first": self._first[kind]} for kind, count in reasons}
            return json.dumps(
                {"rows": self._rows, "without_prediction": lost, "reasons": told}, ensure_ascii=False
            )
        of_kinds = ", ".join(f"{count} of {kind}" for kind, count in reasons)
        firsts = "".join(f"\n  the first of {kind}: {self._first[kind]}" for kind, _ in reasons)
        return f"psctl predict: {lost} of {self._rows} rows have no prediction: {of_kinds}{firsts}"
