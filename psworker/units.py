"""A chunk cut into the batches of its steps, in the order that ``[train] shuffle`` says.

The order follows from the job's seed, the epoch and the chunk alone. So whoever goes on with a chunk of which
others have done a part knows which rows are left, and that is why nothing is ever shuffled beyond a chunk: a
batch of rows of two chunks could not be counted with either.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys
from psworker.data import Batch

__all__ = ["NO_KEYS", "Units", "order_of"]

NO_KEYS: Final[Keys] = np.empty(0, np.uint64)


def order_of(shuffle: str, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return the order in which rows 0 to ``count`` - 1 are taken.

    Args:
        shuffle: ``chunk``, all orders alike; ``window:N``, a random one of the next N rows each time, as with
            a shuffle buffer of N rows; ``none``, as they come.
        count: rows.
        rng: decides.

    Returns:
        (count,): each row once.
    """
    if shuffle == "none":
        return np.arange(count)
    if shuffle == "chunk":
        return rng.permutation(count)
    return _windowed(min(int(shuffle.partition(":")[2]), count), count, rng)


def _windowed(size: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    window = list(range(size))
    order = np.empty(count, np.intp)
    for place, chance in enumerate(rng.random(count)):
        chosen = int(chance * len(window))
        order[place] = window[chosen]
        if size + place < count:
            window[chosen] = size + place
        else:
            window[chosen] = window[-1]
            window.pop()
    return order


class Units:
    """What a chunk's steps are computed on; each unit is one step, and the last one may be smaller.

    Args:
        chunk: the rows.
        order: (len(chunk),), each row once.
        size: rows of a unit, at least 1.

    Attributes:
        size: as given.
    """

    def __init__(self, chunk: Batch, order: npt.NDArray[np.intp], size: int) -> None:
        self._chunk = chunk
        self._order = order
        self.size = size
        self._made: dict[int, Batch] = {}  # the latest: what is looked ahead at is not cut twice

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self.size)

    def __getitem__(self, number: int) -> Batch:
        """Return a unit; those before it need not be kept."""
        made = self._made
        if number not in made:
            start = number * self.size
            made[number] = self._chunk.take(self._order[start : start + self.size])
            for old in [old for old in made if old < number - 2]:
                del made[old]
        return made[number]

    def keys(self, number: int) -> Keys | None:
        """Return the hashed features of a unit, none beyond the last one; None if they are dense."""
        if self._chunk.keys is None:
            return None
        return self[number].keys if number < len(self) else NO_KEYS
