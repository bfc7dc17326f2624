"""Optimizer settings, as users write them and as they travel. The arithmetic is the server's.

All are frozen dataclasses of numbers that are checked when they are made: what a peer sends is refused for
the same reasons, and with the same words, as what a user writes. Numbers become floats, so that equal
settings are equal on the wire.
"""

# No postponed annotations here: the types of the fields say how a setting travels.

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from protocol.errors import BadRequest
from protocol.fields import Name

__all__ = [
    "DCSGD",
    "FTRL",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Add",
    "Cosine",
    "Descent",
    "InverseSqrt",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "OptimizerSpec",
    "RMSProp",
    "Schedule",
    "ScheduleSpec",
    "Setting",
    "Step",
    "optimizer_from_spec",
    "settings_of",
    "spec_of",
]

_T = TypeVar("_T")
_Check = Callable[[Any, str], Any]

_MOST_STEPS: Final = 1 << 53
"""Steps up to here are whole numbers as floats, too, which is how they travel."""

_LEAST: Final = 1e-30
"""What is there to keep a division from being one by zero must not be zero as a float32."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of an optimizer or a schedule on the wire."""

    name: Name
    value: float


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A schedule on the wire: its name and its settings."""

    name: Name
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """An optimizer on the wire: its name, its settings, and how its learning rate changes, if it does.

    Settings that every optimizer has do not travel where they are off.
    """

    name: Name
    settings: tuple[Setting, ...]
    schedule: ScheduleSpec | None = None


# --- what a setting may be: each returns the setting as it is kept, or says what was expected


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _learning_rate(value: Any, field: str) -> float:
    if not (_is_number(value) and 0 < value <= sys.float_info.max):
        raise BadRequest("a learning rate is a finite number above 0", field=field, value=value)
    return float(value)


def _not_negative(value: Any, field: str) -> float:
    if not (_is_number(value) and 0 <= value <= sys.float_info.max):
        raise BadRequest("expected a finite number, 0 or more", field=field, value=value)
    return float(value)


def _not_zero(value: Any, field: str) -> float:
    if not (_is_number(value) and _LEAST <= value <= sys.float_info.max):
        raise BadRequest(f"expected a finite number, {_LEAST} or more", field=field, value=value)
    return float(value)


def _below_one(value: Any, field: str) -> float:
    if not (_is_number(value) and 0 <= value < 1):
        raise BadRequest("expected a number from 0 up to, but not including, 1", field=field, value=value)
    return float(value)


def _up_to_one(value: Any, field: str) -> float:
    if not (_is_number(value) and 0 <= value <= 1):
        raise BadRequest("expected a number from 0 to 1", field=field, value=value)
    return float(value)


def _limit(value: Any, field: str) -> float | None:
    if value is None or (_is_number(value) and value == 0):
        return None
    if not (_is_number(value) and 0 < value <= sys.float_info.max):
        raise BadRequest("expected a finite number above 0; 0 or None for no limit", field=field, value=value)
    return float(value)


def _whole(least: int) -> _Check:
    def check(value: Any, field: str) -> int:
        if not (isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST_STEPS):
            raise BadRequest(f"expected a whole number from {least} to 2^53", field=field, value=value)
        return value

    return check


def _truth(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise BadRequest("expected true or false", field=field, value=value)
    return value


def _schedule(value: Any, field: str) -> Any:
    if not (value is None or isinstance(value, Schedule)):
        names = ", ".join(cls.__name__ for cls in SCHEDULES.values())
        raise BadRequest(f"expected None or one of {names}", field=field, value=value)
    return value


_CHECKS: Final[dict[str, _Check]] = {
    "lr": _learning_rate,
    "momentum": _below_one,
    "decay": _below_one,
    "beta1": _below_one,
    "beta2": _below_one,
    "initial": _not_negative,
    "eps": _not_zero,
    "beta": _not_zero,
    "weight_decay": _not_negative,
    "lam": _not_negative,
    "l1": _not_negative,
    "l2": _not_negative,
    "clip_value": _limit,
    "clip_norm": _limit,
    "warmup": _whole(0),
    "scale_by_staleness": _truth,
    "schedule": _schedule,
    "every": _whole(1),
    "steps": _whole(1),
    "factor": _up_to_one,
    "floor": _up_to_one,
}


class _Checked:
    """Makes of each field what its check says, or raises ``BadRequest``."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _CHECKS[field.name](getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)


# --- schedules: what the learning rate is multiplied by in step s, counted from the end of the warm-up


@dataclass(frozen=True, slots=True)
class Step(_Checked):
    """``factor ** (s // every)``: the learning rate falls every so many steps.

    Args:
        every: steps from one fall to the next, 1 or more.
        factor: from 0 to 1.
    """

    name: ClassVar[str] = "step"
    every: int
    factor: float = 0.1


@dataclass(frozen=True, slots=True)
class Cosine(_Checked):
    """``floor + (1 - floor) * (1 + cos(pi * min(s / steps, 1))) / 2`` (Loshchilov and Hutter 2017).

    Args:
        steps: after these many steps the learning rate is the lowest, and stays so; 1 or more.
        floor: the lowest as a part of the learning rate, from 0 to 1.
    """

    name: ClassVar[str] = "cosine"
    steps: int
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class InverseSqrt(_Checked):
    """``sqrt(steps / (steps + s))``; with as many steps of warm-up, that of Vaswani et al. 2017.

    Args:
        steps: after three times these many steps the learning rate is the half; 1 or more.
    """

    name: ClassVar[str] = "inverse-sqrt"
    steps: int = 1


Schedule = Step | Cosine | InverseSqrt
SCHEDULES: Final[dict[str, type[Schedule]]] = {cls.name: cls for cls in (Step, Cosine, InverseSqrt)}


# --- optimizers: p is a parameter, g its gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent(_Checked):
    """What all optimizers that descend along gradients have, beside settings of their own.

    A gradient is clipped first, each number by itself and then the whole; then ``l2 * p + l1 * sign(p)``
    is added.

    Args:
        l1, l2: strengths of the penalties ``l1 * |p|`` and ``l2 * p ** 2 / 2``.
        clip_value: each number of a gradient is kept within ``-clip_value`` to ``clip_value``.
        clip_norm: a gradient that is longer is scaled to this Euclidean length: that of a tensor as a
            whole, and of each row of a table.
        schedule: how the learning rate changes from step to step; None: it does not.
        warmup: in the first ``warmup`` steps the learning rate rises in a line.
        scale_by_staleness: divide the learning rate by the updates that the worker had missed (Zhang et al.
            2016), if they are more than one.
    """

    l1: float = 0.0
    l2: float = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    schedule: Schedule | None = None
    warmup: int = 0
    scale_by_staleness: bool = False


@dataclass(frozen=True, slots=True)
class SGD(Descent):
    """Stochastic gradient descent, ``p <- p - lr * g`` (Robbins and Monro 1951).

    Args:
        lr: learning rate, greater than 0.
    """

    name: ClassVar[str] = "sgd"
    lr: float = 0.01


@dataclass(frozen=True, slots=True)
class Momentum(Descent):
    """Descent with momentum, ``v <- momentum * v + g; p <- p - lr * v`` (Polyak 1964).

    Args:
        lr: learning rate, greater than 0.
        momentum: what is left of ``v`` after a step, from 0 to below 1.
    """

    name: ClassVar[str] = "momentum"
    lr: float = 0.01
    momentum: float = 0.9


@dataclass(frozen=True, slots=True)
class Nesterov(Descent):
    """Nesterov's momentum, ``v <- momentum * v + g; p <- p - lr * (g + momentum * v)`` (Nesterov 1983).

    Args:
        lr: learning rate, greater than 0.
        momentum: what is left of ``v`` after a step, from 0 to below 1.
    """

    name: ClassVar[str] = "nesterov"
    lr: float = 0.01
    momentum: float = 0.9


@dataclass(frozen=True, slots=True)
class Adagrad(Descent):
    """A learning rate for each parameter that falls with its gradients (Duchi, Hazan and Singer 2011).

    ``n <- n + g ** 2; p <- p - lr * g / (sqrt(n) + eps)``

    Args:
        lr: learning rate, greater than 0.
        initial: where ``n`` begins, 0 or more.
        eps: keeps the division from being one by zero.
    """

    name: ClassVar[str] = "adagrad"
    lr: float = 0.01
    initial: float = 0.0
    eps: float = 1e-10


@dataclass(frozen=True, slots=True)
class RMSProp(Descent):
    """Adagrad with a memory that fades (Tieleman and Hinton 2012).

    ``n <- decay * n + (1 - decay) * g ** 2; p <- p - lr * g / (sqrt(n) + eps)``

    Args:
        lr: learning rate, greater than 0.
        decay: what is left of ``n`` after a step, from 0 to below 1.
        eps: keeps the division from being one by zero.
    """

    name: ClassVar[str] = "rmsprop"
    lr: float = 0.01
    decay: float = 0.99
    eps: float = 1e-8


@dataclass(frozen=True, slots=True)
class Adam(Descent):
    """Moments of the gradient, corrected for their beginning at zero (Kingma and Ba 2015).

    ``m <- beta1 * m + (1 - beta1) * g; v <- beta2 * v + (1 - beta2) * g ** 2;
    p <- p - lr * m / (1 - beta1 ** t) / (sqrt(v / (1 - beta2 ** t)) + eps)`` in update ``t`` of the tensor,
    or of the row.

    Args:
        lr: learning rate, greater than 0.
        beta1, beta2: what is left of the moments after a step, from 0 to below 1.
        eps: keeps the division from being one by zero.
    """

    name: ClassVar[str] = "adam"
    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True, slots=True)
class AdamW(Descent):
    """Adam with weight decay that is no part of the gradient (Loshchilov and Hutter 2019).

    The step of ``Adam``, and ``p <- p - lr * weight_decay * p`` with what ``p`` was before it.

    Args:
        lr: learning rate, greater than 0.
        beta1, beta2: what is left of the moments after a step, from 0 to below 1.
        eps: keeps the division from being one by zero.
        weight_decay: 0 or more.
    """

    name: ClassVar[str] = "adamw"
    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class FTRL(Descent):
    """FTRL-proximal, which makes parameters exactly zero (McMahan et al. 2013, algorithm 1).

    ``s = (sqrt(n + g ** 2) - sqrt(n)) / lr; z <- z + g - s * p; n <- n + g ** 2;
    p <- 0 if |z| <= l1, else -(z - sign(z) * l1) / ((beta + sqrt(n)) / lr + l2)``

    Its ``l1`` and ``l2`` are those of this equation: they are not added to the gradient.

    Args:
        lr: alpha in the paper, greater than 0.
        beta: greater than 0.
    """

    name: ClassVar[str] = "ftrl"
    lr: float = 0.1
    beta: float = 1.0


@dataclass(frozen=True, slots=True)
class DCSGD(Descent):
    """Descent that makes up for the gradient's delay (DC-ASGD-c; Zheng et al. 2017).

    ``p <- p - lr * (g + lam * g ** 2 * (p - q))``, where ``q`` is what the worker had read.

    Args:
        lr: learning rate, greater than 0.
        lam: strength of the compensation, 0 or more.
    """

    name: ClassVar[str] = "dcsgd"
    lr: float = 0.01
    lam: float = 0.04


@dataclass(frozen=True, slots=True)
class Add:
    """Plain deltas, ``p <- p + d``."""

    name: ClassVar[str] = "add"


Optimizer = SGD | Momentum | Nesterov | Adagrad | RMSProp | Adam | AdamW | FTRL | DCSGD | Add
OPTIMIZERS: Final[dict[str, type[Optimizer]]] = {
    cls.name: cls for cls in (SGD, Momentum, Nesterov, Adagrad, RMSProp, Adam, AdamW, FTRL, DCSGD, Add)
}

_SHARED: Final = frozenset(field.name for field in dataclasses.fields(Descent))


def settings_of(cls: type[Optimizer] | type[Schedule]) -> tuple[str, ...]:
    """Return the names of the settings of an optimizer or a schedule, but for the schedule itself."""
    return tuple(field.name for field in dataclasses.fields(cls) if field.name != "schedule")


# --- on the wire


def spec_of(optimizer: Optimizer) -> OptimizerSpec:
    """Return the wire form of ``optimizer``.

    Raises:
        BadRequest: it is none, but its name for example.
    """
    if not isinstance(optimizer, Optimizer):
        raise BadRequest(_no_optimizer(optimizer), field="optimizer", value=optimizer)
    schedule = optimizer.schedule if isinstance(optimizer, Descent) else None
    names = settings_of(type(optimizer))
    own = [name for name in names if name not in _SHARED]
    shared = [name for name in names if name in _SHARED and getattr(optimizer, name)]
    return OptimizerSpec(
        optimizer.name,
        _settings(optimizer, [*own, *shared]),
        None
        if schedule is None
        else ScheduleSpec(schedule.name, _settings(schedule, settings_of(type(schedule)))),
    )


def _no_optimizer(value: object) -> str:
    cls = value if isinstance(value, type) else OPTIMIZERS.get(value) if isinstance(value, str) else None
    name = cls.__name__ if cls is not None and issubclass(cls, Optimizer) else SGD.__name__
    return f"pass an optimizer itself, such as psworker.{name}(), and not its name or settings"


def _settings(source: object, names: Iterable[str]) -> tuple[Setting, ...]:
    return tuple(Setting(name, float(getattr(source, name))) for name in names)


def optimizer_from_spec(spec: OptimizerSpec) -> Optimizer:
    """Return the optimizer that ``spec`` describes.

    Raises:
        BadRequest: an unknown optimizer, schedule or setting, or a setting out of its range.
    """
    cls = _known(OPTIMIZERS, spec.name, "optimizer")
    settings = _arguments(cls, spec.name, spec.settings, "optimizer")
    if spec.schedule is not None:
        if cls is Add:
            raise BadRequest(
                "add has no learning rate that changes", field="schedule", value=spec.schedule.name
            )
        settings["schedule"] = _schedule_from_spec(spec.schedule)
    return cls(**settings)


def _schedule_from_spec(spec: ScheduleSpec) -> Schedule:
    cls = _known(SCHEDULES, spec.name, "schedule")
    settings = _arguments(cls, spec.name, spec.settings, "schedule")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in settings:
            raise BadRequest(f"{spec.name} needs this setting", field=field.name, value="(absent)")
    return cls(**settings)


def _known(known: Mapping[str, type[_T]], name: str, field: str) -> type[_T]:
    if name not in known:
        raise BadRequest(f"the {field}s are {', '.join(known)}", field=field, value=name)
    return known[name]


def _arguments(
    cls: type[Optimizer] | type[Schedule], name: str, settings: Iterable[Setting], field: str
) -> dict[str, Any]:
    types = {f.name: f.type for f in dataclasses.fields(cls)}
    known = settings_of(cls)
    for setting in settings:
        if setting.name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise BadRequest(f"unknown setting; {name} has: {names}", field=field, value=setting.name)
    return {setting.name: _as_written(setting.value, types[setting.name]) for setting in settings}


def _as_written(value: float, kind: object) -> float | int | bool:
    """Return a setting as a user writes it; what is none is left as it is, for its check to refuse."""
    if kind is int and value.is_integer():
        return int(value)
    return bool(value) if kind is bool and value in (0.0, 1.0) else value
