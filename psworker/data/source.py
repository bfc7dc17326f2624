"""Where training examples come from: one interface, chosen by name or file extension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from psworker.data.arrays import open_npy, open_npz
from psworker.data.batch import Batch
from psworker.data.csv import open_csv
from psworker.data.digits import open_digits
from psworker.data.files import expand
from psworker.data.libsvm import open_libsvm
from psworker.data.parquet import open_parquet
from psworker.data.split import Holdout, Split
from psworker.errors import DataError
from psworker.job import DataSettings
from psworker.job.data import FORMATS, format_of


class Source(Protocol):
    """Examples in chunks, which can be read in any order, any number of times, by any worker."""

    @property
    def features(self) -> int:
        """Columns of a batch's x; 0 where features are hashed."""

    @property
    def hashed(self) -> bool:
        """Whether batches have keys, and x a column for each key that they have."""

    @property
    def classes(self) -> int | None:
        """How many classes there are; None where y are plain numbers."""

    @property
    def chunks(self) -> int:
        """How many chunks there are."""

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        """The rows of `chunk` that belong to `split`, all or those of one `part`; there may be none.

        Raises DataError if they cannot be read, IndexError if there is no such chunk or part.
        """

    @property
    def wants_survey(self) -> bool:
        """Whether `statistics` of all chunks have to be added up, and `informed` called, before `read`."""

    def statistics(self, chunk: int) -> dict[str, npt.NDArray[np.float64]]:
        """What adds up over chunks, of the training rows of this one, each name with one shape.

        Raises as `read` does.
        """

    def informed(self, totals: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The source that scales, fills and weighs by these sums of the statistics of all chunks.

        Raises DataError if that is not possible: a column without values, or all rows of one class.
        """

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many rows were left out as yet, by reason."""

    def skipped_in(self, chunk: int, split: Split, part: int | None = None) -> Mapping[str, int]:
        """How many rows were left out when this was read, by reason."""


def open_source(data: DataSettings, *, seed: int, holdout: Holdout, parts: int = 1) -> Source:
    """Open the source that `data` names; `seed` and `holdout` decide which rows are held out.

    Where a column cuts the data, its rows belong to so many `parts`.

    Raises DataError if the source is of no known kind or cannot be opened.
    """
    if data.source == "digits":
        return open_digits(data, seed=seed, holdout=holdout)
    kind = data.format if data.format != "auto" else _format(data.places)
    files = expand(data.source)
    if kind == "csv":
        return open_csv(data, files, seed=seed, holdout=holdout, parts=parts)
    if kind == "libsvm":
        return open_libsvm(data, files, seed=seed, holdout=holdout)
    if kind == "parquet":
        return open_parquet(data, files, seed=seed, holdout=holdout)
    if kind == "npz":
        return open_npz(data, files, seed=seed, holdout=holdout)
    return open_npy(data, files, seed=seed, holdout=holdout)


def _format(places: Sequence[str]) -> str | None:
    """The one format that the names of all files end in."""
    for place in places:
        found, first = format_of(place), format_of(places[0])
        if found is None:
            ends = ", ".join(FORMATS)
            raise DataError(
                place,
                None,
                "no known source; [data] source is digits or the name of a file that ends in "
                f"{ends}, where packed in .gz, .bz2, .xz or .zst after that; or set [data] format",
            )
        if found != first:
            raise DataError(place, None, f"is {found}, but {places[0]} is {first}; take files of one format")
    return format_of(places[0])
