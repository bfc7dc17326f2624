"""scikit-learn's handwritten digits: 1797 pictures of 8 x 8 pixels, 10 classes."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from psworker.data.batch import Batch
from psworker.data.memory import MemorySource
from psworker.data.split import Holdout
from psworker.errors import DataError
from psworker.job import DataSettings


def open_digits(data: DataSettings, *, seed: int, holdout: Holdout) -> MemorySource:
    """Load the digits, pixels scaled to 0..1. Raises DataError if scikit-learn is not installed."""
    table = np.loadtxt(_file(), np.int64, delimiter=",")
    examples = Batch(np.ascontiguousarray(table[:, :-1] / 16, np.float32), table[:, -1].copy())
    return MemorySource(examples, data.chunk_rows, seed, holdout, classes=10)


def _file() -> Path:
    """Where scikit-learn has the digits. It is not imported: that takes a second, and SciPy with it."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits", None, "needs scikit-learn; pip install 'asyncps[digits]'")
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
