"""Scores of a network: layers of linear maps, with a nonlinearity between each two."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from psworker.data.batch import Batch
from psworker.models.penalty import penalty
from psworker.models.scored import Array, Forward, Parameters, Scored, Share


class LayerScores(Scored):
    """h_0 = x, h_i = f(h_i-1 w_i-1 + b_i-1), z = h_L w_L + b_L with L hidden layers of `hidden` units.

    f is max(0, a) ("relu") or tanh. The way back is the chain rule (Rumelhart, Hinton and Williams 1986),
    with f' as a function of f: 1 where h > 0, or 1 - h^2. Parameters, float32: w0, b0, w1, ... of shapes
    (inputs, outputs) and (outputs,); biases from zero, weights from normal deviates of variance 2 / inputs
    for "relu" (He et al., "Delving deep into rectifiers", 2015) and 1 / inputs for "tanh" (LeCun et al.,
    "Efficient backprop", 1998), the same for the same seed. The penalty is l2/2 sum |w_i|^2.
    """

    __slots__ = ()
    features: int
    hidden: tuple[int, ...]
    activation: str
    l2: float
    seed: int

    @property
    def outputs(self) -> int | None:
        """How many scores there are; None: one, without an axis of its own."""
        return None

    def parameters(self) -> dict[str, Array]:
        """See `Model.parameters`."""
        rng = np.random.default_rng(self.seed)
        gain = 2.0 if self.activation == "relu" else 1.0
        widths = (self.features, *self.hidden, self.outputs or 1)
        found: dict[str, Array] = {}
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            deviates = rng.normal(0.0, np.sqrt(gain / max(inputs, 1)), (inputs, outputs))
            found[f"w{number}"] = deviates.astype(np.float32)
            found[f"b{number}"] = np.zeros(outputs, np.float32)
        return found

    def forward(self, parameters: Parameters, batch: Batch) -> Forward:
        """See `Scored.forward`."""
        layers = [batch.x]
        for number in range(len(self.hidden)):
            layers.append(self._activated(_mapped(layers[-1], parameters, number)))
        last = len(self.hidden)

        def back(slopes: Array) -> dict[str, Array]:
            found: dict[str, Array] = {}
            towards = slopes if slopes.ndim == 2 else slopes[:, np.newaxis]
            for number in range(last, -1, -1):
                found[f"w{number}"] = layers[number].T @ towards
                found[f"b{number}"] = towards.sum(axis=0)
                if number:
                    towards = (towards @ parameters[f"w{number}"].T) * self._slope(layers[number])
            return found

        z = _mapped(layers[last], parameters, last)
        return (z[:, 0] if self.outputs is None else z), back

    def penalised(self, parameters: Parameters, batch: Batch, share: Share) -> tuple[float, dict[str, Array]]:
        """See `Scored.penalised`."""
        return penalty(self.l2, parameters, [f"w{number}" for number in range(len(self.hidden) + 1)])

    def _activated(self, a: Array) -> Array:
        return np.asarray(np.maximum(a, 0) if self.activation == "relu" else np.tanh(a))

    def _slope(self, h: Array) -> Array:
        return np.asarray((h > 0).astype(h.dtype) if self.activation == "relu" else 1 - h**2)


def _mapped(h: Array, parameters: Parameters, number: int) -> Array:
    return np.asarray(h @ parameters[f"w{number}"] + parameters[f"b{number}"])
