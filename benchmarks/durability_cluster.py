"""Servers that keep what they are told in a directory that goes with them, and a model to fill them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.durability_pusher import JOB
from protocol.addresses import split_address
from protocol.messages import Checkpoint, Checkpointed
from psctl import LocalCluster
from psworker import Add
from psworker.asking import ask
from psworker.sync import connect

_LAYER = 100_000_000  # bytes of a tensor of the model
_REACHED_WITHIN = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Durability:
    """How servers are started: `mode` is none, snapshot or log; `log_sync` always or 1s."""

    mode: str
    log_sync: str = "always"

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return f"log, {self.log_sync}" if self.mode == "log" else self.mode


NONE = Durability("none")
SNAPSHOT = Durability("snapshot")
LOG_ALWAYS = Durability("log", "always")
LOG_EACH_SECOND = Durability("log", "1s")


@contextmanager
def durable_cluster(
    directory: Path, durability: Durability, servers: int = 1, flags: Sequence[str] = ()
) -> Iterator[LocalCluster]:
    """Run servers that take checkpoints when told; what they leave below `directory` is removed."""
    with TemporaryDirectory(dir=directory, prefix="servers-") as place:
        durable = durability.mode != "none"
        cluster = LocalCluster(
            servers,
            checkpoint_dir=place if durable else None,
            durability=durability.mode if durable else None,
            checkpoint_every="0s",
            server_flags=("--log-sync", durability.log_sync, *flags),
        )
        with cluster:
            try:
                yield cluster
            finally:
                for index in reversed(range(servers)):
                    cluster.kill_server(index)  # a last checkpoint takes its time, and nobody would read it


def fill(address: str, nbytes: int) -> None:
    """Make a model of `nbytes` in tensors of at most 100 MB."""
    values = np.random.default_rng(0).random(min(_LAYER, nbytes) // 4, np.float32)
    with connect(address, JOB) as client:
        for number, begin in enumerate(range(0, nbytes, _LAYER)):
            client.create(f"layer-{number}", values[: (nbytes - begin) // 4], Add())


def take_checkpoint(address: str) -> Checkpointed:
    """Have the servers take a checkpoint, and return what they say of it.

    Raises CheckpointFailed where they cannot.
    """
    found: Checkpointed
    found, _ = asyncio.run(ask(*split_address(address), Checkpoint(), within=_REACHED_WITHIN))
    return found
