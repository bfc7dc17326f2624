"""What an evaluation shows: means over the held-out rows, and what follows from means.

Workers measure each chunk by itself, and means of chunks merge by a weighted mean. A root, a ratio or an area
does not; so a worker sends what it is made of, under names that begin with ``~``, and it is worked out here
once all chunks are merged.

================== ======================================================================================
ingredients        mean over the rows of
``~y``, ``~yy``    y and y ** 2
``~tp.K``          1 where the class K is predicted, and is right
``~fp.K``          1 where the class K is predicted, and is wrong
``~fn.K``          1 where another than the class K is predicted, and K is right
``~pos.B``         1 where the score is in bin B and the class is 1
``~neg.B``         1 where the score is in bin B and the class is 0
================== ======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

__all__ = ["F1_CLASSES", "MAX_MEASURES", "MORE_IS_BETTER", "SCORE_BINS", "derived"]

MORE_IS_BETTER: Final = frozenset({"accuracy", "auc", "f1", "r2"})
"""Of all other measures, less is."""

F1_CLASSES: Final = 100
"""The F1 of data with more classes than these is not measured."""

SCORE_BINS: Final = 512
"""Bins of the score for the area under the ROC curve; a higher one has higher scores."""

MAX_MEASURES: Final = 2 * SCORE_BINS + 3 * F1_CLASSES + 64
"""What a worker may measure at most of one chunk."""

_NOTHING: Final = 1e-14
"""A variance that is less than this part of the mean square is rounding, and no variance."""


def derived(means: Mapping[str, float]) -> dict[str, float]:
    """Return what is shown of ``means``: those with names of their own, and what the others make.

    - ``rmse``: the root of ``mse``.
    - ``r2``: 1 - mse / (mean of y ** 2 - (mean of y) ** 2), the coefficient of determination; not where all y
      are equal.
    - ``f1``: the mean over the classes of 2 tp / (2 tp + fp + fn), the macro F1. A class that neither
      occurs nor is predicted does not count.
    - ``auc``: the area under the ROC curve, which is the probability that a row of class 1 has a higher
      score than one of class 0, a tie counting half (Hanley and McNeil 1982); not where a class is missing.
      Two rows in one bin are a tie, so that it is off by at most half the share of such pairs, and mostly by
      far less: as often as not the one of class 1 is the higher.

    Whatever the means are, nothing is raised: they come from a peer.
    """
    shown = {name: value for name, value in means.items() if not name.startswith("~")}
    if "mse" in means and not means["mse"] < 0:
        shown["rmse"] = math.sqrt(means["mse"])
    worked_out = {"r2": _r2(means), "f1": _f1(means), "auc": _auc(means)}
    return shown | {name: value for name, value in worked_out.items() if value is not None}


def _r2(means: Mapping[str, float]) -> float | None:
    if not {"mse", "~y", "~yy"} <= means.keys():
        return None
    variance = means["~yy"] - means["~y"] * means["~y"]  # a power would raise where it overflows
    if not variance > _NOTHING * means["~yy"]:
        return None
    return 1.0 - means["mse"] / variance


def _f1(means: Mapping[str, float]) -> float | None:
    scores = []
    for number in range(F1_CLASSES):
        right = 2 * means.get(f"~tp.{number}", 0.0)
        wrong = means.get(f"~fp.{number}", 0.0) + means.get(f"~fn.{number}", 0.0)
        if right + wrong > 0:
            scores.append(right / (right + wrong))
    return sum(scores) / len(scores) if scores else None


def _auc(means: Mapping[str, float]) -> float | None:
    ordered = below = positive = 0.0
    for number in range(SCORE_BINS):
        pos, neg = means.get(f"~pos.{number}", 0.0), means.get(f"~neg.{number}", 0.0)
        ordered += pos * (below + neg / 2)
        below += neg
        positive += pos
    return ordered / (positive * below) if positive * below > 0 else None
