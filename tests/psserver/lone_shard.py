"""One shard without sockets: a test plays the coordinator and the workers, and orders events as it likes."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from protocol.connection import Connection
from protocol.errors import PSError
from protocol.messages import Decide, Ended, Epoch, Member, Pull, Pulled, Push, PushPull, Reply, Spec, Step
from protocol.optimizers import SGD, Optimizer, spec_of
from protocol.tensors import Part
from psserver.call import Call
from psserver.jobs import Session
from psserver.metrics import ServerMetrics
from psserver.shard import Shard
from psserver.store.dense import DenseBlock

Array = npt.NDArray[Any]
JOB = "job"
_ADDS_UP = SGD(lr=1.0)


class Listener:
    """The other end of a request: keeps its answer."""

    peer = "nowhere"

    def __init__(self, opened: float = 0.0) -> None:
        self.opened = opened
        self.awaited = 0
        self.answers: list[Reply | PSError] = []
        self.values: list[Sequence[Array]] = []

    def reply(self, request_id: int, reply: Reply, arrays: Sequence[Array] = ()) -> None:
        self.answers.append(reply)
        self.values.append([array.copy() for array in arrays])

    def fail(self, request_id: int, op: str, error: PSError) -> None:
        self.answers.append(error)

    @property
    def answer(self) -> Reply | PSError:
        """The one answer: none, or a second one, is an error."""
        (found,) = self.answers
        return found

    @property
    def clock(self) -> int | None:
        assert isinstance(self.answer, Pulled), self.answer
        return self.answer.clock


class LoneShard:
    """A shard with tensors of one job, whose tasks the test runs. ``reports`` go to the coordinator.

    What is pushed is negated on its way, so that descent adds what the tests say.
    """

    def __init__(self, optimizer: Optimizer, **tensors: int) -> None:
        self._optimizer = optimizer
        self.metrics = ServerMetrics(dict)
        self.reports: list[Ended] = []
        self.now = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.shard = Shard(self.metrics, self._spawn, self.reports.append, lambda: self.now)
        self.epoch = 0
        self.incarnations: dict[int, int] = {}
        self.clocks: dict[int, int] = {}
        self._seq: dict[tuple[int, int], int] = {}
        self._tensors = tensors

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    async def rest(self) -> None:
        """Return when nothing is under way any more; what a task raised is raised here."""
        while self._tasks:
            tasks, self._tasks = self._tasks, set()
            await asyncio.gather(*tasks)

    # --- the coordinator

    def follow(self, staleness: float, *live: int, since: int = 0, clock: int = 0) -> None:
        """Announce the next epoch; who is live the first time begins at ``clock``."""
        self.epoch += 1
        for worker in live:
            self.clocks.setdefault(worker, clock)
        members = tuple(
            Member(worker, self.incarnations.setdefault(worker, 1), f"w{worker}", self.clocks[worker])
            for worker in live
        )
        self.shard.follow(Epoch(JOB, self.epoch, staleness, since, members))
        for name, size in self._tensors.items():
            spec = Spec("float32", (size,), spec_of(self._optimizer))
            block = DenseBlock(name, spec, np.zeros(size, np.float32), attempt=1)
            self.shard.jobs[JOB].blocks.setdefault(name, block)

    def decide(self, step: int, *workers: int, commit: bool) -> None:
        self.shard.decide(Decide(JOB, step, workers, commit))

    def ended(self) -> Ended | None:
        """What the coordinator was told last."""
        return self.reports[-1] if self.reports else None

    # --- the workers

    def push(
        self, worker: int, step: int, weight: float = 1.0, *, seq: int | None = None, **gradients: Array
    ) -> Listener:
        """Push without ending the step."""
        request = Push(_parts(gradients), step, self._number(worker, seq), weight)
        return self._send(worker, request, gradients)

    def end(
        self,
        worker: int,
        step: int,
        weight: float = 1.0,
        *,
        seq: int | None = None,
        opened: float = 0.0,
        **gradients: Array,
    ) -> Listener:
        """Push, end the step and ask for what was pushed."""
        number = self._number(worker, seq)
        request = PushPull(_parts(gradients), tuple(gradients), step, number, weight)
        return self._send(worker, request, gradients, opened)

    def pull(self, worker: int, *names: str) -> Listener:
        listener = Listener()
        self.shard.pull(self._call(listener, Pull.op), self.session(worker), Pull(names), ())
        return listener

    def session(self, worker: int) -> Session:
        return Session(JOB, worker, self.incarnations[worker])

    def _number(self, worker: int, seq: int | None) -> int:
        if seq is None:
            key = (worker, self.incarnations[worker])
            seq = self._seq[key] = self._seq.get(key, 0) + 1
        return seq

    def _call(self, listener: Listener, op: str) -> Call:
        return Call(cast(Connection, listener), 1, op, self.metrics)

    def _send(
        self, worker: int, request: Step, gradients: Mapping[str, Array], opened: float = 0.0
    ) -> Listener:
        """As the server does: a header that is refused is answered, else the payload is received."""
        listener = Listener(opened)
        call, session = self._call(listener, request.op), self.session(worker)
        try:
            arrays = self.shard.arrays_for_push(session, request)
            for array, gradient in zip(arrays, gradients.values(), strict=True):
                array[:] = -gradient
            self.shard.push(call, session, request, arrays)
        except PSError as error:
            call.fail(error)
        return listener

    # --- what became of it

    def values(self, name: str) -> Array:
        return self.shard.jobs[JOB].dense(name).values.copy()

    @property
    def dropped(self) -> int:
        return self.shard.jobs[JOB].dropped


def _parts(gradients: Mapping[str, Array]) -> tuple[Part, ...]:
    return tuple(Part(name, array.dtype.name, array.size) for name, array in gradients.items())


@asynccontextmanager
async def lone_shard(optimizer: Optimizer = _ADDS_UP, **tensors: int) -> AsyncIterator[LoneShard]:
    """A shard with float32 tensors of these sizes, all zero; pushes are added. No task may fail."""
    shard = LoneShard(optimizer, **tensors)
    try:
        yield shard
    finally:
        await shard.rest()
        shard.shard.close()
