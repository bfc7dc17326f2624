"""A search on a screen: trials as they end, those at work, and the table of all at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from psctl.figures import figure, printable, span
from psctl.screen import console_for
from psctl.tables import add, table
from psctl.tune.search import Trial, best_first
from psctl.tune.training import Running
from psworker.job import Value

__all__ = ["Display", "display", "measured", "trial_table", "written"]

_BESIDES_TRIALS: Final = 6  # lines


class Display(NamedTuple):
    """Where a search is shown: ``seen`` takes each trial when it is over, ``look`` draws those at work."""

    seen: Callable[[Trial], None]
    look: Callable[[], None]


def written(value: Value) -> str:
    """Return a value of a setting as a person writes it."""
    match value:
        case str():
            return value
        case float():
            return f"{value:g}"
        case _:
            return json.dumps(value)


def measured(trial: Trial) -> str:
    """Return the value of a trial, with its deviation if it has one."""
    if trial.value is None:
        return "diverged"
    return figure(trial.value) + ("" if trial.deviation is None else f" ± {figure(trial.deviation)}")


def trial_table(trials: Sequence[Trial], measure: str, *, most: int | None = None) -> Table:
    """Return trials, the best first and marked: all, or the ``most`` best."""
    ordered = best_first(list(trials), measure)
    names = list(dict.fromkeys(name for trial in ordered for name in trial.settings))
    drawn = table(
        ">trial", *(f">{printable(name)}" for name in names), f">{printable(measure)}", ">time", "<"
    )
    for place, trial in enumerate(ordered[:most]):
        best = place == 0 and trial.value is not None
        values = (written(trial.settings[name]) if name in trial.settings else "-" for name in names)
        cells = (str(trial.number), *values, measured(trial), span(trial.seconds), "best" if best else "")
        add(drawn, *cells, style="bold green" if best else "dim" if trial.value is None else "")
    return drawn


@contextmanager
def display(form: str, measure: str, total: int, running: Mapping[int, Running]) -> Iterator[Display]:
    """Yield where a search of at most ``total`` trials is shown.

    With ``form`` "json", standard output is kept for the result: the search is shown on standard error, and
    only if that is a terminal.
    """
    console = console_for("stderr" if form == "json" else "stdout")
    if console.is_terminal and not console.is_dumb_terminal:
        over: list[Trial] = []
        # Log lines passed on appear above; a log that goes to a file stays there.
        with Live(
            console=console, auto_refresh=False, redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(), transient=True,
        ) as live:  # fmt: skip

            def look() -> None:
                at_work = sorted(running.values(), key=lambda one: one.number)
                most = max(1, console.height - _BESIDES_TRIALS - len(at_work))
                live.update(_drawn(over, at_work, measure, total, most), refresh=True)

            yield Display(over.append, look)
    elif form == "json":
        yield Display(lambda trial: None, lambda: None)
    else:
        yield Display(lambda trial: print(_line(trial, measure, total), flush=True), lambda: None)


def _drawn(
    over: Sequence[Trial], at_work: Sequence[Running], measure: str, total: int, most: int
) -> RenderableType:
    heading = Text(f"{len(over)} of {total} trials", style="bold")
    lines = (Text(_at_work(one), style="dim", no_wrap=True, overflow="ellipsis") for one in at_work)
    done = (trial_table(over, measure, most=most), Text("")) if over else ()
    return Group(heading, Text(""), *done, *lines)


def _at_work(running: Running) -> str:
    progress = running.recording.progress
    fold = f", fold {running.fold}" if running.fold else ""
    where = (
        "starting"
        if progress is None
        else f"epoch {progress.epoch}/{progress.epochs}, training loss {figure(progress.train_loss)}"
    )
    return f"trial {running.number}{fold}: {_settings(dict(running.settings))}: {where}"


def _line(trial: Trial, measure: str, total: int) -> str:
    value = measured(trial) if trial.value is None else f"{printable(measure)} {measured(trial)}"
    return f"trial {trial.number}/{total}: {_settings(trial.settings)}: {value} in {span(trial.seconds)}"


def _settings(settings: Mapping[str, Value]) -> str:
    return printable(", ".join(f"{name}={written(value)}" for name, value in settings.items()))
