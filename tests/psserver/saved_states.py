"""What a saved state goes through on its way to a disk and back, and what may have become of it there."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from protocol.errors import BadRequest

_WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 1 << 63, 1.5, math.nan, -math.inf, "", "inf", "nan", "x", "../x", "train", b"x",
    [], [[]], [1], [1, 1], ["x", None], {}, {"last": 1},
)  # fmt: skip


def through_json(state: Any) -> Any:
    """Return a state as it is after it was written to a file and read again."""
    again = json.loads(json.dumps(state, allow_nan=False))
    assert again == state  # no tuples, no keys but texts
    return again


def damaged(state: Any) -> Iterator[tuple[str, Any]]:
    """Yield the state with each piece of it left out, added to, and replaced by what it cannot be."""
    for path in _paths(state):
        for wrong in _WRONG:
            yield f"{path} = {wrong!r}", _changed(state, path, partial(_put, copy.deepcopy(wrong)))
        if path:
            yield f"{path} left out", _changed(state, path, lambda holder, key: holder.pop(key))
    yield "one more field", {**state, "surplus": 1}


def _put(value: Any, holder: Any, key: Any) -> None:
    holder[key] = value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _paths(one, (*path, key))


def _changed(state: Any, path: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    around = [copy.deepcopy(state)]
    holder: Any = around
    for key in (0, *path)[:-1]:
        holder = holder[key]
    change(holder, (0, *path)[-1])
    return around[0]


def assert_damage_is_refused(state: Any, take_up: Callable[[Any], Any], *, at_least: int) -> None:
    """Whatever has become of a state, it is refused by name, or it is one that could have been saved.

    Args:
        state: a sound one.
        take_up: restores a machine and returns the state of that.
        at_least: of the damaged ones are refused.
    """
    fields = []
    for what, wrong in damaged(state):
        try:
            taken = take_up(wrong)
        except BadRequest as error:
            fields.append(error.field)
        else:
            assert take_up(through_json(taken)) == taken, what
    assert all(fields)
    assert len(fields) >= at_least
