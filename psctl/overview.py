"""A whole cluster as ``psctl status`` shows it. Pure: a status in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from protocol.status import (
    CheckpointStatus,
    ClusterStatus,
    JobStatus,
    Progress,
    Return,
    ShardStatus,
    TensorStatus,
    WorkerStatus,
)
from psctl.display import time_left
from psctl.figures import count, figure, plural, printable, silence, size, span, togetherness
from psctl.tables import add, indented, table
from psctl.waits import felt, sentence
from psctl.workers import GONE, live_first

__all__ = [
    "Column",
    "durability",
    "how_kept_together",
    "last_evaluation",
    "overview",
    "progress_facts",
    "returned",
    "rows_left_out",
    "state_text",
    "stopped_early",
    "wait_facts",
    "worker_columns",
]

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


def overview(status: ClusterStatus, *, width: int) -> RenderableType:
    """Return tables of a cluster's servers and of each job's workers and tensors.

    Args:
        status: of the cluster.
        width: columns there are; below 80, some figures of the workers are left out.
    """
    heading = (
        f"{plural(len(status.shards), 'server')}, {plural(len(status.jobs), 'job')}, "
        f"up {span(status.uptime)}, asyncps {printable(status.version)}"
    )
    return Group(
        Text(heading, style="bold"),
        *durability(status),
        indented(_servers(status.shards)),
        *(_job(job, width) for job in status.jobs),
    )


def durability(status: ClusterStatus) -> Iterator[Text]:
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
    """Return a job's staleness, its backup workers if it has any, its rate where it is not 1, its drifts."""
    backup = f", {plural(job.backup_workers, 'backup worker')}" if job.backup_workers else ""
    rate = "" if job.rate == 1.0 else f", learning rate x {job.rate:g}"
    drifts = f", {plural(job.drifts, 'drift')} of the stream" if job.drifts else ""
    return f"{togetherness(job.staleness)} (staleness {job.staleness:.0f}){backup}{rate}{drifts}"


def _job(job: JobStatus, width: int) -> RenderableType:
    parts: list[RenderableType] = [Text(), Text(f"job {printable(job.name)}", style="bold")]
    parts += map(indented, _facts(job))
    if job.workers:
        parts += [Text(), indented(_workers(job.workers, width))]
    if job.tensors:
        parts += [Text(), indented(_tensors(job.tensors))]
    return Group(*parts)


def _facts(job: JobStatus) -> Iterator[Text]:
    yield Text(f"{how_kept_together(job)}, membership epoch {job.epoch}, step {count(job.step)}")
    yield from wait_facts(job)
    if job.progress is not None:
        left = None if job.progress.phase == "finished" else time_left(job.progress)
        rest = f", about {span(left)} left" if left else ""
        yield Text(f"{_phase(job.progress)}, {progress_facts(job.progress)}{rest}")
        if job.progress.evaluations:
            yield Text(last_evaluation(job.progress))
        if job.progress.stopped:
            yield Text(stopped_early(job.progress))
        if job.progress.skipped:
            left_out = {one.reason: one.rows for one in job.progress.skipped}
            yield Text(f"rows left out: {rows_left_out(left_out)}")
    if job.returns:
        yield Text(f"went back after divergence: {returned(job.returns)}", style="yellow")


def stopped_early(progress: Progress) -> str:
    """Return why a job has ended before its last epoch."""
    return f"stopped early: {printable(progress.stopped)}"


def rows_left_out(skipped: Mapping[str, int]) -> str:
    """Return how many rows could not be used, in all and by reason."""
    by_reason = ", ".join(f"{count(rows)} {printable(reason)}" for reason, rows in sorted(skipped.items()))
    return f"{count(sum(skipped.values()))} ({by_reason})"


def returned(returns: Sequence[Return]) -> str:
    """Return how often a job that had diverged went back, and last from where to where."""
    last = returns[-1]
    return (
        f"{plural(len(returns), 'time')}, last from loss {figure(last.loss)} in step {count(last.step)} to "
        f"checkpoint {last.checkpoint}"
    )


def wait_facts(job: JobStatus) -> Iterator[Text]:
    """Say who waits for whom in a job, and what the waits have cost so far."""
    yield from (Text(sentence(wait), style="yellow") for wait in felt(job.waits))
    if job.dropped:
        yield Text(f"{plural(job.dropped, 'gradient')} dropped: too late for the step")
    if job.longest_wait >= 0.05:  # seconds; below, it would read 0.0
        yield Text(f"longest wait of a step: {job.longest_wait:.1f} s")


def _phase(progress: Progress) -> str:
    return f"{printable(progress.phase)}: epoch {progress.epoch}/{progress.epochs}"


def progress_facts(progress: Progress) -> str:
    """Return how far a job has come, but for the epoch and the time that is left."""
    return (
        f"{count(progress.chunks_done)}/{count(progress.chunks)} chunks, {progress.chunks_leased} leased, "
        f"{count(progress.train_examples)} examples in {span(progress.seconds)}, "
        f"training loss {figure(progress.train_loss)}"
    )


def last_evaluation(progress: Progress) -> str:
    """Return what the held-out data said last."""
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
        keys = count(load.keys_per_second) if shard.state != "lost" else "-"
        rows = [count(load.rows), keys] if with_rows else []
        rate = count(load.requests_per_second) if shard.state != "lost" else "-"
        add(drawn, str(shard.shard), shard.address, state_text(shard.state), parameters, rate, *rows, silent)
    return drawn


def _workers(workers: Sequence[WorkerStatus], width: int) -> RenderableType:
    shown = live_first(workers, None, _MOST_GONE)
    columns = worker_columns(width)
    if any(worker.skipped for worker in shown):
        columns.append(_SKIPPED)
    drawn = table(*(column.name for column in columns))
    for worker in shown:
        cells = (column.cell(worker) for column in columns)
        add(drawn, *cells, style="dim" if worker.state == "left" else "")
    rest = Counter(w.state for w in workers) - Counter(w.state for w in shown)
    if not rest:
        return drawn
    counted = ", ".join(f"{count(number)} {printable(state)}" for state, number in sorted(rest.items()))
    return Group(drawn, Text(f"not shown: {counted}", style="dim"))


class Column(NamedTuple):
    """A figure of a worker; ``dispensable`` ones are left out where there is no room."""

    name: str
    cell: Callable[[WorkerStatus], str | Text]
    dispensable: bool = False


_COLUMNS: Final = (
    Column("<worker", lambda worker: worker.name),
    Column("<state", lambda worker: state_text(worker.state)),
    Column(">step", lambda worker: count(worker.clock)),
    Column(">lag", lambda worker: _while_live(worker, worker.lag), dispensable=True),
    Column(">examples", lambda worker: count(worker.examples)),
    Column(">/s", lambda worker: _while_live(worker, worker.examples_per_second)),
    Column(">silent", lambda worker: silence(worker.heartbeat_age), dispensable=True),
    Column(">leases", lambda worker: count(worker.leases), dispensable=True),
    Column(">loss", lambda worker: figure(worker.loss)),
)

_SKIPPED: Final = Column(">left out", lambda worker: count(worker.skipped))
"""Rows of the data that could not be used; only shown where there are some."""


def worker_columns(width: int) -> list[Column]:
    """Return what there is room for to say of a worker."""
    return [column for column in _COLUMNS if width >= _NARROW or not column.dispensable]


def _while_live(worker: WorkerStatus, number: float) -> str:
    return "-" if worker.state in GONE else count(number)


def _tensors(tensors: Sequence[TensorStatus]) -> Table:
    drawn = table("<tensor", "<dtype", "<shape", "<optimizer", ">shards")
    for tensor in tensors:
        shape = f"rows x {tensor.dim}" if tensor.dim else " x ".join(map(str, tensor.shape)) or "scalar"
        add(drawn, tensor.name, tensor.dtype, shape, tensor.optimizer, str(tensor.shards))
    return drawn


def state_text(state: str) -> Text:
    """Return the state of a server or worker, coloured where it asks for attention."""
    return Text(printable(state), style=_STYLES.get(state, ""))
