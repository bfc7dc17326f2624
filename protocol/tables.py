"""What a sparse table is: rows of numbers by 64-bit keys, made when they are first pushed to.

A key's place among the shards, and the value that its row begins with, follow from the key alone (and the
table's seed), so they are the same whatever the number of shards or the order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import BadRequest
from protocol.fields import Name, check_positive

__all__ = [
    "CODINGS",
    "HASHED",
    "HASH_SLOTS",
    "KEY_CACHE",
    "KNOWN_FROM",
    "MAX_DIM",
    "MAX_KEYS",
    "VALUES",
    "Initial",
    "Keys",
    "Normal",
    "Rows",
    "Table",
    "Uniform",
    "Zeros",
    "hash_keys",
    "hash_slots",
]

Keys = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

HASH_SLOTS: Final = 1 << 14
"""Keys go to shards by these many slots: a table's block is a range of them."""

HASHED: Final = 1 << 14
"""Keys that are best hashed at a time: their temporaries stay in a core's own cache, in half the time."""

MAX_DIM: Final = 1 << 16
MAX_KEYS: Final = 1 << 28
"""Keys of one table in one request at most."""

VALUES: Final = ("float16", "bfloat16", "float32", "float64")
"""What the numbers of rows may travel as; bfloat16 as the upper halves of float32."""

CODINGS: Final = ("raw", "delta8", "delta16", "delta32", "known")
"""How the keys of rows may be in a payload, ``known`` being not at all."""

KNOWN_FROM: Final = 64
"""Keys that a list must have to be named by its digest later; a server need not remember shorter ones."""

KEY_CACHE: Final = 32 * 1024 * 1024
"""Bytes of such lists, 8 a key, that a server remembers of a connection: those that were sent or named last.
A client names what is among the last half of that, so that the two need not agree to the byte."""

_SHIFT: Final = np.uint64(64 - HASH_SLOTS.bit_length() + 1)


def hash_keys(keys: Keys) -> Keys:
    """Return the 64-bit hashes of keys: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = keys ^ (keys >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_slots(keys: Keys) -> Keys:
    """Return the slot of each key, below ``HASH_SLOTS``: the highest bits of its hash."""
    return hash_keys(keys) >> _SHIFT


@dataclass(frozen=True, slots=True)
class Zeros:
    """Rows begin with zeros."""


@dataclass(frozen=True, slots=True)
class Normal:
    """Rows begin with normal deviates of mean 0 and standard deviation ``std``."""

    std: float = 0.01


@dataclass(frozen=True, slots=True)
class Uniform:
    """Rows begin with uniform deviates from ``-bound`` to ``bound``."""

    bound: float = 0.01


Initial = Zeros | Normal | Uniform

_INITIALS: Final = ("zeros", "normal", "uniform")


def _one_of(*values: str) -> Callable[[object, str], None]:
    def check(value: object, field: str) -> None:
        if value not in values:
            raise BadRequest(f"expected one of {', '.join(values)}", field=field, value=value)

    return check


def _check_scale(value: object, field: str) -> None:
    scale: float = value  # type: ignore[assignment]
    if not 0 <= scale <= 1e30:
        raise BadRequest("expected a number from 0 to 1e30", field=field, value=scale)


def _check_seconds(value: object, field: str) -> None:
    seconds: float = value  # type: ignore[assignment]
    if not 0 <= seconds < math.inf:
        raise BadRequest("expected seconds, 0 or more", field=field, value=seconds)


def _at_most(most: int) -> Callable[[object, str], None]:
    def check(value: object, field: str) -> None:
        number: int = value  # type: ignore[assignment]
        if number > most:
            raise BadRequest(f"at most {most} are possible", field=field, value=number)

    return check


def _check_digest(value: object, field: str) -> None:
    text: str = value  # type: ignore[assignment]
    if len(text) != 32 or not all(digit in "0123456789abcdef" for digit in text):
        raise BadRequest("expected 32 hexadecimal digits", field=field, value=text)


Dim = Annotated[int, check_positive, _at_most(MAX_DIM)]
InitialName = Annotated[str, _one_of(*_INITIALS)]
Scale = Annotated[float, _check_scale]
Admission = Annotated[int, check_positive, _at_most(255)]
Seconds = Annotated[float, _check_seconds]
KeyCount = Annotated[int, _at_most(MAX_KEYS)]
Digest = Annotated[str, _check_digest]
Coding = Annotated[str, _one_of(*CODINGS)]
Values = Annotated[str, _one_of(*VALUES)]


@dataclass(frozen=True, slots=True)
class Table:
    """What makes a tensor a sparse table.

    Attributes:
        dim: numbers in a row.
        initial: what rows begin with: ``zeros``, ``normal`` or ``uniform``.
        scale: the standard deviation, or the bound.
        seed: of the initial values.
        admit_after: pushes that a key must have been in for its row to be made; earlier ones are dropped.
        expire_after: seconds after which a row that nobody has pushed or pulled is dropped; 0: never.
        capacity: rows, on all shards together, beyond which the least used are dropped; 0: as many as come.
    """

    dim: Dim
    initial: InitialName = "zeros"
    scale: Scale = 0.0
    seed: int = 0
    admit_after: Admission = 1
    expire_after: Seconds = 0.0
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table in a request.

    Attributes:
        name: the table's.
        keys: how many.
        digest: XXH3-128 of the keys as little-endian numbers, by which a server knows them again.
        coding: how the keys are in the payload: ``raw``, ``delta8``, ``delta16``, ``delta32``, or ``known``:
            not at all, for they were in a request before.
        values: the dtype in which the rows' numbers travel; ``bfloat16`` as the upper halves of float32.
    """

    name: Name
    keys: KeyCount
    digest: Digest
    coding: Coding
    values: Values
