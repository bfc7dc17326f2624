"""One shard's block of a dense tensor: the current version, and the mean of the gradients of a step.

A version never changes. An update makes the next one and swaps it in, so a pull that is still being sent
keeps the version it began with, and nobody waits for its socket. New values are made in the gradient's own
memory, new slots in that of an earlier version.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.buffers import BufferPool
from protocol.errors import BadRequest, NotFinite
from protocol.fields import array_decoder, array_encoder
from protocol.messages import Spec
from protocol.optimizers import Add, optimizer_from_spec
from protocol.tensors import DTYPES, all_finite
from psserver.optimizers import NO_PENALTY, Moment, hyper_of, is_steady, penalty_of, rule_of
from psserver.optimizers.rule import zeros
from psserver.store.arithmetic import INLINE, Update, accumulate, apply, each_part, of_parts, scale, squares

__all__ = ["DenseBlock", "StepMean", "Version", "check_spec", "plain_spec", "spec_from_plain"]

Array = npt.NDArray[Any]

_SPEC_TO_PLAIN = array_encoder(Spec)
_SPEC_FROM_PLAIN = array_decoder(Spec)


def check_spec(spec: Spec) -> None:
    """Raise ``BadRequest`` if no tensor can be made of ``spec``."""
    optimizer = optimizer_from_spec(spec.optimizer)
    if DTYPES[spec.dtype].kind == "f":
        if DTYPES[spec.dtype].itemsize == 2 and rule_of(optimizer).slots:
            # Squares of gradients below 2e-4 are zero in it, and so are the usual eps: it would divide by 0.
            raise BadRequest(f"{optimizer.name} needs float32 or float64", field="dtype", value=spec.dtype)
        return
    if not isinstance(optimizer, Add):
        raise BadRequest(f"{optimizer.name} needs a float dtype", field="dtype", value=spec.dtype)


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


class Version(NamedTuple):
    """What a block is between two updates: its values, and the optimizer's slots, all 1-d of one dtype."""

    values: Array
    slots: tuple[Array, ...]


class DenseBlock:
    """Elements ``start`` to ``stop`` of a tensor.

    Args:
        slots: what the optimizer keeps for each element, from a checkpoint; none: it is to begin.

    Attributes:
        name: the tensor's name.
        spec: dtype, shape and optimizer of the whole tensor.
        plain_spec: the same as plain data.
        values: those of the current version, 1-d, never written to.
        slots: those of the current version, in the order of the optimizer's names; never written to.
        version: updates applied so far.
        attempt: the attempt at creating the tensor that filled this block.
        start: the first of its elements in the tensor.
        lock: held by an update that is computed in threads.
        rule: the optimizer's.
        effort: about how many times as long an update takes as one of ``sgd`` does.
    """

    __slots__ = (
        "_memory",
        "_optimizer",
        "_penalty",
        "_steady",
        "attempt",
        "effort",
        "lock",
        "name",
        "plain_spec",
        "rule",
        "slots",
        "spec",
        "start",
        "values",
        "version",
    )

    def __init__(
        self,
        name: str,
        spec: Spec,
        values: Array,
        attempt: int,
        start: int = 0,
        slots: Sequence[Array] = (),
    ) -> None:
        self.name = name
        self.spec = spec
        self.plain_spec = plain_spec(spec)
        self.values = values
        self.version = 0
        self.attempt = attempt
        self.start = start
        self.lock = asyncio.Lock()
        self._optimizer = optimizer_from_spec(spec.optimizer)
        self.rule = rule_of(self._optimizer)
        self._penalty = penalty_of(self._optimizer)
        self.slots = tuple(slots) or self._first_slots(values)
        self._steady = self._steady_update()
        self.effort = 1 + 2 * len(self.slots) + self.rule.needs_backup
        self._memory = BufferPool(values.nbytes * len(self.slots))

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of what the optimizer keeps."""
        return self.values.nbytes * (1 + len(self.slots))

    def next_version(self, gradient: Array, moment: Moment, backup: Array | None = None) -> Version:
        """Return what comes of ``gradient``, whose memory becomes the new values.

        Args:
            gradient: 1-d, of the block's dtype and length; spoilt in any case.
            moment: the step that it is of, and how stale it is.
            backup: the values that the worker had read; None: those of now.

        Raises:
            NotFinite: the gradient is not finite, or its result would not be. Nothing has changed but the
                gradient.
        """
        update = self._steady if moment.rate == 1.0 else None
        if update is None:
            update = self._update(moment, self._sum_of_squares(gradient))
        slots, more = self._operands(backup)
        if not apply(update, self.values, gradient, *more):
            raise self._not_finite()
        return Version(gradient, slots)

    async def next_version_in_threads(
        self, gradient: Array, moment: Moment, threads: Executor, backup: Array | None = None
    ) -> Version:
        """Return the same as ``next_version``; the event loop goes on meanwhile. Needs the lock."""
        if gradient.nbytes * self.effort <= INLINE:
            return self.next_version(gradient, moment, backup)
        update = self._steady if moment.rate == 1.0 else None
        if update is None:
            update = self._update(moment, await self._sum_of_squares_in_threads(gradient, threads))
        slots, more = self._operands(backup)
        if not await each_part(threads, partial(apply, update), self.values, gradient, *more):
            raise self._not_finite()
        return Version(gradient, slots)

    def swap(self, version: Version) -> None:
        """Make ``version`` the current one."""
        self.values, self.slots = version
        self.version += 1

    def first_version(self, values: Array) -> Version:
        """Return what a block of these values begins with; in any thread."""
        return Version(values, self._first_slots(values))

    def begin_anew(self, version: Version) -> None:
        """Make a first ``version`` the current one: no update has been applied to it. Needs the lock."""
        self.values, self.slots = version
        self.version = 0

    def _first_slots(self, values: Array) -> tuple[Array, ...]:
        rule = self.rule
        if rule.start is zeros:  # of memory that takes no time before it is written to
            return tuple(np.zeros(values.size, values.dtype) for _ in rule.slots)
        h = hyper_of(self._optimizer, Moment())
        return rule.start(values, h)[: len(rule.slots)]

    def _steady_update(self) -> Update | None:
        """Return what is the same for all updates at the usual rate, if it is."""
        if self.rule.counts or self._limits_norm or not is_steady(self._optimizer):
            return None
        return self._update(Moment(), 0.0)

    @property
    def _limits_norm(self) -> bool:
        return self._penalty.clip_norm != math.inf

    def _sum_of_squares(self, gradient: Array) -> float:
        return squares(gradient, self._penalty.clip_value) if self._limits_norm else 0.0

    async def _sum_of_squares_in_threads(self, gradient: Array, threads: Executor) -> float:
        if not self._limits_norm:
            return 0.0
        return sum(await of_parts(threads, self._sum_of_squares, gradient))

    def _update(self, moment: Moment, sum_of_squares: float) -> Update:
        rule, penalty = self.rule, self._penalty
        h = hyper_of(self._optimizer, moment)
        if rule.counts:
            # Not NumPy's floats, which would turn float32 into float64.
            h = tuple(map(float, rule.at(self.version + 1, h)))  # type: ignore[assignment]
        if penalty == NO_PENALTY:
            return Update(rule, h)
        return Update(rule, h, penalty, self._factor(sum_of_squares))

    def _operands(self, backup: Array | None) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Return memory for new slots, and all arrays that ``apply`` takes beside values and gradient."""
        if not self.slots:
            return (), ((self.values if backup is None else backup,) if self.rule.needs_backup else ())
        new = tuple(self._memory.empty(slot.size, slot.dtype) for slot in self.slots)
        return new, (*self.slots, *new)

    def _factor(self, sum_of_squares: float) -> float:
        """Return what scales a gradient to the greatest length, if it is longer."""
        if not math.isfinite(sum_of_squares):
            raise self._not_finite()
        length, most = math.sqrt(sum_of_squares), self._penalty.clip_norm
        return 1.0 if length <= most else most / length

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

    async def result(self, threads: Executor, *, summed: bool = False) -> Array:
        """Return the mean, in memory that is the caller's; or, where all weights were 1, the sum."""
        factor = 1.0 if summed else 1.0 / self._relative
        if factor == 1.0:
            return self._sum.copy() if self._frozen else self._sum
        out = np.empty_like(self._sum) if self._frozen else self._sum
        if self._sum.nbytes <= INLINE:
            scale(self._sum, out, factor)
        else:
            await each_part(threads, partial(scale, factor=factor), self._sum, out)
        return out
