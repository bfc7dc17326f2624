"""One JSON object a line, as a CSV file would have its columns, so that one reader does for both."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

__all__ = ["cells_of", "csv_line"]


def cells_of(text: str, names: Sequence[str]) -> list[str]:
    """What an object has under these names; "" for what it has not. Raises ValueError if it is no object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {text[:80]!r} ({error}); write one object a line") from error
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object: {text[:80]!r}; write one object a line")  # noqa: TRY004
    return [_cell(found.get(name)) for name in names]


def csv_line(cells: Sequence[str], separator: str = ",") -> str:
    """The cells as a line of a CSV file, without its end."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="").writerow(cells)
    return text.getvalue()


def _cell(value: object) -> str:
    """A value of JSON as a CSV file would have it; lists and objects are left to be refused."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return " ".join(value.splitlines())
    return str(value)
