"""Where a job in progress is shown: drawn on a terminal, as lines elsewhere, or nowhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

from rich.console import Console
from rich.constrain import Constrain
from rich.live import Live

from protocol.status import ClusterStatus
from psctl.display import History, describe, job_status, render
from psctl.figures import printable
from psctl.lines import ProgressLines
from psworker.job import Job

__all__ = ["Say", "Screen", "Show", "console_for", "screen"]

Show = Callable[[ClusterStatus | None], None]
Say = Callable[[str], None]


class Screen(NamedTuple):
    """Where a job in progress is shown.

    ``show`` takes the cluster's status, or None while the cluster starts; ``say`` what has to be read.
    """

    show: Show
    say: Say


_WIDEST: Final = 110  # columns
_WIDE_ENOUGH: Final = 160  # columns of what is no terminal: lines are to be read by programs, not folded
_BESIDES_WORKERS: Final = 13  # lines


def console_for(stream: Literal["stdout", "stderr"]) -> Console:
    """Return a console on a standard stream that writes control characters to terminals only."""
    file = sys.stdout if stream == "stdout" else sys.stderr
    terminal = file.isatty()
    return Console(
        file=file,
        force_terminal=terminal,
        width=None if terminal else _WIDE_ENOUGH,
        highlight=False,
        markup=False,
        emoji=False,
    )


@contextmanager
def screen(job: Job, form: str) -> Iterator[Screen]:
    """Yield where a job's progress is shown.

    With ``form`` "json", standard output is kept for the result: progress is shown on standard error, and
    only if that is a terminal.
    """
    console = console_for("stderr" if form == "json" else "stdout")
    if console.is_terminal and not console.is_dumb_terminal:
        with _live(console, job) as show:
            yield Screen(show, lambda text: console.print(printable(text)))
    elif form == "json":
        yield Screen(lambda status: None, lambda text: print(text, file=sys.stderr, flush=True))
    else:
        yield Screen(_printing(job), lambda text: print(text, flush=True))


@contextmanager
def _live(console: Console, job: Job) -> Iterator[Show]:
    history = History()
    # Log lines passed on appear above; a log that goes to a file stays there.
    with Live(
        console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=sys.stderr.isatty()
    ) as live:

        def show(status: ClusterStatus | None) -> None:
            nonlocal history
            found = job_status(status, job.name) if status is not None else None
            history = history.after(found.progress if found is not None else None)
            most = max(1, console.height - _BESIDES_WORKERS)
            width = min(console.width, _WIDEST)
            drawn = render(status, job, history, most_workers=most, width=width)
            live.update(Constrain(drawn, width), refresh=True)

        yield show


def _printing(job: Job) -> Show:
    lines = ProgressLines(job)

    def show(status: ClusterStatus | None) -> None:
        line = describe(job) if status is None else lines.after(status, time.monotonic())
        if line is not None:
            print(line, flush=True)

    return show
