"""How messages about a job show a value, or a name that nobody knows."""

import difflib
import json
import reprlib
from collections.abc import Iterable

__all__ = ["kebab", "nearest", "show"]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: '; did you mean "epochs"?', or what is known."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1)
    if match:
        return f'; did you mean "{match[0]}"?'
    return f"; known: {', '.join(names)}" if names else "; there are none"


def show(value: object) -> str:
    """A value as it stands in the file, in one line and not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and len(value) <= 80:
        return json.dumps(value, ensure_ascii=False)  # quotes, and escapes control characters
    return reprlib.repr(value)


def kebab(name: str) -> str:
    """A Python name as a key of the file."""
    return name.replace("_", "-")
