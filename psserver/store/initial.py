"""What rows begin with: numbers that follow from the table's seed and the row's key alone.

Number ``j`` of a row is made of output ``j`` of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), begun at a hash of seed and key. The functions work on arrays
as on single numbers, by operations that IEEE 754 rounds exactly, in one order: NumPy and compiled code come
to the same bits.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.tables import Keys, Table, hash_keys

__all__ = ["GOLDEN", "KINDS", "Initial", "begin_of", "initial_of", "normal", "uniform", "values"]

Array = npt.NDArray[Any]
Number: TypeAlias = Any
"""An array of float64, or one such number."""

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
KINDS: Final = {"zeros": 0, "uniform": 1, "normal": 2}

_LOW: Final = np.uint64(0xFFFFFFFF)
_LN2: Final = math.log(2.0)
_TURN: Final = 2.0 * math.pi
_2_M53: Final = 2.0**-53
_2_M32: Final = 2.0**-32


class Initial(NamedTuple):
    """A distribution: its number in ``KINDS``, its scale, and a hash of the table's seed."""

    kind: int
    scale: float
    seed: np.uint64


def initial_of(table: Table) -> Initial:
    """Return what the rows of ``table`` begin with."""
    kind = KINDS[table.initial] if table.scale else KINDS["zeros"]
    seed = hash_keys(np.array([table.seed & (2**64 - 1)], np.uint64) + GOLDEN)[0]
    return Initial(kind, float(table.scale), seed)


def begin_of(keys: Keys, initial: Initial) -> Keys:
    """Return where the sequences of ``keys`` begin."""
    return hash_keys(keys ^ initial.seed)


def values(keys: Keys, dim: int, initial: Initial) -> Array:
    """Return the initial rows of ``keys``, (n, dim) float64."""
    if initial.kind == KINDS["zeros"]:
        return np.zeros((keys.size, dim))
    steps = np.arange(1, dim + 1, dtype=np.uint64) * GOLDEN
    random: Keys = hash_keys(begin_of(keys, initial)[:, None] + steps)
    out: Array
    if initial.kind == KINDS["uniform"]:
        out = uniform((random >> np.uint64(11)).astype(np.float64), initial.scale)
    else:
        mantissas, exponents = np.frexp(((random >> np.uint64(32)).astype(np.float64) + 1.0) * _2_M32)
        out = normal(mantissas, exponents, (random & _LOW).astype(np.float64), initial.scale)
    return out


def uniform(bits: Number, bound: float) -> Number:
    """Return a deviate from ``-bound`` to ``bound``, of 53 random bits."""
    return (bits * _2_M53 * 2.0 - 1.0) * bound


def normal(mantissa: Number, exponent: Number, low: Number, std: float) -> Number:
    """Return a normal deviate, of ``u = mantissa * 2 ** exponent`` in (0, 1] and 32 random bits.

    By Box and Muller 1958: ``sqrt(-2 log u) * sin(2 pi v)``. The logarithm is the series of
    ``2 artanh((m - 1) / (m + 1))``, the sine that of Taylor; both are right to 1e-11.
    """
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    series = z * (1.0 / 23.0) + 1.0 / 21.0
    series = series * z + 1.0 / 19.0
    series = series * z + 1.0 / 17.0
    series = series * z + 1.0 / 15.0
    series = series * z + 1.0 / 13.0
    series = series * z + 1.0 / 11.0
    series = series * z + 1.0 / 9.0
    series = series * z + 1.0 / 7.0
    series = series * z + 1.0 / 5.0
    series = series * z + 1.0 / 3.0
    series = series * z + 1.0
    log = exponent * _LN2 + 2.0 * s * series
    radius = np.sqrt(np.maximum(log * -2.0, 0.0))
    x = (np.abs(low * _2_M32 - 0.5) - 0.25) * _TURN
    y = x * x
    sine = y * (-1.0 / 1307674368000.0) + 1.0 / 6227020800.0
    sine = sine * y - 1.0 / 39916800.0
    sine = sine * y + 1.0 / 362880.0
    sine = sine * y - 1.0 / 5040.0
    sine = sine * y + 1.0 / 120.0
    sine = sine * y - 1.0 / 6.0
    sine = sine * y + 1.0
    return radius * (x * sine) * std
