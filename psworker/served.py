"""A model's parameters on the servers: dense tensors, and sparse tables for what has a row a feature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from protocol.messages import Done
from protocol.optimizers import Optimizer
from protocol.tables import Keys, Zeros
from psworker.client import Client
from psworker.models.model import HashedModel, Model, OwnRule
from psworker.rows import SparseGradient

__all__ = ["ServedModel"]

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]


class ServedModel:
    """The tensors and tables of one model in a client's job.

    What comes back from ``pull`` and ``push_pull`` is what the model takes: its parameters by name, those per
    feature as an array of a row a key.

    Args:
        client: has joined the job.
        model: whose parameters these are.
        optimizer: the job's; a model with a rule of its own has that.
        seed: of the initial rows of tables.
        hashed: whether the features are hashed, so that what is per feature is in tables.
    """

    def __init__(
        self, client: Client, model: Model, optimizer: Optimizer, *, seed: int = 0, hashed: bool = False
    ) -> None:
        self.client = client
        self._optimizer = model.optimizer if isinstance(model, OwnRule) else optimizer
        self._seed = seed
        self._start = model.parameters()
        self._tables = (
            frozenset(model.per_feature) if hashed and isinstance(model, HashedModel) else frozenset()
        )
        self._initial = model.initial if isinstance(model, HashedModel) else {}

    async def create(self) -> None:
        """Make what does not exist yet.

        Raises:
            PSError: as ``Client.create`` and ``create_sparse``.
        """
        for name, value in self._start.items():
            if name not in self._tables:
                await self.client.create(name, value, self._optimizer)
                continue
            await self.client.create_sparse(
                name,
                math.prod(value.shape[1:]),
                self._optimizer,
                self._initial.get(name, Zeros()),
                seed=self._seed,
                dtype=str(value.dtype),
            )

    async def pull(self, keys: Keys | None = None) -> dict[str, Array]:
        """Return the parameters, those per feature for ``keys``.

        Raises:
            PSError: as ``Client.pull``.
        """
        return self._shaped(await self.client.pull(self._wanted(keys)))

    async def push_pull(
        self,
        gradients: Parameters,
        keys: Keys | None = None,
        next_keys: Keys | None = None,
        *,
        weight: float = 1.0,
        done: Done | None = None,
    ) -> dict[str, Array]:
        """Push, end the step, and return the parameters for ``next_keys``.

        Args:
            gradients: by the names of the parameters; may be empty.
            keys: of the gradients per feature.
            next_keys: of the parameters wanted.
            weight: as for ``Client.push_pull``.
            done: as for ``Client.push_pull``.

        Raises:
            PSError: as ``Client.push_pull``.
        """
        pushed = {name: self._outgoing(name, value, keys) for name, value in gradients.items()}
        wanted = self._wanted(next_keys)
        return self._shaped(await self.client.push_pull(pushed, wanted, weight=weight, done=done))

    async def reset(self) -> None:
        """Have the servers begin anew: initial values, empty tables, and nothing that optimizers remember.

        Raises:
            PSError: as ``Client.reset``.
        """
        await self.client.reset(
            {name: None if name in self._tables else value for name, value in self._start.items()}
        )

    def _wanted(self, keys: Keys | None) -> dict[str, Keys | None]:
        return {name: keys if name in self._tables else None for name in self._start}

    def _outgoing(self, name: str, value: Array, keys: Keys | None) -> Array | SparseGradient:
        if name not in self._tables:
            return value
        assert keys is not None  # noqa: S101 (a batch of hashed features has keys)
        return SparseGradient(keys, value.reshape(len(keys), -1))

    def _shaped(self, pulled: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: value.reshape(-1, *self._start[name].shape[1:]) if name in self._tables else value
            for name, value in pulled.items()
        }
