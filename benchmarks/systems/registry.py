"""The systems of `python -m benchmarks dense`, in the order of their rows."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.systems.asyncps import OneShard, TwoShards
from benchmarks.systems.interface import OPERATIONS, Operation, System
from benchmarks.systems.raw_tcp import RawTcp, RawTcpStreaming
from benchmarks.systems.ray_actor import RayActor
from benchmarks.systems.torch_rpc import TorchRpc
from benchmarks.systems.uvloop_echo import UvloopEcho


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: what it is called, how it is built, and what it can be asked.

    `build` is called in another process, so it must be importable by name. `needs` is the package
    without which the row is skipped; `most_bytes` bounds the sizes at which it is measured.
    """

    name: str
    label: str
    build: Callable[[], System[float]]
    operations: tuple[Operation, ...] = OPERATIONS
    most_bytes: int | None = None
    needs: str | None = None

    def measures(self, operation: Operation, nbytes: int) -> bool:
        """Tell whether the row has a figure for `operation` on `nbytes` bytes."""
        within = self.most_bytes is None or nbytes <= self.most_bytes
        return within and operation in self.operations

    def is_installed(self) -> bool:
        """Tell whether the package that it needs can be imported."""
        return self.needs is None or find_spec(self.needs) is not None


CEILING = Entry("raw-tcp", "raw TCP (ceiling)", RawTcp)

ENTRIES = (
    CEILING,
    Entry("raw-tcp-streaming", "raw TCP, streaming", RawTcpStreaming, operations=("push",)),
    Entry("uvloop-echo", "uvloop echo", UvloopEcho, operations=("push_pull",), most_bytes=64 * 1024),
    Entry("asyncps-1", "asyncps, 1 shard", OneShard),
    Entry("asyncps-2", "asyncps, 2 shards", TwoShards),
    Entry("torch", "torch.distributed.rpc", TorchRpc, needs="torch"),
    Entry("ray", "Ray actor (shared memory)", RayActor, needs="ray"),
)
