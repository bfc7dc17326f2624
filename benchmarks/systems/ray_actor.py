"""A Ray actor as a parameter server: one method call an operation."""

import logging
import os
from typing import Any

import numpy as np

from benchmarks.child_processes import LOOPBACK
from benchmarks.systems.closed_loop import time_tensor
from benchmarks.systems.interface import Operation
from benchmarks.systems.verification import Array, check_sums

_OBJECT_STORE_BYTES = 2 * 2**30


class RayActor:
    """An actor with float32 tensors. Each push hands the array to Ray anew, never by `ray.put`."""

    def __init__(self) -> None:
        self._actor: Any = None
        self._tensors: dict[int, _RemoteTensor] = {}

    def start(self) -> None:
        """Start a Ray of the benchmark's own on loopback, and the actor in it."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Without it Ray replaces the loopback address by one that other machines can reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        import ray

        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            # Pages touched for the first time would be most of the figure for a large tensor.
            object_store_memory=_OBJECT_STORE_BYTES,
            _system_config={"preallocate_plasma_memory": True},
            _node_ip_address=LOOPBACK,
        )
        self._actor = ray.remote(_parameters_class()).remote()

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds of one `operation` on `nbytes` bytes."""
        if nbytes not in self._tensors:
            tensor = _RemoteTensor(self._actor, nbytes)
            check_sums(tensor, nbytes)
            self._tensors[nbytes] = tensor
        return time_tensor(self._tensors[nbytes], operation, nbytes, seconds)

    def stop(self) -> None:
        """End Ray and all that it started."""
        import ray

        ray.shutdown()


class _RemoteTensor:
    """The actor's tensor of `nbytes` bytes, zeros to begin with."""

    def __init__(self, actor: Any, nbytes: int) -> None:
        import ray

        self._actor = actor
        self._nbytes = nbytes
        self._get = ray.get
        self._get(actor.create.remote(nbytes))

    def push(self, gradient: Array) -> None:
        self._get(self._actor.add.remote(self._nbytes, gradient))

    def pull(self) -> Array:
        pulled: Array = self._get(self._actor.fetch.remote(self._nbytes))
        return pulled

    def push_pull(self, gradient: Array) -> Array:
        pulled: Array = self._get(self._actor.add_and_fetch.remote(self._nbytes, gradient))
        return pulled


def _parameters_class() -> type:
    """Return the actor's class: a local one, because Ray sends only such by value."""

    class Parameters:
        def __init__(self) -> None:
            self._tensors: dict[int, Array] = {}

        def create(self, nbytes: int) -> None:
            self._tensors[nbytes] = np.zeros(nbytes // 4, np.float32)

        def add(self, nbytes: int, gradient: Array) -> None:
            self._tensors[nbytes] += gradient

        def fetch(self, nbytes: int) -> Array:
            return self._tensors[nbytes]

        def add_and_fetch(self, nbytes: int, gradient: Array) -> Array:
            self._tensors[nbytes] += gradient
            return self._tensors[nbytes]

    return Parameters
