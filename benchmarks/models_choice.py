"""The settings that were chosen for each case on validation rows, and the file that keeps them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from benchmarks.models_cases import Axes, Case

CHOSEN = Path(__file__).with_name("models_chosen.json")

Settings = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings of `Case.both`, `Case.theirs` and `Case.ours`."""

    both: Settings = field(default_factory=dict)
    theirs: Settings = field(default_factory=dict)
    ours: Settings = field(default_factory=dict)


def combinations(axes: Axes) -> Iterator[Settings]:
    """Return every combination of the values."""
    return (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def read_choice(case: Case, path: Path = CHOSEN) -> Choice:
    """Return what was chosen for the case.

    Raises ValueError where nothing was, or for other settings than it has now.
    """
    chosen = _read(path).get(_key(case))
    axes = {"both": case.both, "theirs": case.theirs, "ours": case.ours}
    if chosen is None or any(chosen[name].keys() != tried.keys() for name, tried in axes.items()):
        raise ValueError(f"{path.name} has no settings for {_key(case)}; choose them with --choose")
    return Choice(**chosen)


def write_choice(case: Case, choice: Choice, path: Path = CHOSEN) -> None:
    """Keep what was chosen for the case beside what was for others."""
    every = _read(path) | {_key(case): asdict(choice)}
    lines = (f"  {json.dumps(key)}: {json.dumps(every[key])}" for key in sorted(every))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _read(path: Path) -> dict[str, dict[str, Settings]]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _key(case: Case) -> str:
    return f"{case.label} on {case.data}"
