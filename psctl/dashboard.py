"""What ``psctl top`` draws on a terminal: all that there is room for, whatever its size.

Of the lines that there are, the cluster, its servers and its jobs come first; then the curves and the workers
of one job share what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from protocol.status import ClusterStatus, JobStatus, Progress, ShardStatus, WorkerStatus
from psctl.display import time_left
from psctl.figures import count, figure, plural, printable, silence, size, span
from psctl.overview import (
    durability,
    how_kept_together,
    last_evaluation,
    progress_facts,
    state_text,
    stopped_early,
    wait_facts,
    worker_columns,
)
from psctl.plots import FRAME, Plot, plots_of, side_by_side, sparkline
from psctl.tables import add, table
from psctl.workers import GONE, live_first

__all__ = ["Dashboard", "View", "shown_job"]

_NARROW: Final = 80  # columns; below, there is one curve, and workers have fewer figures
_VERY_NARROW: Final = 66  # columns; below, servers have fewer figures, too
_WIDE: Final = 104  # columns; from here on, there are bars and curves in the tables
_TINY: Final = 50  # columns; below, there is hardly anything but names and states
_VERY_WIDE: Final = 128  # columns; from here on, there is room for all that servers do
_ROOMY: Final = 24  # lines; from here on, some are blank
_MOST_SERVERS: Final = 0.25  # of the lines; other servers are counted
_MOST_JOBS: Final = 0.2
_MOST_WAITS: Final = 3  # lines
_LEAST_WORKERS: Final = 3  # lines, if there are as many workers
_LEAST_PLOT: Final = 3  # lines of a curve in a frame; a lower one says no more than one in a line
_MOST_PLOT: Final = 14
_SPARKLINE: Final = 14  # columns
_BAR: Final = 10  # columns of a worker's speed
_LONGEST_BAR: Final = 60  # columns of a job's progress
_SHORTEST_BAR: Final = 10
_FEW: Final = ("<worker", "<state", ">loss")  # of a worker's figures
_GAP: Final = 2  # columns


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: which job, by its place; from which worker on; all of its curves, or their end."""

    job: int = 0
    worker: int = 0
    whole: bool = False


def shown_job(status: ClusterStatus, view: View) -> JobStatus | None:
    """Return the job that is looked at, if there is any."""
    return status.jobs[view.job % len(status.jobs)] if status.jobs else None


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A cluster as a renderable that fills its console.

    ``address`` is the coordinator's; ``note`` is said at the upper right, in red if it is ``alarming``.
    """

    status: ClusterStatus
    view: View
    address: str
    note: str
    alarming: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw as many lines as there are."""
        height = options.height or console.height
        room = _Room(options.max_width, height, plain=options.ascii_only)
        parts = options.update(height=None)
        lines: list[list[Segment]] = []
        for part in self._above(room):
            lines += console.render_lines(part, parts)
        job = shown_job(self.status, self.view)
        if job is not None:
            left = height - len(lines)
            workers = min(len(job.workers), max(_LEAST_WORKERS, left // 2 - 1)) + 1
            plots = _plots(job, room, left - workers, whole=self.view.whole)
            lines += console.render_lines(plots, parts)
            lines += console.render_lines(_workers(job, room, height - len(lines), self.view.worker), parts)
        for line in lines[:height]:
            yield from line
            yield Segment.line()

    def _above(self, room: _Room) -> Iterator[RenderableType]:
        """Yield what is always there: the cluster, its servers, its jobs."""
        status = self.status
        yield from self._heading(room)
        yield from map(_cut, durability(status))
        yield from room.blank()
        yield _servers(status.shards, room)
        yield from room.blank()
        job = shown_job(status, self.view)
        if job is not None:
            if len(status.jobs) > 1:
                yield _jobs(status.jobs, job, room)
                yield from room.blank()
            yield from _job_heading(job, room)

    def _heading(self, room: _Room) -> Iterator[RenderableType]:
        status = self.status
        name = f" asyncps {printable(status.version)} "
        there = f"{plural(len(status.shards), 'server')}, {plural(len(status.jobs), 'job')}"
        left = Text.assemble(
            (name, "bold white on blue"), " ", (self.address, "bold"), f"  {there}, up {span(status.uptime)}"
        )
        note = Text(self.note, style="bold red" if self.alarming else "dim")
        if left.cell_len + note.cell_len + _GAP <= room.width:
            yield _both_ends(left, note)
        else:
            yield from (_cut(left), _cut(note))


@dataclass(frozen=True, slots=True)
class _Room:
    """The columns and lines of the terminal, and whether it is ``plain``: without Braille and blocks."""

    width: int
    height: int
    plain: bool

    @property
    def with_curves(self) -> bool:
        """Whether there are curves and bars in tables."""
        return self.width >= _WIDE and not self.plain

    def blank(self) -> Iterator[Text]:
        """Yield a blank line where there are enough lines."""
        if self.height >= _ROOMY:
            yield Text()


def _both_ends(left: Text, right: Text) -> Table:
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(left, right)
    return line


def _cut(text: Text) -> Text:
    """Have a text be one line, whatever the room."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _add(drawn: Table, *cells: str | Text, style: str = "") -> None:
    """Add a row that is one line: where there is no room, texts are cut, and figures are not."""
    add(
        drawn,
        *(_cut(cell if isinstance(cell, Text) else Text(printable(cell))) for cell in cells),
        style=style,
    )


# --- servers


def _servers(shards: tuple[ShardStatus, ...], room: _Room) -> Group:
    most = max(1, int(room.height * _MOST_SERVERS))
    shown = shards if len(shards) <= most else sorted(shards, key=lambda shard: shard.state == "ready")[:most]
    with_rows = any(shard.load.rows for shard in shards) and room.width >= _WIDE
    with_traffic = room.width >= (_VERY_WIDE if with_rows else _WIDE)
    columns = ["<server", *(["<address"] if room.width >= _TINY else []), "<state"]
    columns += [">parameters"] if room.width >= _VERY_NARROW else []
    columns += [">rows", ">keys/s"] if with_rows else []
    columns += [">in/s", ">out/s"] if with_traffic else []
    columns += [">requests/s", *(["<"] if room.with_curves else [])]
    columns += [">silent"] if room.width >= _TINY else []
    drawn = table(*columns)
    for shard in shown:
        _add(drawn, *_server(shard, room, with_rows=with_rows, with_traffic=with_traffic))
    if len(shown) == len(shards):
        return Group(drawn)
    ready = sum(shard.state == "ready" for shard in shards)
    others = f"{count(len(shown))} of {plural(len(shards), 'server')} shown, {count(ready)} ready"
    return Group(drawn, Text(others, style="dim"))


def _server(shard: ShardStatus, room: _Room, *, with_rows: bool, with_traffic: bool) -> Iterator[str | Text]:
    load = shard.load
    yield str(shard.shard)
    if room.width >= _TINY:
        yield shard.address
    yield state_text(shard.state)
    if room.width >= _VERY_NARROW:
        yield size(max(shard.parameters_bytes, load.bytes))
    if with_rows:
        yield from (count(load.rows), count(load.keys_per_second))
    if with_traffic:
        yield from (size(round(load.received_per_second)), size(round(load.sent_per_second)))
    yield count(load.requests_per_second)
    if room.with_curves:
        yield sparkline(shard.recent_requests, "green", _SPARKLINE, from_zero=True)
    if room.width >= _TINY:  # the coordinator, server 0, is the one that answers
        yield silence(shard.heartbeat_age) if shard.shard and shard.state != "joining" else "-"


# --- jobs


def _jobs(jobs: tuple[JobStatus, ...], shown: JobStatus, room: _Room) -> Group:
    """Return a line for each job, or for those around the one that is ``shown``."""
    most = max(2, int(room.height * _MOST_JOBS))
    first = max(0, min(jobs.index(shown) - most // 2, len(jobs) - most))
    with_curve = room.width >= _NARROW and not room.plain
    drawn = table("<", "<job", ">workers", ">step", ">examples/s", ">loss", *(["<"] if with_curve else []))
    for job in jobs[first : first + most]:
        live = [worker for worker in job.workers if worker.state not in GONE]
        losses = [worker.loss for worker in live if worker.loss is not None]
        loss = sum(losses) / len(losses) if losses else None
        speed = sum(worker.examples_per_second for worker in live)
        cells = [">" if job is shown else " ", job.name, count(len(live)), count(job.step), count(speed)]
        curve = job.history.recent_loss
        curves = [sparkline(curve, "cyan", _SPARKLINE, from_zero=False)] if with_curve else []
        _add(drawn, *cells, figure(loss), *curves, style="bold" if job is shown else "")
    if len(jobs) <= most:
        return Group(drawn)
    which = f"jobs {first + 1} to {first + most} of {count(len(jobs))}"
    return Group(drawn, _cut(Text(f"{which}; Tab shows the next", style="dim")))


def _job_heading(job: JobStatus, room: _Room) -> Iterator[RenderableType]:
    kept = f"  {how_kept_together(job)}, membership epoch {job.epoch}, step {count(job.step)}"
    yield _cut(Text.assemble((f"job {printable(job.name)}", "bold"), kept))
    if job.progress is not None:
        yield _progress(job.progress, room)
        yield _cut(Text(progress_facts(job.progress)))
        if job.progress.evaluations:
            yield _cut(Text(last_evaluation(job.progress)))
        if job.progress.stopped:
            yield _cut(Text(stopped_early(job.progress)))
    yield from [_cut(fact) for fact in wait_facts(job)][:_MOST_WAITS]


def _progress(progress: Progress, room: _Room) -> Table:
    done = progress.chunks_done / progress.chunks if progress.chunks else 0.0
    left = None if progress.phase == "finished" else time_left(progress)
    share = Text(f"{100 * done:.0f} %" + (f", {span(left)} left" if left else ""))
    phase = Text(f"{printable(progress.phase)}: epoch {progress.epoch}/{progress.epochs}")
    columns = min(_LONGEST_BAR, room.width - phase.cell_len - share.cell_len - 3 * _GAP)
    bar = ProgressBar(1.0, done, width=columns, complete_style="blue", finished_style="green")
    line = Table.grid(padding=(0, _GAP, 0, 0))
    line.add_row(phase, *([bar] if columns >= _SHORTEST_BAR else []), share)
    return line


def _plots(job: JobStatus, room: _Room, lines: int, *, whole: bool) -> Group:
    """Return how the job went, in so many lines at most."""
    if room.plain or lines < 1:
        return Group()
    over = "whole run" if whole else "last minutes"
    plots = [plot for plot in plots_of(job.history, whole=whole) if plot.curve.values]
    if not plots:
        return Group()
    if room.width < _NARROW:
        plots = plots[:1]
    rows = min(_MOST_PLOT, lines - FRAME)
    if rows < _LEAST_PLOT:
        return Group(side_by_side(plots, room.width, lambda plot, width: plot.in_a_line(width - _GAP)))

    def framed(plot: Plot, width: int) -> RenderableType:
        return plot.framed(width, rows, over)

    return Group(side_by_side(plots, room.width, framed))


# --- workers


def _workers(job: JobStatus, room: _Room, lines: int, first: int) -> Group:
    """Return a table of the workers from the ``first`` on, in so many lines at most."""
    workers = live_first(job.workers, None, len(job.workers))
    most = lines - 1  # but for the head
    if not workers or most < 1:
        return Group()
    if len(workers) > most:
        most = max(1, most - 1)
    first = max(0, min(first, len(workers) - most))
    shown = workers[first : first + most]
    columns = [one for one in worker_columns(room.width) if room.width >= _TINY or one.name in _FEW]
    drawn = table(*(column.name for column in columns), *(["<"] if room.with_curves else []))
    fastest = max(worker.examples_per_second for worker in workers)
    for worker in shown:
        cells = [column.cell(worker) for column in columns]
        cells += [_bar(worker, fastest)] if room.with_curves else []
        _add(drawn, *cells, style="dim" if worker.state == "left" else "")
    if len(shown) == len(workers):
        return Group(drawn)
    others = Counter(worker.state for worker in workers if worker.state != "training")
    counted = ", ".join(f"{count(number)} {printable(state)}" for state, number in sorted(others.items()))
    which = f"workers {count(first + 1)} to {count(first + len(shown))} of {count(len(workers))}"
    which += f" ({counted})" if counted else ""
    return Group(drawn, _cut(Text(f"{which}; arrow keys show others", style="dim")))


def _bar(worker: WorkerStatus, fastest: float) -> Text:
    """Return a bar of a worker's speed beside that of the fastest one."""
    if worker.state in GONE or fastest <= 0:
        return Text()
    halves = round(worker.examples_per_second / fastest * _BAR * 2)
    return Text("━" * (halves // 2) + "╸" * (halves % 2), style="green")
