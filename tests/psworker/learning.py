"""Sources for tests of training: rows of hashed features, and rows that want a survey."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from protocol.messages import Plan
from psworker.client import Client
from psworker.data import Batch
from psworker.data.split import Split
from psworker.job import TrainSettings
from psworker.metrics import WorkerMetrics
from psworker.training import Trainer

Array = npt.NDArray[Any]

CHUNKS, ROWS, FEATURES = 4, 9, 12
HELD_OUT = 4  # each fourth row
KEYS = (np.arange(FEATURES, dtype=np.uint64) * np.uint64(1_000_003)) ** np.uint64(2)  # far apart
HELD = sum(row % HELD_OUT == 0 for row in range(CHUNKS * ROWS))
TRAINED = CHUNKS * ROWS - HELD


def table() -> tuple[Array, Array]:
    """All rows: sparse x (rows, features), and labels 0 and 1."""
    rng = np.random.default_rng(7)
    x = rng.random((CHUNKS * ROWS, FEATURES)) * (rng.random((CHUNKS * ROWS, FEATURES)) < 0.3)
    x[:, 0] = 1.0  # no row is empty
    return x.astype(np.float32), (x @ rng.normal(size=FEATURES) > 0).astype(np.int64)


@dataclass(frozen=True)
class Sparse:
    """The table in chunks, its features hashed or dense; or one that is to be surveyed first.

    ``totals`` are what a survey came to; each number of x is then multiplied by their "scale".
    """

    hashed: bool = True
    wants_survey: bool = False
    totals: Mapping[str, Array] | None = None
    weighted: bool = False
    chunks: int = CHUNKS
    classes: int | None = 2
    surveyed: list[int] = field(default_factory=list)
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def features(self) -> int:
        return 0 if self.hashed else FEATURES

    def skipped_in(self, chunk: int, split: Split, part: int | None = None) -> Mapping[str, int]:
        return {}

    def read(self, chunk: int, split: Split, part: int | None = None) -> Batch:
        if self.wants_survey and self.totals is None:
            raise AssertionError("read before it was informed")
        x, y = table()
        rows = self.rows(chunk, split)
        if self.totals is not None:
            x = (x * np.float32(self.totals["scale"][0])).astype(np.float32)
        weight = (1.0 + rows % 3).astype(np.float32) if self.weighted else None
        if not self.hashed:
            return Batch(x[rows], y[rows], None, weight)
        everything = Batch(csr_array(x), y, KEYS).take(rows)
        return Batch(everything.x, everything.y, everything.keys, weight)

    def rows(self, chunk: int, split: Split) -> npt.NDArray[np.intp]:
        rows = np.arange(chunk * ROWS, (chunk + 1) * ROWS)
        held = rows % HELD_OUT == 0
        found: npt.NDArray[np.intp] = rows[held if split == "holdout" else ~held]
        return found

    def statistics(self, chunk: int) -> dict[str, npt.NDArray[np.float64]]:
        self.surveyed.append(chunk)
        rows = self.rows(chunk, "train")
        return {
            "rows": np.bincount(rows, minlength=CHUNKS * ROWS).astype(np.float64),
            "scale": np.array([0.5]),
        }

    def informed(self, totals: Mapping[str, Array]) -> Self:
        return replace(self, totals={name: np.array(value) for name, value in totals.items()})


def plan(epochs: int = 2, *, chunks: int = CHUNKS, **changes: Any) -> Plan:
    return Plan("text", chunks, epochs, 1, 0, **changes)


def trainer(client: Client, model: Any, source: Any, **settings: Any) -> Trainer:
    train = TrainSettings(**{"batch_size": 2} | settings)
    return Trainer(client, model, source, train, seed=0, metrics=WorkerMetrics())
