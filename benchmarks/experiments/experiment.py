"""What an experiment is: settings to compare, and how the comparison reads as a table and as a picture."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiments.digits import CLASSES, Order
from benchmarks.experiments.trials import Results, Setting

Table = list[list[str]]
"""Lines of equally many cells, the heading first."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question to the cluster.

    `table` and `draw` take what was measured; `draw` also a matplotlib figure. `order` is that of the rows.
    """

    name: str
    question: str
    settings: Sequence[Setting]
    table: Callable[[Results], Table]
    draw: Callable[[Any, Results], None]
    alt: str
    order: Order = "shuffled"
    seeds: int = 3
    size: tuple[float, float] = (10, 4)


BASE = (
    "model.kind=softmax",
    f"data.classes={json.dumps(CLASSES)}",
    f"data.columns={json.dumps([f'p{number}' for number in range(64)])}",
    "data.chunk-rows=225",
    "eval.every=1 epoch",
    "eval.holdout=0.2",
)
"""What all experiments on digits have in common; eight chunks, equal shares for 1, 2, 4 workers."""
