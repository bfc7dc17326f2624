"""What has to be known of all training rows before the first one is used: means, ranges, class counts.

The statistics of a chunk are arrays that add up over chunks, in any order and on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from psworker.data.rows import Rows, Target
from psworker.errors import DataError, JobError
from psworker.job import DataSettings

__all__ = ["Adjustment", "Survey", "survey_of"]

_MOST_EXTREMES = 1 << 18
"""Columns times chunks for scale = "minmax", whose statistics are 16 bytes for each: 4 MiB."""

Totals = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Adjustment:
    """What is done with the numbers of a row: missing ones filled, (number - offset) * factor, a weight.

    `fill`, `offset`, `factor`: (numeric,) float32; `weights`: (classes,) float32; None: nothing.
    """

    fill: npt.NDArray[np.float32] | None = None
    offset: npt.NDArray[np.float32] | None = None
    factor: npt.NDArray[np.float32] | None = None
    weights: npt.NDArray[np.float32] | None = None

    @property
    def width(self) -> int | None:
        """Of how many columns it is; None: of any."""
        known = self.fill if self.offset is None else self.offset
        return None if known is None else len(known)

    def numbers(self, numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Numbers (n, numeric), filled and scaled."""
        if self.fill is not None:
            numbers = np.where(np.isnan(numbers), self.fill, numbers)
        if self.offset is not None and self.factor is not None:
            numbers = (numbers - self.offset) * self.factor
        return numbers

    def weight(self, target: Target) -> npt.NDArray[np.float32] | None:
        """What each row counts (n,), by its class; None: 1."""
        return None if self.weights is None else self.weights[target.astype(np.intp, copy=False)]


@dataclass(frozen=True, slots=True)
class Survey:
    """What `missing`, `scale` and `class-weights` ask of the data. `path` is for messages."""

    path: str
    columns: tuple[str, ...] | None
    features: int
    missing: str
    scale: str
    class_weights: str | tuple[tuple[str, float], ...]
    classes: tuple[str, ...]

    @property
    def wanted(self) -> bool:
        """Whether the data has to be seen first."""
        return self.missing == "mean" or self.scale != "none" or self.class_weights == "balanced"

    def statistics(
        self, rows: Rows, shift: npt.NDArray[np.float64], chunk: int, chunks: int
    ) -> dict[str, npt.NDArray[np.float64]]:
        """What adds up, of the training rows of one chunk.

        "rows" (1,), "classes" (classes,): counts. "count", "sum", "square" (numeric,): of the values that are
        there, how many, and the sums of x - shift and (x - shift)^2. "shift" (numeric,): of the first chunk
        that, of others 0, so that who has only the sums knows what they are relative to. With a `shift`
        among the values these do not cancel as those of x would; source: Chan, Golub and LeVeque, "Algorithms
        for Computing the Sample Variance", The American Statistician 37, 1983, section 3. "least", "most"
        (chunks, numeric): extremes do not add up, so each chunk has a row of its own, less `shift`; others
        are 0.
        """
        found = {"rows": np.array([len(rows)], np.float64)}
        if self.classes:
            found["classes"] = np.bincount(rows.target.astype(np.intp), minlength=len(self.classes)).astype(
                float
            )
        if self.missing == "mean" or self.scale != "none":
            shifted = rows.numbers.astype(np.float64) - shift
            there = ~np.isnan(shifted)
            found["count"] = there.sum(0, np.float64)
            found["sum"] = np.where(there, shifted, 0).sum(0)
            found["square"] = np.where(there, shifted * shifted, 0).sum(0)
            found["shift"] = np.zeros_like(shift) if chunk else shift
            if self.scale == "minmax":
                least, most = np.zeros((2, chunks, self.features))
                least[chunk] = np.where(there, shifted, np.inf).min(0, initial=np.inf)
                most[chunk] = np.where(there, shifted, -np.inf).max(0, initial=-np.inf)
                # A column that has no value in this chunk has none of these either; a push is finite.
                found["least"], found["most"] = (
                    np.nan_to_num(one, posinf=0, neginf=0) for one in (least, most)
                )
                found["values"] = np.zeros((chunks, self.features))
                found["values"][chunk] = found["count"]
        return found

    def check(self, chunks: int) -> None:
        """Raise JobError where the statistics would be too many."""
        if self.scale == "minmax" and chunks * self.features > _MOST_EXTREMES:
            raise JobError(
                f'[data] scale = "minmax" keeps the extremes of each chunk, and {chunks} chunks of '
                f'{self.features} columns are too many; set chunk-rows higher, or take scale = "standard"'
            )

    def known(self) -> Adjustment:
        """What is done where nothing has to be seen."""
        zeros = np.zeros(self.features, np.float32) if self.missing == "zero" else None
        if isinstance(self.class_weights, str):
            return Adjustment(zeros)
        given = dict(self.class_weights)
        return Adjustment(zeros, weights=np.array([given.get(name, 1) for name in self.classes], np.float32))

    def adjustment(self, totals: Totals) -> Adjustment:
        """What is done once `totals`, the sums of all statistics, are known.

        Raises JobError where one of them is missing, DataError where there are no rows, a column has no
        value, or the rows are of one class.
        """
        self._check_complete(totals)
        if not totals["rows"][0]:
            raise DataError(self.path, None, "no training row can be used; correct the data or [data]")
        known = self.known()
        weights = self._weights(totals["classes"]) if self.classes else None
        if self.missing != "mean" and self.scale == "none":
            return Adjustment(known.fill, weights=weights)
        shift, count = totals["shift"], totals["count"]
        for column in np.flatnonzero(count == 0):
            name = f"{column + 1}" if self.columns is None else self.columns[column]
            reason = "no training row has a value; leave the column out of [data] columns"
            raise DataError(self.path, None, reason, column=name)
        from_shift = totals["sum"] / count
        fill = _narrow(shift + from_shift) if self.missing == "mean" else known.fill
        offset, width = self._scale(totals, from_shift)
        if offset is None or width is None:
            return Adjustment(fill, weights=weights)
        # A column of one value becomes 0, whatever its width is taken for.
        factor = 1 / np.where(width > 0, width, 1.0)
        return Adjustment(fill, _narrow(shift + offset), _narrow(factor), weights)

    def _check_complete(self, totals: Totals) -> None:
        needed = ["rows", "classes"] if self.classes else ["rows"]
        if self.missing == "mean" or self.scale != "none":
            needed += ["count", "sum", "square", "shift"]
        if self.scale == "minmax":
            needed += ["least", "most", "values"]
        for name in needed:
            if name not in totals:
                raise JobError(
                    f'[data] scale = "{self.scale}" and missing = "{self.missing}" need the survey of the '
                    f'training data, and the servers have no tensor "survey.{name}" of it: the job was '
                    "trained without, or by an earlier version; train it again under another [job] name"
                )

    def _scale(
        self, totals: Totals, from_shift: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None]:
        """What becomes 0, less the shift, and what is as far from it as 1."""
        if self.scale == "standard":
            variance = totals["square"] / totals["count"] - from_shift**2
            return from_shift, np.sqrt(np.maximum(variance, 0))
        if self.scale == "minmax":
            there = totals["values"] > 0
            least = np.where(there, totals["least"], np.inf).min(0)
            return least, np.where(there, totals["most"], -np.inf).max(0) - least
        return None, None

    def _weights(self, counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
        """Rows / (classes * rows of the class), as scikit-learn's "balanced"; or what is set."""
        present = np.flatnonzero(counts)
        if len(present) == 1 and len(self.classes) > 1:
            one = self.classes[present[0]]
            reason = (
                f'all {counts.sum():.0f} training rows are of class "{one}"; there is nothing to tell apart'
            )
            raise DataError(self.path, None, reason)
        if self.class_weights != "balanced":
            return self.known().weights
        if len(present) < len(self.classes):
            missing = self.classes[int(np.argmin(counts))]
            reason = (
                f'no training row is of class "{missing}", so nothing balances it; correct [data] classes'
            )
            raise DataError(self.path, None, reason)
        return _narrow(counts.sum() / (len(counts) * counts))


def _narrow(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return numbers.astype(np.float32)


def survey_of(data: DataSettings, path: str, columns: tuple[str, ...] | None, features: int) -> Survey:
    """What the settings ask of so many numeric features; `columns` are their names, if they have any."""
    return Survey(path, columns, features, data.missing, data.scale, data.class_weights, data.classes)
