"""``psctl status``: the servers, jobs and workers of a cluster."""

from __future__ import annotations

import argparse
import asyncio

import configargparse
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.settings import address
from protocol.status import ClusterStatus, JobStatus, Progress, ShardStatus, TensorStatus, WorkerStatus
from psctl.display import time_left, waits_for
from psctl.figures import count, figure, plural, printable, size, span
from psctl.json_text import json_text
from psctl.screen import console_for
from psworker.client import fetch_status

__all__ = ["flags", "render_status", "run"]


def flags(parser: configargparse.ArgParser) -> None:
    """Add the flags of ``psctl status``."""
    parser.add_argument(
        "--server", type=address, default="127.0.0.1:7070", metavar="HOST:PORT", help="the coordinator"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="form of the output")


def run(options: argparse.Namespace) -> int:
    """Ask for the status and print it.

    Raises:
        Unreachable: no server answers.
        PSError: the server is not a coordinator.
    """
    status = asyncio.run(fetch_status(*options.server, within=0.0))
    if options.format == "json":
        print(json_text(status))
    else:
        console_for("stdout").print(render_status(status))
    return ExitCode.DONE


def render_status(status: ClusterStatus) -> RenderableType:
    """Return tables of a cluster's servers and of each job's workers and tensors."""
    heading = (
        f"{plural(len(status.shards), 'server')}, {plural(len(status.jobs), 'job')}, "
        f"up {span(status.uptime)}, asyncps {printable(status.version)}"
    )
    return Group(Text(heading, style="bold"), _indented(_servers(status.shards)), *map(_job, status.jobs))


def _job(job: JobStatus) -> RenderableType:
    facts = _facts(job)
    return Group(
        Text(f"job {printable(job.name)}", style="bold"),
        *(Text("  " + fact) for fact in facts),
        *([_indented(_workers(job.workers))] if job.workers else []),
        *([_indented(_tensors(job.tensors))] if job.tensors else []),
    )


def _facts(job: JobStatus) -> list[str]:
    how = f"staleness {job.staleness:g}, membership epoch {job.epoch}"
    if job.staleness == 0:
        how += f", step {count(job.step)}"
    facts = [how, waits_for(job.wait)]
    if job.progress is not None:
        facts += [_progress(job.progress), _last_evaluation(job.progress)]
    return [fact for fact in facts if fact]


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
    if not progress.evaluations:
        return ""
    last = progress.evaluations[-1]
    means = ", ".join(f"{printable(mean.name)} {figure(mean.value)}" for mean in last.means)
    return f"held out, after epoch {last.epoch}: {means} ({plural(last.examples, 'example')})"


def _servers(shards: tuple[ShardStatus, ...]) -> Table:
    table = _table("shard", "address", "state", "parameters")
    for shard in shards:
        _add(table, str(shard.shard), shard.address, shard.state, size(shard.parameters_bytes))
    return table


def _workers(workers: tuple[WorkerStatus, ...]) -> Table:
    table = _table("worker", "name", "state", "step", "examples", "examples/s", "heard", "loss")
    for worker in workers:
        _add(
            table,
            str(worker.worker),
            worker.name,
            worker.state,
            count(worker.clock),
            count(worker.examples),
            count(worker.examples_per_second),
            f"{worker.heartbeat_age:.1f} s ago",
            figure(worker.loss),
        )
    return table


def _tensors(tensors: tuple[TensorStatus, ...]) -> Table:
    table = _table("tensor", "dtype", "shape", "optimizer", "shards")
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        _add(table, tensor.name, tensor.dtype, shape, tensor.optimizer, str(tensor.shards))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2), expand=False)
