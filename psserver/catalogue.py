"""Which tensors a job has, where they are, and who fills those that are being made. No sockets.

    (absent) ──create──> being filled, attempt 1 ──initialised──> filled
                              │    ▲
            the creator goes, │    │ the next asker
            or asks again     ▼    │
                          attempt + 1

Rules:
- The first to create a tensor fills it; who creates it meanwhile waits, and is told when it is filled.
- If the creator goes away halfway, the next asker begins anew, with a higher attempt; so all shards end up
  with one creator's values.
- Who waits and asks again, on a new connection, is answered there alone.
- Two creators must agree on the spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from protocol.errors import BadRequest, SpecMismatch, UnknownTensor
from protocol.fields import Positive
from protocol.messages import Block, Created, Spec, TensorInfo
from protocol.optimizers import optimizer_from_spec
from psserver.saved_state import SavedState, check_once

__all__ = ["TensorCatalogue"]

Client = TypeVar("Client")
Ask = TypeVar("Ask")


@dataclass(slots=True)
class _Tensor(Generic[Client, Ask]):
    """A tensor; until it is filled, ``creator`` is filling it or nobody is."""

    info: TensorInfo
    creator: Client | None
    attempt: int = 1
    filled: bool = False
    waiting: list[tuple[Client, Ask]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _SavedTensor:
    """What is saved of a tensor."""

    info: TensorInfo
    attempt: Positive
    filled: bool


@dataclass(frozen=True, slots=True)
class _Saved:
    """What is saved."""

    tensors: tuple[_SavedTensor, ...]


_SAVED: Final = SavedState(_Saved)


class TensorCatalogue(Generic[Client, Ask]):
    """The tensors of one job.

    A client is whoever goes away as one, such as a worker; an ask is what is to be answered. Both
    are only kept and compared.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, _Tensor[Client, Ask]] = {}

    # --- to a disk and back

    def state(self) -> dict[str, Any]:
        """Return all of it as plain data, as it is when all clients have gone."""
        return _SAVED.plain(_Saved(tuple([_saved(tensor) for tensor in self._tensors.values()])))

    @classmethod
    def restored(cls, state: object) -> TensorCatalogue[Client, Ask]:
        """Return the catalogue whose ``state`` this is. Whoever asks next for what is not filled fills it.

        Raises:
            BadRequest: it is not whole.
        """
        saved, found = _SAVED.checked(state), cls()
        check_once([one.info.name for one in saved.tensors], "tensors")
        for one in saved.tensors:
            _check_blocks(one.info)
            optimizer_from_spec(one.info.spec.optimizer)  # or refuse it
            found._tensors[one.info.name] = _Tensor(one.info, None, one.attempt, one.filled)
        return found

    # --- where they are

    def infos(self) -> list[TensorInfo]:
        """Return what all tensors are and where, also those that are not filled yet."""
        return [tensor.info for tensor in self._tensors.values()]

    def attempt(self, name: str) -> int:
        """Return the latest attempt at creating a tensor.

        Raises:
            UnknownTensor: there is none of that name.
        """
        return self._tensor(name).attempt

    def move(self, name: str, blocks: tuple[Block, ...]) -> None:
        """Have a tensor's blocks be elsewhere.

        Raises:
            UnknownTensor: there is none of that name.
            BadRequest: the blocks are not all of it.
        """
        tensor = self._tensor(name)
        info = replace(tensor.info, blocks=blocks)
        _check_blocks(info)
        tensor.info = info

    def _tensor(self, name: str) -> _Tensor[Client, Ask]:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise UnknownTensor("create it first", field="name", value=name)
        return tensor

    # --- who makes them, and who asks

    def create(
        self, name: str, spec: Spec, client: Client, ask: Ask, place: Callable[[Spec], tuple[Block, ...]]
    ) -> Created | None:
        """Return the answer to ``ask``; None if it has to wait until the tensor is filled.

        Who asks again has given its former ask up, and its attempt, if it had one.

        Raises:
            SpecMismatch: the tensor exists with another spec.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = _Tensor(TensorInfo(name, spec, place(spec)), client)
            return Created(tensor.info.blocks, tensor.attempt)
        if tensor.info.spec != spec:
            raise _mismatch(name, tensor.info.spec, spec)
        if tensor.filled:
            return Created(tensor.info.blocks)
        if tensor.creator is client:
            tensor.attempt += 1
        elif tensor.creator is None:
            tensor.creator = client
        else:
            others = [(other, former) for other, former in tensor.waiting if other is not client]
            tensor.waiting = [*others, (client, ask)]
            return None
        return Created(tensor.info.blocks, tensor.attempt)

    def initialised(self, name: str, attempt: int) -> list[tuple[Ask, Created]]:
        """Note that a tensor is filled; return the answers to those who wait for it.

        Raises:
            UnknownTensor, BadRequest: nobody creates it, or another attempt has begun.
        """
        tensor = self._tensor(name)
        if tensor.attempt != attempt:
            raise BadRequest("another attempt has begun", field="attempt", value=attempt)
        tensor.creator, tensor.filled = None, True
        waiting, tensor.waiting = tensor.waiting, []
        return [(ask, Created(tensor.info.blocks)) for _, ask in waiting]

    def lost(self, client: Client) -> list[tuple[Ask, Created]]:
        """Note that a client is gone; return the answers to those who now fill what it was filling."""
        answers = []
        for tensor in self._tensors.values():
            tensor.waiting = [(other, ask) for other, ask in tensor.waiting if other is not client]
            if tensor.creator is client:
                tensor.attempt += 1
                tensor.creator = None
                if tensor.waiting:
                    tensor.creator, ask = tensor.waiting.pop(0)
                    answers.append((ask, Created(tensor.info.blocks, tensor.attempt)))
        return answers

    def waits(self) -> Iterator[tuple[str, Client, list[Ask]]]:
        """Yield each tensor that somebody waits for, who is filling it, and what is to be answered then."""
        for tensor in self._tensors.values():
            if tensor.waiting and tensor.creator is not None:
                yield tensor.info.name, tensor.creator, [ask for _, ask in tensor.waiting]

    def describe(self, names: Sequence[str]) -> tuple[TensorInfo, ...]:
        """Return what these tensors are; without names, all that are filled.

        Raises:
            UnknownTensor: one of them is not there, or not filled.
        """
        if not names:
            return tuple(self)
        found = []
        for name in names:
            tensor = self._tensors.get(name)
            if tensor is None or not tensor.filled:
                raise UnknownTensor(
                    "the job has no tensor of that name; create it first", field="name", value=name
                )
            found.append(tensor.info)
        return tuple(found)

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter([tensor.info for tensor in self._tensors.values() if tensor.filled])


def _saved(tensor: _Tensor[Any, Any]) -> _SavedTensor:
    lost = tensor.creator is not None  # its attempt goes with it
    return _SavedTensor(tensor.info, tensor.attempt + lost, tensor.filled)


def _check_blocks(info: TensorInfo) -> None:
    """Refuse blocks that are not all of a tensor, in order, each on a shard of its own."""
    bounds = [0, *(block.stop for block in info.blocks)]
    sound = bounds[-1] == math.prod(info.spec.shape) and bounds == sorted(set(bounds))
    sound = sound and [block.start for block in info.blocks] == bounds[:-1]
    if not sound or len({block.shard for block in info.blocks}) < len(info.blocks):
        raise BadRequest(
            "blocks are all of a tensor, in order, each on a shard of its own",
            field="blocks",
            value=info.blocks,
        )


def _mismatch(name: str, has: Spec, wanted: Spec) -> SpecMismatch:
    for field_name in ("dtype", "shape", "optimizer", "table"):
        old, new = getattr(has, field_name), getattr(wanted, field_name)
        if old != new:
            return SpecMismatch(
                f"tensor {name!r} exists with {field_name} {old}", field=field_name, value=new
            )
    raise AssertionError("the specs are equal")
