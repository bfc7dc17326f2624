"""What came of a training: the figures that scripts read and people remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from rich.text import Text

from protocol.errors import UnknownJob
from protocol.status import ClusterStatus, Return
from psctl.display import job_status
from psctl.doubts import warnings_of
from psctl.figures import count, figure, plural, printable
from psctl.overview import returned, rows_left_out
from psworker.job import Job

__all__ = ["Result", "result_of", "result_table"]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job.

    ``examples`` counts training examples processed, ``steps`` is the furthest worker's clock, ``seconds`` the
    time from the first worker's joining to the end of the work. ``loss`` is the held-out loss of the last
    evaluation, or the training loss if there was none; ``metrics`` are the evaluation's other means.
    ``checkpoint`` is the directory of the last checkpoint. ``died`` counts the workers of ``workers`` that
    were found dead and did not come back. ``stopped`` says why the job ended before its last epoch; "": it
    did not. ``skipped`` are the rows that were left out, by reason; ``returns`` are those after divergence,
    and ``rate`` is what all learning rates were multiplied by in the end. ``warnings`` say what is wrong with
    the model, and what may help.
    """

    job: str
    model: str
    servers: int
    workers: int
    examples: int
    steps: int
    seconds: float
    loss: float | None
    metrics: Mapping[str, float]
    checkpoint: str | None = None
    died: int = 0
    stopped: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict)
    returns: tuple[Return, ...] = ()
    rate: float = 1.0
    warnings: tuple[str, ...] = ()


def result_of(status: ClusterStatus, job: Job, unscaled: Callable[[], str] = lambda: "") -> Result:
    """Return the figures of a job from the last status of its cluster.

    Args:
        status: of the cluster.
        job: what was trained.
        unscaled: as ``warnings_of``.

    Raises:
        UnknownJob: the cluster knows nothing of the job's work.
    """
    found = job_status(status, job.name)
    if found is None or found.progress is None:
        raise UnknownJob("the cluster has no such job with work to do", field="job", value=job.name)
    progress = found.progress
    means = {mean.name: mean.value for mean in progress.evaluations[-1].means} if progress.evaluations else {}
    return Result(
        job=job.name,
        model=job.model.kind,
        servers=len(status.shards),
        workers=len(found.workers),
        examples=progress.train_examples,
        steps=max((worker.clock for worker in found.workers), default=0),
        seconds=progress.seconds,
        loss=means.pop("loss", progress.train_loss),
        metrics=means,
        died=sum(worker.state == "dead" for worker in found.workers),
        stopped=f"after epoch {progress.epoch}: {progress.stopped}" if progress.stopped else "",
        skipped={one.reason: one.rows for one in progress.skipped},
        returns=found.returns,
        rate=found.rate,
        warnings=warnings_of(progress, job, unscaled),
    )


def result_table(result: Result) -> Table:
    """Return the figures for a person."""
    table = Table(box=box.ROUNDED, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column(justify="right")
    speed = f" ({count(result.examples / result.seconds)}/s)" if result.seconds else ""
    died = f" ({count(result.died)} died)" if result.died else ""
    rows = {
        "job": f"{result.job} ({result.model})",
        "cluster": f"{plural(result.servers, 'server')}, {plural(result.workers, 'worker')}{died}",
        "examples": count(result.examples) + speed,
        **({"rows left out": rows_left_out(result.skipped)} if result.skipped else {}),
        "steps": count(result.steps),
        "time": f"{result.seconds:.1f} s",
        **({"stopped": result.stopped} if result.stopped else {}),
        **({"went back": returned(result.returns)} if result.returns else {}),
        **({"learning rate": f"x {result.rate:g}"} if result.rate != 1.0 else {}),
        "loss": figure(result.loss),
        **{name: figure(value) for name, value in result.metrics.items()},
        **({} if result.checkpoint is None else {"checkpoint": result.checkpoint}),
    }
    for name, value in rows.items():
        table.add_row(Text(printable(name)), Text(printable(value)))
    return table
