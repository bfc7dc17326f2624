"""Whether the settings of a model make sense."""

import math


def check_not_negative(name: str, value: object) -> None:
    """Raise ValueError unless the setting `name` is a finite number of at least 0."""
    if not _is_number(value) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; expected a finite number, at least 0")


def check_above_zero(name: str, value: object) -> None:
    """Raise ValueError unless the setting `name` is a finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the setting `name` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number, at least 1")


def check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError unless the setting `name` is one of the texts `known`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
