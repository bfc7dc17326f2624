"""A whole cluster, as ``psctl status`` and ``psctl top`` show it. Pure: a status in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from protocol.status import (
    CheckpointStatus,
    ClusterStatus,
    JobStatus,
    Progress,
    ShardStatus,
    TensorStatus,
    WorkerStatus,
)
from psctl.display import time_left
from psctl.figures import count, figure, plural, printable, silence, size, span, togetherness
from psctl.tables import add, indented, table
from psctl.waits import felt, sentence
from psctl.workers import GONE, live_first

__all__ = ["how_kept_together", "overview"]

_MOST_GONE: Final = 20  # workers that are gone and still shown
_NARROW: Final = 80  # columns of a screen; below, some figures are left out
_STYLES: Final = {
    "joining": "dim",
    "waiting": "dim",
    "suspect": "yellow",
    "left": "dim",
    "dead": "red",
    "lost": "red",
}


def overview(
    status: ClusterStatus, *, width: int, most_workers: int | None = None, tensors: bool = True
) -> RenderableType:
    """Return tables of a cluster's servers and of each job's workers and tensors.

    Args:
        status: of the cluster.
        width: columns there are; below 80, some figures of the workers are left out.
        most_workers: of each job, the live ones first; the others are counted. None: all that live, and 20
            of those that have left or died.
        tensors: whether they are shown; they hardly ever change.
    """
    heading = (
        f"{plural(len(status.shards), 'server')}, {plural(len(status.jobs), 'job')}, "
        f"up {span(status.uptime)}, asyncps {printable(status.version)}"
    )
    return Group(
        Text(heading, style="bold"),
        *_durability(status),
        indented(_servers(status.shards)),
        *(_job(job, width, most_workers, tensors=tensors) for job in status.jobs),
    )


def _durability(status: ClusterStatus) -> Iterator[Text]:
    """Say what outlives the servers, and what is wrong with that."""
    now = status.durability
    if now.mode == "none":
        yield Text("durability none: nothing outlives the servers", style="dim")
    else:
        last = "no checkpoint yet" if now.checkpoint is None else _last_checkpoint(now.checkpoint)
        yield Text(f"durability {printable(now.mode)}, timeline {now.timeline}, {last}")
    if now.problem:
        yield Text(f"no checkpoint was taken: {printable(now.problem)}", style="red")
    for shard in status.shards:
        if shard.problem:
            yield Text(f"shard {shard.shard} refuses updates: {printable(shard.problem)}", style="bold red")


def _last_checkpoint(last: CheckpointStatus) -> str:
    took = "" if last.seconds is None else f" in {last.seconds:.2f} s"
    return f"checkpoint {last.checkpoint} taken {_ago(last.age)}, {size(last.bytes)}{took}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 100 else f"{span(seconds)} ago"


def how_kept_together(job: JobStatus) -> str:
    """Return a job's staleness, and its backup workers if it has any."""
    backup = f", {plural(job.backup_workers, 'backup worker')}" if job.backup_workers else ""
    return f"{togetherness(job.staleness)} (staleness {job.staleness:.0f}){backup}"


def _job(job: JobStatus, width: int, most_workers: int | None, *, tensors: bool) -> RenderableType:
    parts: list[RenderableType] = [Text(), Text(f"job {printable(job.name)}", style="bold")]
    parts += map(indented, _facts(job))
    if job.workers:
        parts += [Text(), indented(_workers(job.workers, most_workers, width))]
    if tensors and job.tensors:
        parts += [Text(), indented(_tensors(job.tensors))]
    return Group(*parts)


def _facts(job: JobStatus) -> Iterator[Text]:
    yield Text(f"{how_kept_together(job)}, membership epoch {job.epoch}, step {count(job.step)}")
    yield from (Text(sentence(wait), style="yellow") for wait in felt(job.waits))
    if job.dropped:
        yield Text(f"{plural(job.dropped, 'gradient')} dropped: too late for the step")
    if job.longest_wait >= 0.05:  # seconds; below, it would read 0.0
        yield Text(f"longest wait of a step: {job.longest_wait:.1f} s")
    if job.progress is not None:
        yield Text(_progress(job.progress))
        if job.progress.evaluations:
            yield Text(_last_evaluation(job.progress))


def _progress(progress: Progress) -> str:
    left = None if progress.phase == "finished" else time_left(progress)
    facts = [
        f"{printable(progress.phase)}: epoch {progress.epoch}/{progress.epochs}",
        f"{count(progress.chunks_done)}/{count(progress.chunks)} chunks, {progress.chunks_leased} leased",
        f"{count(progress.train_examples)} examples in {span(progress.seconds)}",
        f"training loss {figure(progress.train_loss)}",
        f"about {span(left)} left" if left else "",
    ]
    return ", ".join(fact for fact in facts if fact)


def _last_evaluation(progress: Progress) -> str:
    last = progress.evaluations[-1]
    means = ", ".join(f"{printable(mean.name)} {figure(mean.value)}" for mean in last.means)
    return f"held out, after epoch {last.epoch}: {means} ({plural(last.examples, 'example')})"


def _servers(shards: Sequence[ShardStatus]) -> Table:
    with_rows = any(shard.load.rows for shard in shards)
    columns = ("<shard", "<address", "<state", ">parameters", ">requests/s")
    drawn = table(*columns, *((">rows", ">keys/s") if with_rows else ()), ">silent")
    for shard in shards:
        # The coordinator, shard 0, is the one that answers.
        silent = silence(shard.heartbeat_age) if shard.shard and shard.state != "joining" else "-"
        load = shard.load
        parameters = size(max(shard.parameters_bytes, load.bytes))
        rows = [count(load.rows), count(load.keys_per_second)] if with_rows else []
        rate = count(load.requests_per_second)
        add(drawn, str(shard.shard), shard.address, _state(shard.state), parameters, rate, *rows, silent)
    return drawn


def _workers(workers: Sequence[WorkerStatus], most: int | None, width: int) -> RenderableType:
    shown = live_first(workers, most, _MOST_GONE)
    columns = [column for column in _COLUMNS if width >= _NARROW or not column.dispensable]
    drawn = table(*(column.name for column in columns))
    for worker in shown:
        cells = (column.cell(worker) for column in columns)
        add(drawn, *cells, style="dim" if worker.state == "left" else "")
    rest = Counter(w.state for w in workers) - Counter(w.state for w in shown)
    if not rest:
        return drawn
    counted = ", ".join(f"{count(number)} {printable(state)}" for state, number in sorted(rest.items()))
    return Group(drawn, Text(f"not shown: {counted}", style="dim"))


class _Column(NamedTuple):
    """A figure of a worker; ``dispensable`` ones are left out where there is no room."""

    name: str
    cell: Callable[[WorkerStatus], str | Text]
    dispensable: bool = False


_COLUMNS: Final = (
    _Column("<worker", lambda worker: worker.name),
    _Column("<state", lambda worker: _state(worker.state)),
    _Column(">step", lambda worker: count(worker.clock)),
    _Column(">lag", lambda worker: _while_live(worker, worker.lag), dispensable=True),
    _Column(">examples", lambda worker: count(worker.examples)),
    _Column(">/s", lambda worker: _while_live(worker, worker.examples_per_second)),
    _Column(">silent", lambda worker: silence(worker.heartbeat_age), dispensable=True),
    _Column(">leases", lambda worker: count(worker.leases), dispensable=True),
    _Column(">loss", lambda worker: figure(worker.loss)),
)


def _while_live(worker: WorkerStatus, number: float) -> str:
    return "-" if worker.state in GONE else count(number)


def _tensors(tensors: Sequence[TensorStatus]) -> Table:
    drawn = table("<tensor", "<dtype", "<shape", "<optimizer", ">shards")
    for tensor in tensors:
        shape = f"rows x {tensor.dim}" if tensor.dim else " x ".join(map(str, tensor.shape)) or "scalar"
        add(drawn, tensor.name, tensor.dtype, shape, tensor.optimizer, str(tensor.shards))
    return drawn


def _state(state: str) -> Text:
    return Text(printable(state), style=_STYLES.get(state, ""))
