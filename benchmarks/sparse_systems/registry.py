"""The systems of `python -m benchmarks sparse`, in the order of their rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from benchmarks.sparse_systems import redis_hash
from benchmarks.sparse_systems.asyncps import Asyncps
from benchmarks.sparse_systems.interface import TableSize, Taken
from benchmarks.sparse_systems.numpy_table import InProcess
from benchmarks.sparse_systems.raw_tcp import RawTcp
from benchmarks.sparse_systems.redis_hash import RedisHash
from benchmarks.systems.interface import System

Build = Callable[[TableSize], System[Taken]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: what it is called, how it is built, and why it is skipped, if it is.

    `build` is called in another process, so it must be importable by name. `shards` is 0 where it is
    not this project.
    """

    name: str
    label: str
    build: Build
    shards: int = 0
    absent: Callable[[], str | None] = lambda: None


def _redis_absent() -> str | None:
    return None if redis_hash.is_installed() else f"{redis_hash.PROGRAM}: not installed, skipped"


CEILING = Entry("raw-tcp", "raw TCP (ceiling)", RawTcp)
IN_PROCESS = Entry("numpy", "NumPy, no server", InProcess)
REDIS = Entry("redis", "Redis, client steps", RedisHash, absent=_redis_absent)


def entries(shards: Iterable[int]) -> tuple[Entry, ...]:
    """Return the rows, this project's once for each number of shards."""
    ours = (
        Entry(
            f"asyncps-{count}",
            f"asyncps, {count} shard{'s' if count > 1 else ''}",
            partial(Asyncps, count),
            count,
        )
        for count in shards
    )
    return (CEILING, *ours, IN_PROCESS, REDIS)
