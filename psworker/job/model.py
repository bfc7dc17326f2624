"""[model]: what is trained."""

from dataclasses import dataclass
from typing import Any, Final

from psworker.job.sections import Keys, written
from psworker.job.values import Settings, text

__all__ = ["KEYS", "ModelSettings", "section"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`kind` is a built-in model or "package.module:Class"; `settings` go to its constructor."""

    kind: str
    settings: Settings = ()


KEYS: Final[Keys] = {"kind": text}


def section(model: ModelSettings) -> dict[str, Any]:
    """The section as it is written."""
    return {"kind": model.kind, **written(model.settings)}
