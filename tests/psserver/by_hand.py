"""A worker without a client: it sends to each server what the test says, when the test says so."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from protocol.connection import Answer, Connection
from protocol.messages import Heartbeat, Hello, Join, Joined, Push, PushPull
from protocol.tensors import Part
from tests.cluster import connected, hello

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ByHand:
    """A worker that has joined, and its connections by shard. It sends no heartbeat of its own accord."""

    joined: Joined
    connections: list[Connection]

    @property
    def identity(self) -> Hello:
        return hello(self.joined.job, self.joined.worker, self.joined.incarnation)

    def push(self, shard: int, seq: int, step: int, weight: Any = 1.0, **gradients: Array) -> Answer:
        request = Push(_parts(gradients), step, seq, weight)
        return self.connections[shard].send(request, tuple(gradients.values()))

    def end(
        self,
        shard: int,
        seq: int,
        step: int,
        weight: Any = 1.0,
        *,
        on: Any = None,
        **gradients: Array,
    ) -> Answer:
        """Push, end the step and ask for what was pushed; ``on`` another connection to the shard."""
        request = PushPull(_parts(gradients), tuple(gradients), step, seq, weight)
        return (on or self.connections[shard]).send(request, tuple(gradients.values()))

    async def beat(self) -> None:
        await self.connections[0].request(Heartbeat(0, 0))


def _parts(gradients: Mapping[str, Array]) -> tuple[Part, ...]:
    return tuple(Part(name, array.dtype.name, array.size) for name, array in gradients.items())


@asynccontextmanager
async def worker_by_hand(
    address: str, name: str, job: str = "default", **settings: Any
) -> AsyncIterator[ByHand]:
    """A worker of that name. At the end its connections end without a goodbye."""
    async with AsyncExitStack() as stack:
        coordinator = await stack.enter_async_context(connected(address, hello()))
        joined: Joined
        joined, _ = await coordinator.request(Join(f"token of {name}", job, name, **settings))
        identity = hello(joined.job, joined.worker, joined.incarnation)
        others = [await stack.enter_async_context(connected(shard, identity)) for shard in joined.shards[1:]]
        yield ByHand(joined, [coordinator, *others])
