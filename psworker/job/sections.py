"""From the tables of a job file to the arguments of settings, or to what is wrong with a key."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from psworker.errors import JobError
from psworker.job.values import Parser, Settings, Value, setting
from psworker.job.wording import kebab, nearest, show

__all__ = ["Keys", "Section", "closed", "opened", "written"]

Section: TypeAlias = dict[str, Any]
Keys: TypeAlias = Mapping[str, Parser]
"""The keys of a section, and what reads their values."""


def closed(name: str, keys: Keys, document: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a section that has these keys and no others."""
    table: Section = document.get(name, {})
    for key in table:
        if key not in keys:
            raise JobError(f'[{name}] has no key "{key}"{nearest(key, keys)}')
    return {key.replace("-", "_"): _parsed(name, key, value, keys[key]) for key, value in table.items()}


def opened(name: str, keys: Keys, document: Mapping[str, Any]) -> tuple[dict[str, Any], Settings]:
    """The known keys of a section, and the rest of it as settings for someone else to check."""
    table: Section = document.get(name, {})
    mine = {key: _parsed(name, key, table[key], keys[key]) for key in keys if key in table}
    rest: dict[str, Value] = {}
    for key in table.keys() - keys.keys():
        if "_" in key:
            raise JobError(f'[{name}] has no key "{key}"; keys are written "{kebab(key)}"')
        rest[key.replace("-", "_")] = _parsed(name, key, table[key], setting)
    return mine, tuple(sorted(rest.items()))


def written(settings: Settings) -> dict[str, Value]:
    """Settings as the keys of a section."""
    return {kebab(name): value for name, value in settings}


def _parsed(section: str, key: str, value: object, parser: Parser) -> Any:
    try:
        return parser(value)
    except ValueError as error:
        raise JobError(f"[{section}] {key} = {show(value)}; expected {error}") from error
