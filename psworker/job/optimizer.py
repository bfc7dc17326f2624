"""[optimizer]: what the servers do with gradients."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from protocol.errors import BadRequest
from protocol.optimizers import OPTIMIZERS, SCHEDULES, Add, Optimizer, Schedule, settings_of
from psworker.errors import JobError
from psworker.job.sections import Keys, written
from psworker.job.values import Settings, Value, text
from psworker.job.wording import kebab, nearest, show

__all__ = ["KEYS", "OptimizerSettings", "optimizer_of", "section"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """The server's optimizer, as `optimizer_of` makes it.

    `settings` are its own and those that all have, `schedule`, and the schedule's own as `schedule_...`.
    """

    name: str = "sgd"
    settings: Settings = (("lr", 0.1),)


KEYS: Final[Keys] = {"name": text}


def section(optimizer: OptimizerSettings) -> dict[str, Any]:
    """The section as it is written."""
    return {"name": optimizer.name, **written(optimizer.settings)}


def optimizer_of(settings: OptimizerSettings) -> Optimizer:
    """The optimizer that a section describes. Raises JobError for one that there is not."""
    given = dict(settings.settings)
    cls = _class_of(OPTIMIZERS, "name", settings.name)
    takes_schedule = cls is not Add
    schedule: type[Schedule] | None = None
    if takes_schedule and "schedule" in given:
        schedule = _class_of(SCHEDULES, "schedule", given.pop("schedule"))
    own = {name: name for name in settings_of(cls)}
    of_schedule = {} if schedule is None else {f"schedule_{name}": name for name in settings_of(schedule)}
    known = [*own, *of_schedule, *(["schedule"] if takes_schedule else [])]
    for name in given:
        if name not in known:
            known = [kebab(name) for name in known]
            raise JobError(
                f'[optimizer] {cls.name} has no setting "{kebab(name)}"{nearest(kebab(name), known)}'
            )
    arguments = _made_of(given, own)
    if schedule is not None:
        arguments["schedule"] = _build(schedule, _made_of(given, of_schedule), of_schedule)
    return _build(cls, arguments, own)


def _class_of(known: Mapping[str, type[_T]], key: str, name: object) -> type[_T]:
    if not isinstance(name, str) or name not in known:
        raise JobError(f"[optimizer] {key} = {show(name)} is none{nearest(str(name), known)}")
    return known[name]


def _made_of(given: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Any]:
    """The arguments whose names in the section are those of `names`."""
    return {name: given[key] for key, name in names.items() if key in given}


def _build(cls: type[_T], arguments: Mapping[str, Any], names: Mapping[str, str]) -> _T:
    keys = {name: kebab(key) for key, name in names.items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in arguments:
            raise JobError(f'[optimizer] has no key "{keys[field.name]}"; the schedule needs it')
    try:
        return cls(**arguments)
    except BadRequest as error:
        shown = show(arguments[error.field])
        raise JobError(f"[optimizer] {keys[error.field]} = {shown}; {error.message}") from error
