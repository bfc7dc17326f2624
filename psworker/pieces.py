"""One push of several mini-batches: their gradients accumulated, or steps of the worker's own.

Both take a batch in pieces. Of hashed features, a piece has some of the batch's rows of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.optimizers import SGD, Optimizer
from psworker.data import Batch
from psworker.errors import JobError
from psworker.job import TrainSettings
from psworker.models import Model
from psworker.models.calls import gradients_of
from psworker.models.model import OwnRule

__all__ = ["Compute", "accumulated", "check_pieces", "local_rate", "stepped"]

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]

Compute = Callable[[Parameters, Batch], tuple[Parameters, float]]
"""What is pushed of a batch, and its mean loss, from the parameters."""


def accumulated(
    model: Model, parameters: Parameters, batch: Batch, size: int, per_feature: frozenset[str]
) -> tuple[Parameters, float]:
    """Return the gradients and the loss of a batch, computed on ``size`` rows at a time.

    They are the weighted means over the pieces, so those of the whole batch where the loss is a mean over
    rows, in the memory that a piece takes.

    Raises:
        ModelError, DataError: as ``gradients_of``.
    """
    if len(batch) <= size:
        return gradients_of(model, parameters, batch)
    sums: dict[str, Array] = {}
    loss, whole = 0.0, batch.total
    for piece, rows in _pieces(batch, size):
        share = piece.total / whole
        gradients, own_loss = gradients_of(model, _part(parameters, rows, per_feature), piece)
        for name, gradient in gradients.items():
            at = rows if name in per_feature else ...
            if name not in sums:
                sums[name] = np.zeros_like(parameters[name])
            sums[name][at] += gradient * gradient.dtype.type(share)
        loss += own_loss * share
    return sums, loss


def stepped(
    model: Model,
    parameters: Parameters,
    batch: Batch,
    size: int,
    per_feature: frozenset[str],
    lr: Callable[[], float],
) -> tuple[Parameters, float]:
    """Take steps of plain SGD on a copy of the parameters, one for each ``size`` rows; return their sum.

    Local SGD (Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019, algorithm 1). What is
    returned is the change of the parameters divided by -lr, which is the sum of the gradients on the way. So
    where the servers descend with the same learning rate they arrive, in a synchronous step, at the mean of
    the workers' copies, weighted by their examples, and otherwise add each worker's change. The loss is the
    mean over the mini-batches, each before its step.

    Args:
        model: whose gradients these are.
        parameters: to begin with.
        batch: the rows of all steps, in order.
        size: rows of a step.
        per_feature: which parameters have a row a key of the batch.
        lr: what the servers' learning rate is now.

    Raises:
        ModelError, DataError: as ``gradients_of``.
    """
    own = {name: value.copy() for name, value in parameters.items()}
    sums: dict[str, Array] = {}
    loss, whole, rate = 0.0, batch.total, lr()
    for piece, rows in _pieces(batch, size):
        gradients, own_loss = gradients_of(model, _part(own, rows, per_feature), piece)
        for name, gradient in gradients.items():
            at = rows if name in per_feature else ...
            if name not in sums:
                sums[name] = np.zeros_like(parameters[name])
            sums[name][at] += gradient
            own[name][at] -= gradient * gradient.dtype.type(rate)
        loss += own_loss * piece.total / whole
    return sums, loss


def check_pieces(settings: TrainSettings, model: Model, optimizer: Optimizer) -> None:
    """Raise JobError if this model or optimizer cannot do with one push of several mini-batches."""
    if settings.local_steps > 1:
        local_rate(model, optimizer)
    if settings.accumulate > 1 and isinstance(model, OwnRule):
        raise JobError(
            "[train] accumulate is a mean of gradients, and this model pushes something else: take 1, and "
            "larger batch-size"
        )


def local_rate(model: Model, optimizer: Optimizer) -> float:
    """Return the learning rate of a worker's own steps, the servers'.

    Raises:
        JobError: the servers would make something else of a sum of changes than to add it.
    """
    if isinstance(model, OwnRule):
        raise JobError(
            "[train] local-steps is for models that descend, and this one has its own rule: take 1"
        )
    if not isinstance(optimizer, SGD):
        raise JobError(
            f'[train] local-steps needs [optimizer] name = "sgd", and it is "{optimizer.name}": what a '
            "worker pushes is a sum of its own steps, which another rule would not just add; take sgd, or "
            "local-steps = 1"
        )
    if optimizer != SGD(optimizer.lr):
        raise JobError(
            "[train] local-steps needs a plain sgd, with lr and nothing else: the servers would clip, "
            "penalise or schedule the sum of a worker's steps; take the rest out of [optimizer], or "
            "local-steps = 1"
        )
    return optimizer.lr


def _pieces(batch: Batch, size: int) -> Iterator[tuple[Batch, Any]]:
    """Yield a batch piece by piece, and which of its keys each piece has."""
    for start in range(0, len(batch), size):
        piece = batch.take(np.arange(start, min(start + size, len(batch))))
        if batch.keys is None or piece.keys is None:
            yield piece, None
        else:
            yield piece, np.searchsorted(batch.keys, piece.keys)


def _part(parameters: Parameters, rows: Any, per_feature: frozenset[str]) -> Parameters:
    """Return the parameters with the rows of a piece."""
    if rows is None:
        return parameters
    return {name: value[rows] if name in per_feature else value for name, value in parameters.items()}
