"""One shard's block of a dense tensor: the current version, and the mean of the gradients of a step.

A version never changes. An update makes the next one in the gradient's own memory and swaps it in, so a
pull that is still being sent keeps the version it began with, and nobody waits for its socket.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import BadRequest, NotFinite
from protocol.fields import array_decoder, array_encoder
from protocol.messages import Spec
from protocol.optimizers import Add, optimizer_from_spec
from protocol.tensors import DTYPES, all_finite
from psserver.optimizers import update_of
from psserver.store.arithmetic import INLINE, accumulate, apply, each_part, scale

__all__ = ["DenseBlock", "StepMean", "check_spec", "plain_spec", "spec_from_plain"]

Array = npt.NDArray[Any]

_SPEC_TO_PLAIN = array_encoder(Spec)
_SPEC_FROM_PLAIN = array_decoder(Spec)


def check_spec(spec: Spec, *, averaged: bool) -> None:
    """Raise ``BadRequest`` if no tensor can be made of ``spec``.

    Args:
        spec: what a client asks for.
        averaged: the job is synchronous, so that gradients are averaged.
    """
    optimizer = optimizer_from_spec(spec.optimizer)
    if DTYPES[spec.dtype].kind == "f":
        return
    if not isinstance(optimizer, Add):
        raise BadRequest(f"{optimizer.name} needs a float dtype", field="dtype", value=spec.dtype)
    if averaged:
        raise BadRequest(
            "a synchronous job averages updates, which integers cannot hold", field="dtype", value=spec.dtype
        )


def plain_spec(spec: Spec) -> list[Any]:
    """Return a spec as plain data, which ``spec_from_plain`` takes."""
    plain: list[Any] = _SPEC_TO_PLAIN(spec)
    return plain


def spec_from_plain(plain: Any) -> Spec:
    """Return the spec that plain data describe.

    Raises:
        BadRequest: they describe none.
    """
    spec: Spec = _SPEC_FROM_PLAIN(plain, "spec")
    return spec


class DenseBlock:
    """Elements ``start`` to ``stop`` of a tensor.

    Attributes:
        name: the tensor's name.
        spec: dtype, shape and optimizer of the whole tensor.
        plain_spec: the same as plain data.
        values: the current version, 1-d, never written to.
        version: updates applied so far.
        attempt: the attempt at creating the tensor that filled this block.
        start: the first of its elements in the tensor.
        lock: held by an update that is computed in threads.
    """

    __slots__ = ("_update", "attempt", "lock", "name", "plain_spec", "spec", "start", "values", "version")

    def __init__(self, name: str, spec: Spec, values: Array, attempt: int, start: int = 0) -> None:
        self.name = name
        self.spec = spec
        self.plain_spec = plain_spec(spec)
        self.values = values
        self.version = 0
        self.attempt = attempt
        self.start = start
        self.lock = asyncio.Lock()
        self._update = update_of(optimizer_from_spec(spec.optimizer))

    def next_version(self, gradient: Array) -> Array:
        """Return the values after ``gradient``, in its memory.

        Raises:
            NotFinite: they would not all be finite. Nothing has changed but the gradient.
        """
        if not apply(self._update, self.values, gradient):
            raise self._not_finite()
        return gradient

    async def next_version_in_threads(self, gradient: Array, threads: Executor) -> Array:
        """Return the same as ``next_version``; the event loop goes on meanwhile. Needs the lock."""
        if gradient.nbytes <= INLINE:
            return self.next_version(gradient)
        if not await each_part(threads, partial(apply, self._update), self.values, gradient):
            raise self._not_finite()
        return gradient

    def swap(self, values: Array) -> None:
        """Make ``values`` the current version."""
        self.values = values
        self.version += 1

    async def check(self, gradient: Array, threads: Executor) -> None:
        """Raise ``NotFinite`` if ``gradient`` has NaN or infinity."""
        if gradient.nbytes <= INLINE:
            finite = all_finite(gradient)
        else:
            finite = await each_part(threads, all_finite, gradient)
        if not finite:
            raise self._not_finite()

    def _not_finite(self) -> NotFinite:
        return NotFinite(
            "NaN or infinity in the gradient or in the values it leads to; nothing was changed",
            field="tensors",
            value=self.name,
        )


class StepMean:
    """The weighted mean of gradients, ``sum(w_i * g_i) / sum(w_i)``, in the memory of one of them.

    Weights are kept relative to the first, so that equal ones, the usual case, cost no multiplication.
    """

    __slots__ = ("_frozen", "_relative", "_sum", "_unit")

    def __init__(self, gradient: Array, weight: float, relative: float = 1.0) -> None:
        self._sum = gradient
        self._unit = weight
        self._relative = relative
        self._frozen = False

    def freeze(self) -> tuple[Array, float, float]:
        """Return sum, unit and relative weight, to make the same mean of; the sum does not change any more.

        What is added later goes elsewhere.
        """
        self._frozen = True
        return self._sum, self._unit, self._relative

    def peek(self) -> tuple[Array, float, float]:
        """Return the same as ``freeze``; the sum does change when something is added."""
        return self._sum, self._unit, self._relative

    async def add(self, gradient: Array, weight: float, threads: Executor) -> None:
        """Count another gradient in; its memory may be spoilt."""
        await self._add(gradient, weight / self._unit, 1.0, threads, spare=gradient)

    async def merge(self, other: StepMean, threads: Executor) -> None:
        """Count another mean's gradients in; it may be spoilt."""
        spare = None if other._frozen else other._sum
        await self._add(other._sum, other._unit / self._unit, other._relative, threads, spare)

    async def _add(
        self, gradient: Array, ratio: float, count: float, threads: Executor, spare: Array | None
    ) -> None:
        out = self._sum
        if self._frozen:
            out = np.empty_like(gradient) if spare is None else spare
        add = partial(accumulate, ratio=ratio)
        if gradient.nbytes <= INLINE:
            add(self._sum, gradient, out)
        else:
            await each_part(threads, add, self._sum, gradient, out)
        self._sum, self._frozen = out, False
        self._relative += ratio * count

    async def result(self, threads: Executor) -> Array:
        """Return the mean, in memory that is the caller's."""
        factor = 1.0 / self._relative
        if factor == 1.0 and not self._frozen:
            return self._sum
        out = np.empty_like(self._sum) if self._frozen else self._sum
        if self._sum.nbytes <= INLINE:
            scale(self._sum, out, factor)
        else:
            await each_part(threads, partial(scale, factor=factor), self._sum, out)
        return out
