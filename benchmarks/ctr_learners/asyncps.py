"""This project: a server and two workers, each a process; workers never wait for each other."""

from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.child_processes import SPAWN, child_process
from benchmarks.ctr_data import Chunk
from benchmarks.ctr_features import examples_of, tokens_of
from benchmarks.ctr_models import probabilities
from benchmarks.ctr_worker import JOB, TABLE, Task, work
from benchmarks.kernels import wait_for_kernels
from psctl import LocalCluster
from psworker.sync import connect

_WORKERS = 2
_ANSWER_WITHIN = 120.0  # seconds


class Asyncps:
    """The model of `task`, whose rows are on a server."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._resources = ExitStack()

    def start(self, segments: Sequence[Sequence[Path]], held_out: Chunk) -> float:
        """Start the server and the workers, which make the table."""
        cluster = self._resources.enter_context(LocalCluster(servers=1, workers=0))
        self._workers = [self._start_worker(cluster.address) for _ in range(_WORKERS)]
        for worker in self._workers:
            _receive(worker)
        wait_for_kernels(cluster)
        client = self._resources.enter_context(connect(cluster.address, JOB, observe=True))
        self._table = client.table(TABLE)
        self._held_out = examples_of(tokens_of(held_out), held_out.clicks)
        return 0.0

    def learn(self, segment: Sequence[Path]) -> None:
        """Have each worker learn a part of the segment."""
        asked = [
            (worker, part)
            for number, worker in enumerate(self._workers)
            if (part := segment[number::_WORKERS])
        ]
        for worker, part in asked:
            worker.send(part)
        for worker, _ in asked:
            _receive(worker)

    def predict(self) -> npt.NDArray[np.float32]:
        """Return the probability of a click for each held-out example, with the rows that the server has."""
        rows = self._table.pull(self._held_out.keys)
        return probabilities(self._task.model.logits(self._held_out.design, rows))

    def stop(self) -> None:
        """End the workers, then the server."""
        self._resources.close()

    def _start_worker(self, address: str) -> Connection:
        ours, theirs = SPAWN.Pipe()
        # Our end is closed first, which is what tells the worker to leave.
        self._resources.enter_context(child_process(work, address, self._task, theirs, grace=10.0))
        self._resources.enter_context(ours)
        theirs.close()
        return ours


def _receive(worker: Connection) -> None:
    if not worker.poll(_ANSWER_WITHIN):
        raise TimeoutError(f"no answer of a worker within {_ANSWER_WITHIN:.0f} s")
    worker.recv()
