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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from protocol.errors import BadRequest, SpecMismatch, UnknownTensor
from protocol.messages import Block, Created, Spec, TensorInfo

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


class TensorCatalogue(Generic[Client, Ask]):
    """The tensors of one job.

    A client is whoever goes away as one, such as a worker; an ask is what is to be answered. Both
    are only kept and compared.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, _Tensor[Client, Ask]] = {}

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
        tensor = self._tensors.get(name)
        if tensor is None:
            raise UnknownTensor("create it first", field="name", value=name)
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

    def specs(self) -> list[Spec]:
        """Return what all tensors are, also those that are not filled yet."""
        return [tensor.info.spec for tensor in self._tensors.values()]

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter([tensor.info for tensor in self._tensors.values() if tensor.filled])


def _mismatch(name: str, has: Spec, wanted: Spec) -> SpecMismatch:
    for field_name in ("dtype", "shape", "optimizer"):
        old, new = getattr(has, field_name), getattr(wanted, field_name)
        if old != new:
            return SpecMismatch(
                f"tensor {name!r} exists with {field_name} {old}", field=field_name, value=new
            )
    raise AssertionError("the specs are equal")
