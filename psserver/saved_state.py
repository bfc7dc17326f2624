"""The states of the state machines as plain data, which JSON and msgpack carry, and back, checked.

What is saved of a machine is a dataclass; its annotations say what each field may hold, as in
``protocol.fields``. Text from a disk is believed no more than a peer's.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Annotated, Any, Generic, TypeVar

from protocol.errors import BadRequest
from protocol.fields import decoder, encoder

__all__ = ["AnyNumber", "SavedState", "as_text", "check_once", "check_saved"]

T = TypeVar("T")


def _check_number(value: object, field: str) -> None:
    text: str = value  # type: ignore[assignment]
    try:
        number = float(text)
    except ValueError:
        number = None
    check_saved(number is not None and repr(number) == text, "a number as text", field, text)


AnyNumber = Annotated[str, _check_number]
"""A float as text, for JSON has neither infinity nor NaN, which a diverging model reports."""


def as_text(value: float) -> str:
    """Return a number as ``AnyNumber``."""
    return repr(float(value))


class SavedState(Generic[T]):
    """The plain form of what a machine saves.

    Args:
        cls: the dataclass of it.
    """

    def __init__(self, cls: type[T]) -> None:
        self._to_plain = encoder(cls)
        self._from_plain = decoder(cls)

    def plain(self, saved: T) -> dict[str, Any]:
        """Return what was saved as a map of plain data."""
        return self._to_plain(saved)

    def checked(self, plain: object) -> T:
        """Return what a map of plain data says.

        Raises:
            BadRequest: it is no such map; a field is missing, unknown or of the wrong type.
        """
        check_saved(isinstance(plain, dict), "a map", "state", plain)
        found: T = self._from_plain(dict(plain))  # type: ignore[call-overload]
        return found


def check_saved(sound: bool, what: str, field: str, value: object) -> None:
    """Refuse a state in which ``what`` was expected, and is not.

    Raises:
        BadRequest: it is not ``sound``.
    """
    if not sound:
        raise BadRequest(f"a saved state is not whole: expected {what}", field=field, value=value)


def check_once(values: Collection[Hashable], field: str) -> None:
    """Refuse what comes twice.

    Raises:
        BadRequest: two of ``values`` are equal.
    """
    check_saved(len(set(values)) == len(values), "each once", field, values)
