"""Examples that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from psworker.data.batch import Batch
from psworker.data.split import Holdout, Split, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class MemorySource:
    """Chunk i is rows [i * chunk_rows, (i + 1) * chunk_rows) of `examples`; see `Source` for the rest.

    Raises ValueError if there are no examples, or `chunk_rows` is less than 1.
    """

    examples: Batch
    chunk_rows: int
    seed: int = 0
    holdout: Holdout = 0.0
    classes: int | None = None

    def __post_init__(self) -> None:
        if not len(self.examples):
            raise ValueError("there are no examples; give at least one row")
        if self.chunk_rows < 1:
            raise ValueError(f"chunk_rows is {self.chunk_rows}; a chunk has at least 1 row")

    @property
    def features(self) -> int:
        """Columns of a batch's x; 0 if they are hashed."""
        return 0 if self.hashed else int(self.examples.x.shape[1])

    @property
    def hashed(self) -> bool:
        """Whether batches have keys."""
        return self.examples.keys is not None

    @property
    def wants_survey(self) -> bool:
        """False: the examples are taken as they are."""
        return False

    @property
    def skipped(self) -> Mapping[str, int]:
        """Nothing."""
        return {}

    def skipped_in(self, chunk: int, split: Split, part: int | None = None) -> Mapping[str, int]:
        """Nothing."""
        return {}

    @property
    def chunks(self) -> int:
        """How many chunks there are; the last one may be smaller."""
        return -(-len(self.examples) // self.chunk_rows)

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        """See `Source.read`; no column cuts the data into parts."""
        if part is not None:
            raise IndexError(f"part {part} of a chunk of examples in memory, which has none")
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of examples in memory, which have {self.chunks}")
        start = chunk * self.chunk_rows
        count = min(self.chunk_rows, len(self.examples) - start)
        rows = rows_of(split, count, seed=self.seed, chunk=chunk, holdout=self.holdout)
        return self.examples.take(start + rows)

    def statistics(self, chunk: int) -> dict[str, npt.NDArray[np.float64]]:
        """Nothing."""
        return {}

    def informed(self, totals: Mapping[str, npt.NDArray[Any]]) -> Self:
        """This source."""
        return self
