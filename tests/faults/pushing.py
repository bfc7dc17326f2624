"""Clients that push and pull at random and tell a history, while servers die as a schedule says."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

import numpy as np

from protocol.errors import Fenced, LogUnwritable
from protocol.optimizers import SGD, Add
from psworker.client import Client, connect
from tests.faults.histories import Array, History, marked
from tests.faults.restarts import ANSWERS_WITHIN, RestartableCluster
from tests.faults.schedule import Fault, Kind, Progress, Schedule

JOB: Final = "histories"
STEPS: Final = "steps"
TENSORS: Final = {"spread": 100_000, "left": 32_000, "right": 32_000}
"""Elements: one tensor over two shards, and one on each."""

MOST: Final = 16_000  # pushes that leave a mark
UNDER_WAY: Final = 3  # of each client
_PULL: Final = 0.2  # of all rounds
_MOST_SECONDS: Final = 15.0  # of a fault, with all that follows

KILL: Final = Kind("kill", lasts=(0, 0.2))
KILL_ALL: Final = Kind("kill-all", lasts=(0, 0.2))
STOP: Final = Kind("stop", lasts=(0, 0.2))
CHECKPOINT: Final = Kind("checkpoint")
KILL_IN_CHECKPOINT: Final = Kind("kill-in-checkpoint", amount=(0, 0.05), lasts=(0, 0.2))


async def make_tensors(cluster: RestartableCluster) -> None:
    """Make the tensors that the clients push to."""
    async with connect(cluster.address, JOB, name="maker") as client:
        for name, elements in TENSORS.items():
            await client.create(name, np.zeros(elements, np.float32), Add())


async def pull_all(cluster: RestartableCluster, job: str = JOB) -> dict[str, Array]:
    """Return what the tensors hold."""
    async with connect(cluster.address, job, observe=True) as reader:
        return await reader.pull(TENSORS)


def timelines(client: Client) -> set[int]:
    """Return of which timelines the servers are to which the client is connected."""
    return {link.timeline for link in client._links}


class Pushers:
    """Clients that push and pull until ``stop``.

    Args:
        cluster: where.
        seed: of what they do.
        count: how many.

    Attributes:
        job: the job that they push to.
        history: what they did.
        progress: goes on by one with every acknowledged push.
    """

    job = JOB

    def __init__(self, cluster: RestartableCluster, seed: int, count: int = 3) -> None:
        self.history = History()
        self.progress = Progress()
        self._cluster = cluster
        self._seed = seed
        self._count = count
        self._done = False

    async def run(self) -> None:
        """Push and pull until ``stop`` is called.

        Raises:
            ExceptionGroup: a client was refused what it must not be refused.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._client(number))

    def stop(self) -> None:
        """Have the clients end what is under way."""
        self._done = True

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        async with connect(self._cluster.address, JOB, name=f"pusher-{number}") as client:
            while not self._done and len(self.history.pushes) < MOST - self._count * UNDER_WAY:
                if rng.random() < _PULL:
                    await self._pull(client, rng)
                else:
                    await asyncio.gather(*(self._push(client, rng) for _ in range(UNDER_WAY)))

    async def _push(self, client: Client, rng: random.Random) -> None:
        names = rng.choice([("spread",), ("left",), ("right",), ("left", "right"), tuple(TENSORS)])
        ends = rng.random() < 0.3
        push = self.history.push(names, max(timelines(client)))
        gradients = {name: marked(push.number, TENSORS[name]) for name in names}
        try:
            await (client.push_pull(gradients, ()) if ends else client.push(gradients))
        except Fenced:
            await self._come_back(client)
        except LogUnwritable:
            if len(names) == 1 and names != ("spread",) and not ends:  # else another shard may have taken it
                self.history.end(push, "failed")
        else:
            self.history.end(push, "acknowledged")
            self.progress.advance()

    async def _come_back(self, client: Client) -> None:
        """Join again: the cluster has gone back to a checkpoint."""
        while True:
            try:
                await client.pull("left")
            except Fenced:
                continue
            return

    async def _pull(self, client: Client, rng: random.Random) -> None:
        before, invoked = timelines(client), self.history.moment()
        names = rng.choice([("spread",), ("left", "right")])
        try:
            values = await client.pull(names)
        except Fenced:
            return
        if timelines(client) == before and len(before) == 1:
            self.history.pulled(before.pop(), invoked, values)


class Steppers(Pushers):
    """As ``Pushers``, of a synchronous job: all of them end each step together.

    The mean of a step is of all their gradients, so the learning rate undoes the division by their number.
    """

    job = STEPS

    def __init__(self, cluster: RestartableCluster, seed: int, count: int) -> None:
        super().__init__(cluster, seed, count)
        self._clients: list[Client] = []
        self._last: int | None = None  # step

    def stop(self) -> None:
        """Have the clients end the step that one of them is in, and the one after it."""
        self._last = max(client.clock for client in self._clients) + 1

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        name, workers = f"stepper-{number}", self._count
        async with connect(self._cluster.address, STEPS, name=name, staleness=0.0, workers=workers) as client:
            for name, elements in TENSORS.items():
                await client.create(name, np.zeros(elements, np.float32), SGD(lr=float(self._count)))
            self._clients.append(client)
            while self._last is None or client.clock <= self._last:
                await self._step(client, rng)

    async def _step(self, client: Client, rng: random.Random) -> None:
        names = rng.choice([("spread",), ("left",), ("right",), tuple(TENSORS)])
        push = self.history.push(names, max(timelines(client)))
        # All tensors, for a mean is over what was contributed to a tensor.
        gradients = {name: np.zeros(elements, np.float32) for name, elements in TENSORS.items()}
        gradients |= {name: -marked(push.number, TENSORS[name]) for name in names}  # which SGD subtracts
        try:
            await client.push_pull(gradients, ())
        except Fenced:
            await self._come_back(client)
        else:
            self.history.end(push, "acknowledged")
            self.progress.advance()


async def inflict(
    schedule: Schedule, cluster: RestartableCluster, pushers: Pushers, fired: Callable[[Fault], object]
) -> None:
    """Let the faults happen to the servers, one after the other, as the pushes go on.

    ``stop`` stops a server cleanly, ``checkpoint`` has a checkpoint taken, ``kill-in-checkpoint`` kills while
    it is; the server comes back after what the fault lasts. Return when the last has, and pushes go on.
    """
    async with AsyncExitStack() as stack:
        for fault in schedule:
            await pushers.progress.reached(fault.at)
            await _one(fault, cluster, pushers, stack)
            fired(fault)
            after = pushers.progress.now + 2 * UNDER_WAY  # whoever had an answer under way asks again
            if fault.draw % 2:  # else the next may come while the servers still recover
                await pushers.progress.reached(after)
        await pushers.progress.reached(pushers.progress.now + 20)


async def _one(fault: Fault, cluster: RestartableCluster, pushers: Pushers, stack: AsyncExitStack) -> None:
    victims = range(len(cluster)) if fault.kind == "kill-all" else [fault.target]
    match fault.kind:
        case "checkpoint":
            await take(cluster, pushers)
            return
        case "kill-in-checkpoint":
            taking = asyncio.create_task(take(cluster, pushers))
            stack.push_async_callback(asyncio.wait_for, taking, ANSWERS_WITHIN)
            await asyncio.sleep(fault.amount)
            cluster.kill(fault.target)
        case "stop":
            await asyncio.to_thread(cluster.terminate, fault.target)
        case _:
            for victim in victims:
                cluster.kill(victim)
    await asyncio.sleep(fault.lasts)
    for victim in victims:
        cluster.start(victim)


async def take(cluster: RestartableCluster, pushers: Pushers) -> bool:
    """Have a checkpoint taken and tell it to the history; return whether it was."""
    taken = pushers.history.take()
    done = await cluster.checkpoint()
    if done is not None:
        taken.number = done.checkpoint
    return done is not None


async def push_through(schedule: Schedule, cluster: RestartableCluster, pushers: Pushers) -> Counter[str]:
    """Push while the faults of ``schedule`` happen; return how many of each kind have."""
    fired: Counter[str] = Counter()

    def count(fault: Fault) -> None:
        fired[fault.kind] += 1

    with told(cluster, schedule):
        async with asyncio.timeout(_MOST_SECONDS * (2 + len(schedule))), asyncio.TaskGroup() as group:
            group.create_task(pushers.run())
            await inflict(schedule, cluster, pushers, count)
            pushers.stop()
    return fired


@contextmanager
def told(cluster: RestartableCluster, schedule: object) -> Iterator[None]:
    """Have an error name the schedule and show what the servers have logged."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{schedule}\n{cluster.logs()}")
        raise
