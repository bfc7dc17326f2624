"""torch.distributed.rpc (TensorPipe) as a parameter server: one remote call an operation."""

import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.child_processes import child_process, exit_with_parent
from benchmarks.systems.closed_loop import time_tensor
from benchmarks.systems.interface import Operation
from benchmarks.systems.verification import Array, check_sums

if TYPE_CHECKING:
    import torch

_CLIENT, _SERVER = "client", "server"

# The server's. A remote call finds it by module and name, the fastest way that torch has.
_parameters: "dict[int, torch.Tensor]" = {}


class TorchRpc:
    """A server with float32 tensors; `rpc_sync` adds to them and fetches them."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._tensors: dict[int, _RemoteTensor] = {}

    def start(self) -> None:
        """Start the server process and meet it through a file; only loopback is bound."""
        os.environ["TP_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        directory = self._resources.enter_context(TemporaryDirectory(prefix="torch-rpc-"))
        meeting = Path(directory, "store").as_uri()
        self._resources.enter_context(child_process(_serve, meeting))
        _join(meeting, _CLIENT, 0)
        self._resources.callback(_leave)

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds of one `operation` on `nbytes` bytes."""
        if nbytes not in self._tensors:
            tensor = _RemoteTensor(nbytes)
            check_sums(tensor, nbytes)
            self._tensors[nbytes] = tensor
        return time_tensor(self._tensors[nbytes], operation, nbytes, seconds)

    def stop(self) -> None:
        """Leave the group and end the server process."""
        self._resources.close()


class _RemoteTensor:
    """The tensor of `nbytes` bytes on the server, zeros to begin with."""

    def __init__(self, nbytes: int) -> None:
        import torch
        from torch.distributed.rpc import rpc_sync

        self._nbytes = nbytes
        self._from_numpy = torch.from_numpy  # and `.numpy()` below: views, nothing is copied
        self._call = rpc_sync
        self._call(_SERVER, _create, args=(nbytes,))

    def push(self, gradient: Array) -> None:
        self._call(_SERVER, _add, args=(self._nbytes, self._from_numpy(gradient)))

    def pull(self) -> Array:
        pulled: Array = self._call(_SERVER, _fetch, args=(self._nbytes,)).numpy()
        return pulled

    def push_pull(self, gradient: Array) -> Array:
        arguments = (self._nbytes, self._from_numpy(gradient))
        pulled: Array = self._call(_SERVER, _add_and_fetch, args=arguments).numpy()
        return pulled


def _serve(meeting: str) -> None:
    exit_with_parent()
    _join(meeting, _SERVER, 1)
    from torch.distributed.rpc import shutdown

    shutdown()  # serves until the client has left too


def _join(meeting: str, name: str, rank: int) -> None:
    from torch.distributed import rpc

    join: Any = rpc.init_rpc  # which has no types
    options = rpc.TensorPipeRpcBackendOptions(init_method=meeting, rpc_timeout=60)
    with warnings.catch_warnings():
        # torch warns of its own use of something that it has deprecated.
        warnings.simplefilter("ignore", UserWarning)
        join(name, rank=rank, world_size=2, rpc_backend_options=options)


def _leave() -> None:
    from torch.distributed.rpc import shutdown

    shutdown()


def _create(nbytes: int) -> None:
    import torch

    _parameters[nbytes] = torch.zeros(nbytes // 4, dtype=torch.float32)


def _add(nbytes: int, gradient: "torch.Tensor") -> None:
    _parameters[nbytes].add_(gradient)


def _fetch(nbytes: int) -> "torch.Tensor":
    return _parameters[nbytes]


def _add_and_fetch(nbytes: int, gradient: "torch.Tensor") -> "torch.Tensor":
    return _parameters[nbytes].add_(gradient)
