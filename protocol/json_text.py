"""Dataclasses as one line of JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

__all__ = ["json_text"]


def json_text(value: Any) -> str:
    """Return a dataclass as strict JSON; infinity is ``"inf"``, as in a job file, and NaN is null."""
    return json.dumps(_strict(dataclasses.asdict(value)), allow_nan=False)


def _strict(value: Any) -> Any:
    match value:
        case dict():
            return {key: _strict(item) for key, item in value.items()}
        case list() | tuple():
            return [_strict(item) for item in value]
        case float() if math.isnan(value):
            return None
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case _:
            return value
