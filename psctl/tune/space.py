"""What is searched: settings of a job, and which values each of them may take. Pure.

``--try`` is read here: ``SECTION.KEY=`` and a list or a range.

=========================  ==================================================================
``16,64,256``, ``sgd,adam``  each of these, read as in a job file
``0.1..1``                   any number between them, evenly
``0.01..1:log``              any number between them, its logarithm evenly
``1..8:int``                 any whole number between them; ``1..1000:int:log``, too
``0.01..1:log:5``            five of them, the ends included: a list
=========================  ==================================================================
"""

from __future__ import annotations

import json
import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from protocol.errors import BadRequest
from psworker.job import Value

__all__ = ["Choices", "Dimension", "Range", "Settings", "Space", "draw", "ends", "overrides", "space_of"]

Settings: TypeAlias = "tuple[tuple[str, Value], ...]"
"""``section.key`` and value of each setting that is tried, in the order in which they were given."""

_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE: Final = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::\w+)*)")
_MOST_POINTS: Final = 1000
_DIGITS: Final = 4  # of a number that is drawn: a table shows what was trained with, and all of it


@dataclass(frozen=True, slots=True)
class Choices:
    """One of a list of values, all different."""

    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number from ``low`` to ``high``, ``low`` < ``high``; with ``log`` both are above 0."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float | int:
        """Return the value at a ``share`` in [0, 1] of the range, of four digits or a whole number."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return self.rounded(value)

    def rounded(self, value: float) -> float | int:
        """Return a value of the range as it is trained with."""
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


Dimension: TypeAlias = Choices | Range
Space: TypeAlias = Mapping[str, Dimension]
"""By ``section.key``."""


def space_of(tries: Sequence[str]) -> dict[str, Dimension]:
    """Return what ``--try`` says, each as ``section.key=values``.

    Raises:
        BadRequest: one of them cannot be read, or two are of the same setting.
    """
    space: dict[str, Dimension] = {}
    for text in tries:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not re.fullmatch(r"[\w-]+\.[\w-]+", name):
            raise _wrong(text, "expected section.key=values, as in optimizer.lr=0.01..1:log")
        if name in space:
            raise _wrong(text, f"{name} is tried twice; give all its values in one --try")
        space[name] = _dimension(text, values)
    return space


def draw(dimension: Dimension, randomness: random.Random) -> Value:
    """Return a value, all being as likely."""
    if isinstance(dimension, Choices):
        return randomness.choice(dimension.values)
    if dimension.whole and not dimension.log:
        return randomness.randint(round(dimension.low), round(dimension.high))
    return dimension.at(randomness.random())


def ends(dimension: Dimension) -> tuple[Value, ...]:
    """Return the values that have to be allowed for all to be: those of a list, or both ends."""
    return dimension.values if isinstance(dimension, Choices) else (dimension.at(0.0), dimension.at(1.0))


def overrides(settings: Settings) -> tuple[str, ...]:
    """Return settings as ``--set`` takes them."""
    return tuple(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings)


def _dimension(text: str, values: str) -> Dimension:
    match = _RANGE.fullmatch(values)
    if match is None:
        return _choices(text, _listed(values))
    low, high, marks = float(match[1]), float(match[2]), match[3].split(":")[1:]
    points = [int(mark) for mark in marks if mark.isdecimal()]
    words = [mark for mark in marks if not mark.isdecimal()]
    if set(words) - {"log", "int"} or len(points) > 1 or len(set(words)) < len(words):
        raise _wrong(text, "a range is low..high, and after it :log, :int or a number of points, as in :5")
    log, whole = "log" in words, "int" in words
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        raise _wrong(text, "a range goes up, and with :log from above 0")
    if whole and not (low.is_integer() and high.is_integer()):
        raise _wrong(text, "with :int both ends are whole numbers")
    found = Range(low, high, log, whole)
    if not points:
        return found
    if not 2 <= points[0] <= _MOST_POINTS:
        raise _wrong(text, f"from 2 to {_MOST_POINTS} points can be tried")
    return Choices(tuple(dict.fromkeys(found.at(n / (points[0] - 1)) for n in range(points[0]))))


def _choices(text: str, values: Sequence[Value]) -> Choices:
    if not values or "" in values:
        raise _wrong(text, "a value is empty; give values with commas between them, or a range low..high")
    if len(set(values)) < len(values):
        raise _wrong(text, "a value is there twice")
    return Choices(tuple(values))


def _listed(text: str) -> list[Value]:
    """Return values with commas between them: TOML, or, where one of them is no TOML, texts and TOML."""
    try:
        return [_frozen(value) for value in tomllib.loads(f"values = [{text}]")["values"]]
    except ValueError:
        return [_value(part.strip()) for part in text.split(",")]


def _value(text: str) -> Value:
    try:
        return _frozen(tomllib.loads(f"value = {text}")["value"])
    except ValueError:
        return text


def _frozen(value: object) -> Value:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)  # "inf", as a job file has it, or a date, which no job has


def _wrong(text: str, message: str) -> BadRequest:
    return BadRequest(message, field="--try", value=text)
