"""Proof, before a system is timed, that it does what it is timed for."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class WrongResult(Exception):
    """A system answered something other than what comes of what was pushed."""


class DenseTensor(Protocol):
    """The blocking calls of a client on one float32 tensor of its server, shape `(n,)`."""

    def push(self, gradient: Array) -> None:
        """Add `gradient` to the tensor."""

    def pull(self) -> Array:
        """Return the tensor."""

    def push_pull(self, gradient: Array) -> Array:
        """Add `gradient` to the tensor and return the sum."""


def make_gradient(nbytes: int) -> Array:
    """Return float32 `(nbytes / 4,)` of small whole numbers, whose sums are exact."""
    return (np.arange(nbytes // 4) % 1000 + 1).astype(np.float32)


def check_equal(operation: str, got: Array, wanted: Array) -> None:
    """Raise WrongResult unless `got` equals `wanted` in every element."""
    if not np.array_equal(got, wanted):
        raise WrongResult(f"{operation}: the server's tensor is not the sum of what was pushed")


def check_sums(tensor: DenseTensor, nbytes: int) -> None:
    """Push twice to a `tensor` of zeros, looking at it after each.

    Raises WrongResult where it is not what was pushed.
    """
    gradient = make_gradient(nbytes)
    tensor.push(gradient)
    check_equal("push, then pull", tensor.pull(), gradient)
    check_equal("push_pull", tensor.push_pull(gradient), 2 * gradient)


def check_descent(tensor: DenseTensor, nbytes: int) -> None:
    """Push a gradient above zero to a `tensor` of zeros, whose server has an optimizer.

    Raises WrongResult where not every element has fallen.
    """
    tensor.push(make_gradient(nbytes))
    if not (tensor.pull() < 0).all():
        raise WrongResult("push, then pull: the server's tensor did not move against the gradient")
