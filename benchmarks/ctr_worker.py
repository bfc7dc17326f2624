"""A worker of the ctr benchmark: learns the chunks that it is told to, with a table on the servers."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from benchmarks.child_processes import exit_with_parent
from benchmarks.ctr_data import read_chunk
from benchmarks.ctr_features import Examples, examples_of, tokens_of
from benchmarks.ctr_models import Model
from psworker import FTRL, Adagrad, Client, Normal, SparseTable, Zeros, connect

JOB = "ctr"
TABLE = "features"


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned: the model, how its rows begin and change, and the examples of a step."""

    model: Model
    optimizer: FTRL | Adagrad
    initial: Zeros | Normal
    minibatch: int


async def open_table(client: Client, task: Task) -> SparseTable:
    """Return the table, made if it does not exist."""
    return await client.create_sparse(TABLE, dim=task.model.dim, optimizer=task.optimizer, init=task.initial)


def work(address: str, task: Task, requests: Connection) -> None:
    """Join the job and learn each list of chunks that `requests` brings; answer with the examples in it."""
    exit_with_parent()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(address, task, requests))


async def _work(address: str, task: Task, requests: Connection) -> None:
    async with connect(address, JOB) as client:
        table = await open_table(client, task)
        requests.send(0)
        while True:
            try:
                # In a thread: the client beats while nothing is to be done.
                paths = await asyncio.to_thread(requests.recv)
            except EOFError:  # the benchmark is over
                return
            requests.send(await learn(table, task, paths))


async def learn(table: SparseTable, task: Task, paths: Sequence[Path]) -> int:
    """Take a step for each mini-batch of the chunks; return the number of examples.

    While the servers answer one mini-batch, the one after the next is hashed and its distinct keys are found.
    """
    batches = minibatches(paths, task.minibatch)
    current, following = next(batches), next(batches, None)
    rows = await table.pull(current.keys)
    learned = len(current.clicks)
    while following is not None:
        gradient = task.model.gradient(current, rows)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(table.push_pull(current.keys, gradient, following.keys))
            later = await asyncio.to_thread(next, batches, None)
        rows = asking.result()
        current, following = following, later
        learned += len(current.clicks)
    await table.push(current.keys, task.model.gradient(current, rows))
    return learned


def minibatches(paths: Sequence[Path], size: int) -> Iterator[Examples]:
    """Yield the examples of each chunk in mini-batches of `size`."""
    for path in paths:
        chunk = read_chunk(path)
        tokens = tokens_of(chunk)
        for begin in range(0, len(tokens), size):
            some = slice(begin, begin + size)
            yield examples_of(tokens[some], chunk.clicks[some])
