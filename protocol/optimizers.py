"""Optimizer settings, as users write them and as they travel. The arithmetic is the server's."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import ClassVar, Final

from protocol.errors import BadRequest
from protocol.fields import Name

__all__ = ["SGD", "Add", "Optimizer", "OptimizerSpec", "optimizer_from_spec", "spec_of"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One optimizer setting on the wire."""

    name: Name
    value: float


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """An optimizer on the wire: its name and its settings."""

    name: Name
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, ``p <- p - lr * g`` (Robbins and Monro 1951).

    Args:
        lr: learning rate, greater than 0.
    """

    name: ClassVar[str] = "sgd"
    lr: float = 0.01

    def __post_init__(self) -> None:
        if not (isinstance(self.lr, int | float) and 0 < self.lr <= sys.float_info.max):
            raise BadRequest("a learning rate is a finite number above 0", field="lr", value=self.lr)


@dataclass(frozen=True, slots=True)
class Add:
    """Plain deltas, ``p <- p + d``."""

    name: ClassVar[str] = "add"


Optimizer = SGD | Add
_KNOWN: Final[dict[str, type[SGD] | type[Add]]] = {cls.name: cls for cls in (SGD, Add)}


def spec_of(optimizer: Optimizer) -> OptimizerSpec:
    """Return the wire form of ``optimizer``."""
    settings = (Setting(f.name, float(getattr(optimizer, f.name))) for f in dataclasses.fields(optimizer))
    return OptimizerSpec(optimizer.name, tuple(settings))


def optimizer_from_spec(spec: OptimizerSpec) -> Optimizer:
    """Return the optimizer that ``spec`` describes.

    Raises:
        BadRequest: an unknown optimizer or setting, or a setting out of its range.
    """
    cls = _KNOWN.get(spec.name)
    if cls is None:
        known = ", ".join(_KNOWN)
        raise BadRequest(f"the optimizers are {known}", field="optimizer", value=spec.name)
    allowed = {f.name for f in dataclasses.fields(cls)}
    for setting in spec.settings:
        if setting.name not in allowed:
            names = ", ".join(sorted(allowed)) or "none"
            raise BadRequest(
                f"unknown setting; {spec.name} has: {names}", field="optimizer", value=setting.name
            )
    return cls(**{setting.name: setting.value for setting in spec.settings})
