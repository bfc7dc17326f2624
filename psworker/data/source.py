"""Where training examples come from: one interface, chosen by name or file extension."""

from pathlib import PurePath
from typing import Protocol

from psworker.data.batch import Batch
from psworker.data.csv import open_csv
from psworker.data.digits import open_digits
from psworker.data.libsvm import open_libsvm
from psworker.data.split import Split
from psworker.errors import DataError
from psworker.job import DataSettings


class Source(Protocol):
    """Examples in chunks, which can be read in any order, any number of times, by any worker."""

    @property
    def features(self) -> int:
        """Columns of a batch's x."""

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


def open_source(data: DataSettings, *, seed: int, holdout: float, parts: int = 1) -> Source:
    """Open the source that `data` names; `seed` and `holdout` decide which rows are held out.

    Where a column cuts the data, its rows belong to so many `parts`.

    Raises DataError if the source is of no known kind or cannot be opened.
    """
    extension = PurePath(data.source).suffix.lower()
    if data.source == "digits":
        return open_digits(data, seed=seed, holdout=holdout)
    if extension == ".csv":
        return open_csv(data, seed=seed, holdout=holdout, parts=parts)
    if extension in (".libsvm", ".svm", ".svmlight"):
        return open_libsvm(data, seed=seed, holdout=holdout)
    raise DataError(
        data.source,
        None,
        "no known source; [data] source is digits or the name of a file that ends in "
        ".csv, .libsvm, .svm or .svmlight",
    )
