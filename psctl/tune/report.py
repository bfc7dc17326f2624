"""A search as one HTML file that needs nothing else to be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeGuard

from psctl.figures import figure, span
from psctl.page import figure_of, page_of, table_of, write_page
from psctl.svg import scatter
from psctl.tune.display import measured, written
from psctl.tune.search import Trial, best_first
from psworker.job import Value

__all__ = ["NAME", "write_report"]

NAME: Final = "tune.html"
_WIDE: Final = 10.0  # from the least value to the most: times this, and the axis is logarithmic


def write_report(directory: Path, title: str, how: str, trials: Sequence[Trial], measure: str) -> Path:
    """Write the report into ``directory``, which is made if it is not there, and return its path.

    Args:
        directory: of the report.
        title: what was searched.
        how: a line below it.
        trials: one or more.
        measure: of the held-out data.

    Raises:
        OSError: it cannot be written.
    """
    ordered = best_first(list(trials), measure)
    return write_page(directory / NAME, page_of(title, how, _sections(ordered, measure)))


def _sections(ordered: Sequence[Trial], measure: str) -> Iterator[tuple[str, str]]:
    names = list(dict.fromkeys(name for trial in ordered for name in trial.settings))
    rows = [
        (
            *(written(trial.settings[name]) if name in trial.settings else "-" for name in names),
            str(trial.number),
            measured(trial),
            span(trial.seconds),
        )
        for trial in ordered
    ]
    yield "Trials, the best first", table_of((*names, "trial", measure, "time"), rows, texts=len(names))
    diverged = sum(trial.value is None for trial in ordered)
    caption = f"held-out {measure}" + (f"; {diverged} diverged and are left out" if diverged else "")

    def drawn(places: Sequence[float], x_label: str, *, log: bool) -> str:
        points = {
            f"trial {trial.number}": (x, math.nan if trial.value is None else trial.value)
            for trial, x in zip(ordered, places, strict=True)
        }
        best = f"trial {ordered[0].number}"
        title = f"{measure} by {x_label}"
        return figure_of(scatter(title, points, x_label=x_label, show=figure, best=best, log=log), caption)

    yield f"{measure} by trial", drawn([trial.number for trial in ordered], "trial", log=False)
    for name in names:
        places = [value for trial in ordered if _is_number(value := trial.settings.get(name))]
        if len(places) == len(ordered) and len(set(places)) > 1:
            log = 0 < min(places) <= max(places) / _WIDE
            yield f"{measure} by {name}", drawn(places, name, log=log)


def _is_number(value: Value | None) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
