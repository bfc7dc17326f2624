"""A finished job as one HTML file that needs nothing else to be read: settings, figures, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Final

from protocol.status import Evaluation
from psctl.figures import count, figure, plural, printable, span, togetherness
from psctl.overview import returned, rows_left_out
from psctl.page import figure_of, page_of, rows_of, table_of, write_page
from psctl.recording import Recording
from psctl.result import Result
from psctl.svg import COLOURS, line_chart, share_bars
from psworker.job import Job, job_to_json

__all__ = ["NAME", "page", "write_report"]

NAME: Final = "report.html"
_LEAST_STRETCH: Final = 1.0  # seconds over which throughput is a mean
_STRETCHES: Final = 120  # of a long job


def write_report(directory: Path, recording: Recording, job: Job, result: Result) -> Path:
    """Write the report into ``directory``, which is made if it is not there, and return its path.

    Raises:
        OSError: it cannot be written.
    """
    return write_page(directory / NAME, page(recording, job, result))


def page(recording: Recording, job: Job, result: Result) -> str:
    """Return the whole page."""
    title = f"{job.name} · {job.model.kind}"
    cluster = f"{plural(result.servers, 'server')}, {plural(result.workers, 'worker')}"
    how = f"{togetherness(job.train.staleness)}, {cluster}"
    sections = (
        ("Result", rows_of(_figures(result))),
        *_warnings(result),
        *_curves(recording),
        ("Where each worker's time went", _splits(recording)),
        ("Workers", _workers(recording)),
        *_evaluations(recording),
        *_returns(result),
        ("Settings", _settings(job)),
    )
    return page_of(title, how, sections)


def _warnings(result: Result) -> Iterator[tuple[str, str]]:
    if result.warnings:
        yield "Warnings", "".join(f"<p>{escape(printable(one))}</p>" for one in result.warnings)


def _figures(result: Result) -> dict[str, str]:
    speed = f" ({count(result.examples / result.seconds)}/s)" if result.seconds else ""
    return {
        "examples": count(result.examples) + speed,
        **({"rows left out": rows_left_out(result.skipped)} if result.skipped else {}),
        "steps": count(result.steps),
        "time": span(result.seconds) if result.seconds >= 60 else f"{result.seconds:.1f} s",
        "loss": figure(result.loss),
        **{name: figure(value) for name, value in result.metrics.items()},
        **({"workers that died": count(result.died)} if result.died else {}),
        **({"went back": returned(result.returns)} if result.returns else {}),
        **({"learning rate": f"x {result.rate:g}"} if result.rate != 1.0 else {}),
        **({} if result.checkpoint is None else {"checkpoint": result.checkpoint}),
    }


def _curves(recording: Recording) -> Iterator[tuple[str, str]]:
    looks = recording.looks
    losses = [(look.seconds, look.loss) for look in looks if look.loss is not None]
    yield (
        "Training loss",
        figure_of(
            line_chart("training loss", {"loss": losses}, x_label="seconds", show=figure),
            "mean of the epoch so far",
        ),
    )
    evaluations = recording.progress.evaluations if recording.progress is not None else ()
    for name in dict.fromkeys(mean.name for one in evaluations for mean in one.means):
        points = [
            (float(one.epoch), mean.value) for one in evaluations for mean in one.means if mean.name == name
        ]
        drawn = line_chart(f"held-out {name}", {name: points}, x_label="epoch", show=figure)
        yield f"Held-out {name}", drawn
    over = max(_LEAST_STRETCH, looks[-1].seconds / _STRETCHES) if looks else _LEAST_STRETCH
    rates = {"examples": recording.throughput(over)}
    drawn = line_chart("throughput", rates, x_label="seconds", show=count, from_zero=True)
    yield "Throughput", figure_of(drawn, "examples per second, counted when their chunk of the data is done")
    lags = {"lag": [(look.seconds, float(look.lag)) for look in looks if look.lag is not None]}
    drawn = line_chart("staleness", lags, x_label="seconds", show=count, from_zero=True, steps=True)
    yield "Staleness", figure_of(drawn, "steps that the slowest worker at work is behind the furthest")
    workers = sorted({name for look in looks for name in look.rates})
    if len(workers) > 1:
        lines = {
            name: [(look.seconds, look.rates[name]) for look in looks if name in look.rates]
            for name in workers
        }
        drawn = line_chart("speed of each worker", lines, x_label="seconds", show=count, from_zero=True)
        yield (
            "Speed of each worker",
            figure_of(drawn, "examples per second over its last heartbeats", _keys(workers)),
        )


def _keys(names: list[str]) -> str:
    return "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(printable(name))} '
        for colour, name in zip(cycle(COLOURS), names, strict=False)
    )


def _splits(recording: Recording) -> str:
    if not recording.splits:
        return "<p>no worker's metrics could be read: the job was over too soon</p>"
    bars = {printable(name): split for name, split in sorted(recording.splits.items())}
    drawn = share_bars("time by phase of a step", bars, show=lambda seconds: f"{seconds:.1f} s")
    return figure_of(drawn, "seconds that the training loop spent on, or waited for, each phase of a step")


def _workers(recording: Recording) -> str:
    workers = recording.job.workers if recording.job is not None else ()
    rows = [
        (one.name, one.state, count(one.clock), count(one.examples), figure(one.loss))
        for one in sorted(workers, key=lambda one: one.name)
    ]
    return table_of(("worker", "state", "steps", "examples", "last loss"), rows, texts=2)


def _evaluations(recording: Recording) -> Iterator[tuple[str, str]]:
    evaluations: tuple[Evaluation, ...] = (
        recording.progress.evaluations if recording.progress is not None else ()
    )
    if not evaluations:
        return
    names = [mean.name for mean in evaluations[-1].means]
    rows = []
    for one in evaluations:
        means = {mean.name: figure(mean.value) for mean in one.means}
        rows.append((count(one.epoch), count(one.examples), *(means.get(name, "-") for name in names)))
    yield "Evaluations", table_of(("epoch", "examples", *names), rows, texts=0)


def _returns(result: Result) -> Iterator[tuple[str, str]]:
    if result.returns:
        names = ("step", "loss", "back to checkpoint", "on with learning rate x")
        rows = [
            (count(one.step), figure(one.loss), str(one.checkpoint), f"{one.rate:g}")
            for one in result.returns
        ]
        yield "Returns after divergence", table_of(names, rows, texts=0)


def _settings(job: Job) -> str:
    document = json.loads(job_to_json(job))
    return rows_of(
        {
            f"[{section}] {key}": value if isinstance(value, str) else json.dumps(value)
            for section, table in document.items()
            for key, value in table.items()
        }
    )
