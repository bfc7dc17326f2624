"""The weighted mean of gradients of a table's rows, ``sum(w_i * g_i) / sum(w_i)``.

A row that a worker has nothing for counts as zeros there. What is kept is keys and gradients one after the
other, repeated keys and all; the update sums them.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np

from psserver.store.sparse import RowsGradient

__all__ = ["RowsMean"]


class RowsMean:
    """As ``psserver.store.dense.StepMean``, for rows. Weights are kept relative to the first."""

    __slots__ = ("_frozen", "_pieces", "_relative", "_unit")

    def __init__(self, gradient: RowsGradient, weight: float, relative: float = 1.0) -> None:
        self._pieces = [gradient]
        self._unit = weight
        self._relative = relative
        self._frozen = False

    def freeze(self) -> tuple[RowsGradient, float, float]:
        """Return sum, unit and relative weight, to make the same mean of; the sum changes no more."""
        self._frozen = True
        return self.peek()

    def peek(self) -> tuple[RowsGradient, float, float]:
        """Return the same as ``freeze``; the sum does change when the result is computed."""
        if len(self._pieces) > 1:
            keys = np.concatenate([piece.keys for piece in self._pieces])
            values = np.concatenate([piece.values for piece in self._pieces])
            self._pieces = [RowsGradient(keys, values)]
        return self._pieces[0], self._unit, self._relative

    async def add(self, gradient: RowsGradient, weight: float, _: Executor) -> None:
        """Count another gradient in; its memory may be spoilt."""
        ratio = weight / self._unit
        if ratio != 1.0:
            np.multiply(gradient.values, ratio, out=gradient.values)
        self._pieces.append(gradient)
        self._relative += ratio

    async def merge(self, other: RowsMean, _: Executor) -> None:
        """Count another mean's gradients in; it is as before."""
        ratio = other._unit / self._unit
        for piece in other._pieces:
            values = piece.values if ratio == 1.0 and not other._frozen else piece.values * ratio
            self._pieces.append(RowsGradient(piece.keys, values))
        self._relative += ratio * other._relative

    async def result(self, _: Executor, *, summed: bool = False) -> RowsGradient:
        """Return the mean, in memory that is the caller's; or, where all weights were 1, the sum."""
        frozen = self._frozen and len(self._pieces) == 1
        total, _unit, relative = self.peek()
        factor = 1.0 if summed else 1.0 / relative
        if factor == 1.0 and not frozen:
            return total
        out = np.empty_like(total.values) if frozen else total.values
        return RowsGradient(total.keys, np.multiply(total.values, factor, out=out))
