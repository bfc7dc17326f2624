"""A job in progress, as a person on a terminal sees it. Pure: a status in, something to draw out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protocol.status import ClusterStatus, JobStatus, Progress, WorkerStatus
from psctl.figures import count, figure, plural, printable, span, togetherness
from psctl.waits import felt, sentence
from psctl.workers import by_name, live_first
from psworker.job import Job

__all__ = ["History", "describe", "job_status", "render", "sparkline", "time_left"]

_CURVE: Final = 40  # columns of a loss curve
_BAR: Final = 24  # columns of a bar where there is room
_LEAST_BAR: Final = 6  # columns; a shorter bar says nothing
_BESIDE_BAR: Final = 80  # columns of a worker's row; where there are more, they are for its bar
_LONE_BAR: Final = 60  # columns of the whole's bar if it has a line of its own
_NAME: Final = 18  # columns of a name
_LEVELS: Final = "▁▂▃▄▅▆▇█"

_STATES: Final = {
    "waiting": ("waiting", "dim"),
    "suspect": ("suspect", "yellow"),
    "left": ("done", "green"),
    "dead": ("dead", "bold red"),
}


@dataclass(frozen=True, slots=True)
class History:
    """The training loss as it fell: (share of the job done, loss), as many as a curve has columns at most."""

    losses: tuple[tuple[float, float], ...] = ()

    def after(self, progress: Progress | None) -> Self:
        """Return the history with one more look at the job's progress."""
        if progress is None or progress.train_loss is None:
            return self
        look = (_done(progress), progress.train_loss)
        before = self.losses
        if before and _column(before[-1][0]) == _column(look[0]):
            before = before[:-1]
        return type(self)((*before, look))


def job_status(status: ClusterStatus, name: str) -> JobStatus | None:
    """Return what the status says of a job; None while no worker has joined it."""
    return next((job for job in status.jobs if job.name == name), None)


def render(
    status: ClusterStatus | None, job: Job, history: History, *, most_workers: int, width: int
) -> RenderableType:
    """Return a job in progress: bars of the whole and of each worker, and how the loss falls.

    Args:
        status: of the cluster; None while it starts.
        job: what is trained.
        history: of the statuses so far, this one included.
        most_workers: workers shown, the live ones first; the others are counted.
        width: columns there are. Where they are few, figures go before bars.
    """
    shown = job_status(status, job.name) if status is not None else None
    heading = Text(describe(job, shown), style="bold")
    if status is None:
        return Group(heading, Text("starting the servers ...", style="dim"))
    if shown is None or shown.progress is None or all(w.state == "waiting" for w in shown.workers):
        joined = len(shown.workers) if shown is not None else 0
        return Group(
            heading, Text(f"{joined} of {plural(job.train.workers, 'worker')} joined ...", style="dim")
        )
    bar = _bar_width(width - _BESIDE_BAR)
    return Group(
        heading,
        Text(""),
        _overall(shown.progress, bar),
        *([] if bar else [_lone_bar(shown.progress, width)]),
        _workers(shown, shown.progress, most_workers, bar),
        *(Text(sentence(wait), style="yellow") for wait in felt(shown.waits)[:1]),
        Text(""),
        _measures(shown.progress, history),
    )


def describe(job: Job, now: JobStatus | None = None) -> str:
    """Return what is trained and how, in a line; ``now`` knows what was changed since the start."""
    how = togetherness(job.train.staleness if now is None else now.staleness)
    return " · ".join(printable(text) for text in (job.name, job.model.kind, how))


def time_left(progress: Progress) -> float | None:
    """Return the seconds that the rest takes if it goes on like this; None before anything is done."""
    if not progress.chunks_done:
        return None
    return progress.seconds * (progress.chunks - progress.chunks_done) / progress.chunks_done


def sparkline(points: Iterable[tuple[float, float]]) -> str:
    """Return a curve of characters that spans the whole job.

    Args:
        points: (share of the job done, from 0 to 1, finite or infinite value), in order. A column without
            a point repeats the one before; infinities and NaN are left out.
    """
    columns = {_column(share): value for share, value in points if math.isfinite(value)}
    if not columns:
        return ""
    low, high = min(columns.values()), max(columns.values())
    curve, level = "", " "
    for column in range(max(columns) + 1):
        if column in columns:
            height = (columns[column] / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
            level = _LEVELS[round(height * (len(_LEVELS) - 1))]
        curve += level
    return curve


def _column(share: float) -> int:
    """Return the column of a curve that shows a job at this share of it."""
    return min(_CURVE - 1, int(share * _CURVE))


def _done(progress: Progress) -> float:
    return progress.chunks_done / progress.chunks if progress.chunks else 0.0


def _rows(*columns: int | None) -> Table:
    """Return a table without lines; a number is a column's width."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in columns:
        table.add_column(width=width, no_wrap=True, overflow="ellipsis")
    return table


def _bar_width(room: int) -> int:
    """Return the columns of a bar; 0: there is no room for any."""
    return min(_BAR, room) if room >= _LEAST_BAR else 0


def _overall(progress: Progress, bar: int) -> Table:
    rows = _rows(_NAME, *([bar] if bar else []), None)
    left = time_left(progress)
    facts = [f"{count(progress.chunks_done)}/{count(progress.chunks)} chunks"]
    if progress.train_examples and progress.seconds:
        facts.append(f"{count(progress.train_examples / progress.seconds)} examples/s")
    if progress.phase == "finished":
        facts.append(f"done in {span(progress.seconds)}")
        if progress.stopped:
            facts.append("stopped early")
    elif progress.phase == "survey":
        facts.append("surveying the data")
    elif progress.phase == "evaluate":
        facts.append("evaluating")
    elif left is not None:
        facts.append(f"{span(left)} left")
    rows.add_row(
        Text(f"epoch {progress.epoch}/{progress.epochs}"),
        *_bar(_done(progress), bar, "green"),
        Text(" · ".join(facts)),
    )
    return rows


def _lone_bar(progress: Progress, width: int) -> Table:
    line = Table.grid()  # ends the line, which a bar by itself does not
    line.add_row(*_bar(_done(progress), min(width, _LONE_BAR), "green"))
    return line


def _workers(job: JobStatus, progress: Progress, most: int, bar: int) -> Table:
    """Return a row for each worker. The bar of the one that has done most is as full as the whole's."""
    rows = _rows(_NAME, *([bar] if bar else []), None, None, None, None)
    for column in rows.columns[-4:]:
        column.justify = "right"
    most_done = max((worker.examples for worker in job.workers), default=0) or 1
    for worker in by_name(live_first(job.workers, most, most)):
        rows.add_row(
            Text(printable(worker.name)),
            *_bar(_done(progress) * worker.examples / most_done, bar, "cyan"),
            Text(f"{count(worker.examples)} examples"),
            _speed(worker),
            Text(f"step {count(worker.clock)}"),
            Text(f"loss {figure(worker.loss)}"),
        )
    if len(job.workers) > most:
        rows.add_row(Text(f"and {len(job.workers) - most} more", style="dim"))
    return rows


def _speed(worker: WorkerStatus) -> Text:
    if worker.state == "training":
        return Text(f"{count(worker.examples_per_second)}/s")
    name, style = _STATES.get(worker.state, (printable(worker.state), ""))
    return Text(name, style=style)


def _bar(done: float, width: int, colour: str) -> list[ProgressBar]:
    """Return a bar; none where there is no room."""
    if not width:
        return []
    return [ProgressBar(total=1.0, completed=done, width=width, complete_style=colour, finished_style=colour)]


def _measures(progress: Progress, history: History) -> Table:
    """Return the training loss and each held-out measure: its name, its value now, its curve."""
    rows = _rows(_NAME, None, _CURVE)
    rows.add_row(Text("training loss"), Text(figure(progress.train_loss)), _curve(history.losses))
    for mean in progress.evaluations[-1].means if progress.evaluations else ():
        points = [
            (evaluation.epoch / max(1, progress.epochs), one.value)
            for evaluation in progress.evaluations
            for one in evaluation.means
            if one.name == mean.name
        ]
        rows.add_row(Text(f"held-out {printable(mean.name)}"), Text(figure(mean.value)), _curve(points))
    return rows


def _curve(points: Iterable[tuple[float, float]]) -> Text:
    return Text(sparkline(points), style="magenta")
