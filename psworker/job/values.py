"""Parsers of one value of a job.

What they raise says what was expected; their caller adds where, and what it was.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from protocol.errors import BadRequest
from protocol.fields import check_name

__all__ = ["Parser", "Settings", "Value", "identifier", "integer", "setting", "text", "texts"]

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"
Settings: TypeAlias = tuple[tuple[str, Value], ...]
"""Open-ended settings, sorted by name; names are in snake_case, as Python takes them."""

Parser: TypeAlias = Callable[[object], Any]
"""Returns the value as settings have it, or raises ValueError with what was expected."""


def integer(low: int, high: int = 2**63 - 1) -> Parser:
    """The parser of a whole number within these limits."""
    expected = f"a whole number from {low} to {high}" if low != 1 else "a whole number, at least 1"

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def text(value: object) -> str:
    """A text that can be a name of something."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text that is not empty and has no NUL character")
    return value


def identifier(value: object) -> str:
    """A name as the protocol takes it."""
    written = text(value)
    try:
        check_name(written, "name")
    except BadRequest as error:
        raise ValueError(f"a name; {error.message}") from error
    return written


def texts(value: object) -> tuple[str, ...]:
    """A list of texts that are all different."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError('a list of texts, as in ["a", "b"]')
    if len(set(value)) != len(value):
        raise ValueError("a list without repetitions")
    return tuple(value)


def setting(value: object) -> Value:
    """A value that is for somebody else to check: a model or an optimizer."""
    if isinstance(value, list):
        return tuple(setting(item) for item in value)
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("a finite number, a text, true, false, or a list of these")
