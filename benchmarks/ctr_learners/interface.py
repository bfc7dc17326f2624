"""What a learner must offer to be compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.ctr_data import Chunk

MINIBATCH: Final = 4096
"""Examples whose gradients are one step."""

BITS: Final = 22
"""Of the place of a feature, for those that keep weights in an array: 4 million, few share one."""


class Learner(Protocol):
    """Learns segments of the stream one after the other, and is looked at in between.

    Segments are paths of chunks (`ctr_data.read_chunk`). Reading and hashing them is part of the clock.
    """

    def start(self, segments: Sequence[Sequence[Path]], held_out: Chunk) -> float:
        """Get ready, outside the clock; return the seconds that went into writing a format of its own."""

    def learn(self, segment: Sequence[Path]) -> None:
        """Learn from the examples of the next segment; this is what the clock measures."""

    def predict(self) -> npt.NDArray[np.float32]:
        """Return the probability of a click for each held-out example, outside the clock."""

    def stop(self) -> None:
        """End all that was started; may be called whether or not `start` succeeded."""
