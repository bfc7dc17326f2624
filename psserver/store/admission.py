"""Which keys get a row: those that were in enough pushes.

How often a key was seen is estimated by a count-min sketch (Cormode and Muthukrishnan 2005) with conservative
update (Estan and Varghese 2002): a few rows of counters, in each of which a key has one, shared with others;
the smallest of them is the estimate, and only those that are smallest are raised. It never is too low, but
for ageing: all counters are halved whenever so many sightings have come that they would begin to fill up
(Einziger, Friedman and Manes, "TinyLFU", 2017).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys, hash_keys

__all__ = ["Admission"]

_ROWS: Final = 4
_COUNTERS: Final = 1 << 22
"""Counters in a row. Four rows are 16 MiB, whatever the number of keys."""

_MOST: Final = 255
_SALT: Final = np.uint64(0xD1B54A32D192ED03)


class Admission:
    """Count sightings of keys that have no row.

    Args:
        after: the sighting at which a key gets its row.
        counters: in each row of the sketch, a power of two.

    Attributes:
        admitted: keys that got rows.
        refused: sightings of keys that got none.
    """

    def __init__(self, after: int, counters: int = _COUNTERS) -> None:
        self._after = after
        self._counts: npt.NDArray[np.uint8] = np.zeros((_ROWS, counters), np.uint8)
        self._sightings = 0
        self.admitted = 0
        self.refused = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the counters."""
        return self._counts.nbytes

    def see(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Count distinct ``keys``; return which of them are to get a row now."""
        self._sightings += keys.size
        places = self._places(keys)
        counts = self._counts[_ROW_NUMBERS, places]
        estimates = np.minimum(counts.min(axis=0), np.uint8(_MOST - 1)) + np.uint8(1)
        np.maximum.at(self._counts, (_ROW_NUMBERS, places), estimates)
        admitted: npt.NDArray[np.bool_] = estimates >= self._after
        number = int(np.count_nonzero(admitted))
        self.admitted += number
        self.refused += keys.size - number
        if self._sightings >= self._counts.shape[1] // 2:
            self._age()
        return admitted

    def _places(self, keys: Keys) -> npt.NDArray[Any]:
        """Return the counters of each key: two hashes make all rows' (Kirsch and Mitzenmacher 2006)."""
        first = hash_keys(keys ^ _SALT)
        second = hash_keys(first ^ _SALT) | np.uint64(1)
        mask = np.uint64(self._counts.shape[1] - 1)
        return (first + _ROW_NUMBERS.astype(np.uint64) * second) & mask

    def _age(self) -> None:
        self._counts >>= 1
        self._sightings //= 2


_ROW_NUMBERS: Final = np.arange(_ROWS)[:, None]
