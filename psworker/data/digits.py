"""scikit-learn's handwritten digits: 1797 pictures of 8 x 8 pixels, 10 classes."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from psworker.data.batch import Batch
from psworker.data.split import Split, rows_of
from psworker.errors import DataError
from psworker.job import DataSettings


@dataclass(frozen=True, slots=True)
class DigitsSource:
    """Chunk i is rows [i * chunk_rows, (i + 1) * chunk_rows) of `examples`."""

    examples: Batch
    chunk_rows: int
    seed: int
    holdout: float
    features: int = 64
    classes: int = 10

    @property
    def chunks(self) -> int:
        """How many chunks there are; the last one may be smaller."""
        return -(-len(self.examples) // self.chunk_rows)

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        """See `Source.read`; no column cuts the data into parts."""
        if part is not None:
            raise IndexError(f"part {part} of a chunk of digits, which has none")
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of digits, which has {self.chunks}")
        start = chunk * self.chunk_rows
        count = min(self.chunk_rows, len(self.examples) - start)
        rows = rows_of(split, count, seed=self.seed, chunk=chunk, holdout=self.holdout)
        return self.examples.take(start + rows)


def open_digits(data: DataSettings, *, seed: int, holdout: float) -> DigitsSource:
    """Load the digits, pixels scaled to 0..1. Raises DataError if scikit-learn is not installed."""
    table = np.loadtxt(_file(), np.int64, delimiter=",")
    examples = Batch(np.ascontiguousarray(table[:, :-1] / 16, np.float32), table[:, -1].copy())
    return DigitsSource(examples, data.chunk_rows, seed, holdout)


def _file() -> Path:
    """Where scikit-learn has the digits. It is not imported: that takes a second, and SciPy with it."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits", None, "needs scikit-learn; pip install 'asyncps[digits]'")
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
