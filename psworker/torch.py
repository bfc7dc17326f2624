"""A torch module whose parameters are on the servers. (``import torch`` is torch here as well as elsewhere.)

with connect("127.0.0.1:7070", job="net") as ps:
    served = ServedModule(ps, module, SGD(lr=0.1))  # makes or finds the tensors, and loads them
    for x, y in batches:
        criterion(module(x), y).backward()
        served.step(len(x))  # what torch's optimizer.step() and zero_grad() do
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import BadTensor
from protocol.optimizers import Optimizer
from protocol.tables import Initial, Normal
from psworker.rows import SparseGradient
from psworker.sync import SyncClient

try:
    import torch
except ImportError as error:
    raise ImportError("psworker.torch needs torch; pip install 'asyncps[torch]'") from error

__all__ = ["ServedEmbedding", "ServedModule"]

Array = npt.NDArray[Any]

_SERVED_AS: Final = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
"""What a parameter's numbers are on the servers. Halves are trained there as floats: small steps add up."""


class ServedModule:
    """The parameters of a module as tensors of a client's job, by their names in the module.

    Each parameter is served once, also where several layers share it. Those that need no gradient (frozen
    ones) are loaded at the start and left alone. Buffers, such as the running statistics of a ``BatchNorm``,
    stay with each worker. Parameters of ``float16`` and ``bfloat16`` are ``float32`` on the servers and are
    rounded when they are loaded; those on another device are copied to and fro.

    Args:
        ps: has joined the job.
        module: whose parameters these are. Rows of any ``ServedEmbedding`` in it are pushed by ``step``, too.
        optimizer: what the servers do with the gradients; ``SGD()`` if None.

    Attributes:
        module: the module.

    Raises:
        BadTensor: a parameter has no shape yet, or is complex or of whole numbers.
        PSError: as ``Client.create`` and ``Client.pull``.
    """

    def __init__(self, ps: SyncClient, module: torch.nn.Module, optimizer: Optimizer | None = None) -> None:
        self.module = module
        self._ps = ps
        self._optimizer = optimizer
        self.load()

    def load(self) -> None:
        """Make the tensors that do not exist, from the module's values, and load all of them into it.

        After ``Fenced`` this joins the job again.

        Raises:
            BadTensor: as for the constructor.
            PSError: as ``Client.create`` and ``Client.pull``.
        """
        parameters = self._parameters()
        for name, parameter in parameters.items():
            self._ps.create(name, _as_served(name, parameter), self._optimizer)
        self._set(parameters, self._ps.pull(list(parameters)))

    def step(self, weight: float = 1.0) -> None:
        """Push the gradients, end this worker's step, load the new values, and forget the gradients.

        In synchronous steps (staleness 0) a parameter that no gradient has come to counts as one of zeros,
        as if all workers' batches were one; at any other staleness it is left out. Where nothing at all has
        a gradient the step ends with nothing, which keeps nobody waiting.

        Args:
            weight: at staleness 0, the share in the step's mean: the batch's rows, if the loss is their mean.

        Raises:
            BadTensor: a gradient is sparse; or as ``Client.push``.
            PSError: as ``Client.push_pull``. The gradients are kept then.
        """
        trained = {name: one for name, one in self._parameters().items() if one.requires_grad}
        self._set(trained, self._ps.push_pull(self._gradients(trained), list(trained), weight=weight))
        self.module.zero_grad()
        for embedding in self._embeddings():
            embedding.forget()

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: one for name, one in self.module.named_parameters() if _has_numbers(name, one)}

    def _embeddings(self) -> list[ServedEmbedding]:
        return [one for one in self.module.modules() if isinstance(one, ServedEmbedding)]

    def _gradients(self, trained: Mapping[str, torch.nn.Parameter]) -> dict[str, Array | SparseGradient]:
        embeddings = self._embeddings()
        found: dict[str, Array | SparseGradient] = {
            name: _as_served(name, one.grad) for name, one in trained.items() if one.grad is not None
        }
        if self._ps.staleness == 0 and (found or any(one.has_gradient for one in embeddings)):
            for name, one in trained.items():
                if name not in found:
                    found[name] = np.zeros(one.shape, _numpy_dtype(one))
            found |= {one.name: one.gradient() for one in embeddings}
        else:
            found |= {one.name: one.gradient() for one in embeddings if one.has_gradient}
        return found

    def _set(self, parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Array]) -> None:
        for name, parameter in parameters.items():
            _overwrite(parameter, values[name])


class ServedEmbedding(torch.nn.Module):
    """An embedding whose rows, any number of them, are in a sparse table; forward pulls those that it needs.

    What ``torch.nn.Embedding(sparse=True)`` is for, without an array that has all the rows. The rows are
    not in the module's ``state_dict``.

    Args:
        ps: has joined the job.
        name: the table's.
        dim: numbers in a row.
        optimizer: what the servers do with the rows' gradients; ``SGD()`` if None.
        init: what rows begin with.
        settings: more of ``Client.create_sparse``: ``seed``, ``admit_after``, ``expire_after``, ``capacity``.

    Raises:
        PSError: as ``Client.create_sparse``.
    """

    def __init__(
        self,
        ps: SyncClient,
        name: str,
        dim: int,
        optimizer: Optimizer | None = None,
        init: Initial = Normal(0.01),  # noqa: B008 (frozen)
        **settings: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self._table = ps.create_sparse(name, dim, optimizer, init, **settings)
        self._pulled: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and rows, of each forward

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``keys``.

        Args:
            keys: whole numbers, at least 0, of any shape.

        Returns:
            float32, of the shape of ``keys`` and then ``dim``.

        Raises:
            PSError: as ``Client.pull``.
        """
        used, places = torch.unique(keys, return_inverse=True)
        rows = torch.tensor(self._table.pull(used.numpy(force=True)), device=keys.device)
        if torch.is_grad_enabled():
            rows.requires_grad_()
            self._pulled.append((used, rows))
        return torch.nn.functional.embedding(places, rows)

    @property
    def has_gradient(self) -> bool:
        """Whether there is a gradient that has not been pushed."""
        return any(rows.grad is not None for _, rows in self._pulled)

    def gradient(self) -> SparseGradient:
        """Return the gradients of all rows that were pulled since ``forget``; there may be none."""
        found = [
            (keys.numpy(force=True), rows.grad.numpy(force=True))
            for keys, rows in self._pulled
            if rows.grad is not None
        ]
        keys = [np.empty(0, np.uint64), *(keys.astype(np.uint64) for keys, _ in found)]
        values = [np.empty((0, self.dim), np.float32), *(values for _, values in found)]
        return SparseGradient(np.concatenate(keys), np.concatenate(values))

    def forget(self) -> None:
        """Forget what was pulled, and its gradients."""
        self._pulled.clear()


def _has_numbers(name: str, parameter: torch.nn.Parameter) -> bool:
    """Return whether there is anything to serve of a parameter.

    Raises:
        BadTensor: it has no shape yet, or a dtype that is not trained.
    """
    if torch.nn.parameter.is_lazy(parameter):
        raise BadTensor("it has no shape yet: call the module once before it is served", field=name)
    if parameter.dtype not in _SERVED_AS:
        raise BadTensor(
            f"parameters are one of {', '.join(str(dtype) for dtype in _SERVED_AS)}; convert it first",
            field=name,
            value=parameter.dtype,
        )
    return parameter.numel() > 0


def _numpy_dtype(parameter: torch.nn.Parameter) -> npt.DTypeLike:
    return np.float64 if parameter.dtype == torch.float64 else np.float32


def _as_served(name: str, tensor: torch.Tensor) -> Array:
    """Return a parameter or gradient as it travels: the same memory, unless it is on a device or a half."""
    if tensor.layout != torch.strided:
        raise BadTensor(
            "its gradient is sparse; make the embedding with sparse=False, or a ServedEmbedding",
            field=name,
            value=tensor.layout,
        )
    array: Array = tensor.detach().to(dtype=_SERVED_AS[tensor.dtype]).numpy(force=True)
    return array


def _overwrite(parameter: torch.nn.Parameter, value: Array) -> None:
    """Write ``value``, which is read-only, into a parameter, so that autograd knows that it has changed."""
    with torch.no_grad():
        if parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64):
            np.copyto(parameter.numpy(), value)
            torch.autograd.graph.increment_version(parameter)
        else:
            parameter.copy_(torch.tensor(value))
