"""Cut named arrays into the blocks that the shards hold, and put pulled blocks together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.buffers import BufferPool
from protocol.errors import BadTensor, NotFinite
from protocol.messages import TensorInfo
from protocol.tensors import DTYPES, Part, all_finite, dtype_name

__all__ = ["Outgoing", "Pulls", "as_tensor", "plan_pull", "plan_push"]

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Outgoing:
    """What one shard is sent: the description of its blocks, and the blocks."""

    parts: list[Part] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)


@dataclass(slots=True)
class Pulls:
    """What is asked of each shard, and where its answer goes: views of ``arrays``."""

    arrays: dict[str, Array] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)
    into: dict[int, list[Array]] = field(default_factory=dict)


def as_tensor(name: str, value: npt.ArrayLike) -> Array:
    """Return ``value`` as the C-contiguous, little-endian array that travels.

    Raises:
        BadTensor: a dtype that does not travel, or no elements.
    """
    array = np.asarray(value)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    dtype_name(array.dtype, field=name)
    if array.size == 0:
        raise BadTensor("a tensor has at least one element", field=name, value=array.shape)
    # Not ascontiguousarray: it would make a 0-d array 1-d.
    return array if array.flags.c_contiguous else array.copy(order="C")


def plan_push(
    infos: Sequence[TensorInfo], values: Mapping[str, npt.ArrayLike], *, also_elsewhere: bool = False
) -> dict[int, Outgoing]:
    """Return what each shard is sent of ``values``; nothing is copied that is C-contiguous already.

    A push over several shards is checked here first: no shard may take its share of what another refuses,
    nor end a step that another has refused (``also_elsewhere``: shards without a share are sent the end).

    Raises:
        BadTensor: another dtype or shape than the tensor's.
        NotFinite: NaN or infinity in a push over several shards.
    """
    plan: dict[int, Outgoing] = {}
    flats: list[tuple[str, Array]] = []
    for info in infos:
        flat = _checked(info, values[info.name]).reshape(-1)
        flats.append((info.name, flat))
        for block in info.blocks:
            outgoing = plan.setdefault(block.shard, Outgoing())
            outgoing.parts.append(Part(info.name, info.spec.dtype, block.stop - block.start))
            outgoing.arrays.append(flat[block.start : block.stop])
    if len(plan) > 1 or also_elsewhere:
        for name, flat in flats:
            if not all_finite(flat):
                raise NotFinite(
                    "NaN or infinity in the gradient; nothing was sent", field="tensors", value=name
                )
    return plan


def _checked(info: TensorInfo, value: npt.ArrayLike) -> Array:
    array = as_tensor(info.name, value)
    if array.dtype != DTYPES[info.spec.dtype]:
        raise BadTensor(f"the tensor's dtype is {info.spec.dtype}", field=info.name, value=array.dtype)
    if array.shape != info.spec.shape:
        raise BadTensor(f"the tensor's shape is {info.spec.shape}", field=info.name, value=array.shape)
    return array


def plan_pull(infos: Iterable[TensorInfo], pool: BufferPool) -> Pulls:
    """Return what to ask each shard for, with fresh arrays that the answers are received into."""
    pulls = Pulls()
    for info in infos:
        dtype = DTYPES[info.spec.dtype]
        flat = pool.empty(max(block.stop for block in info.blocks), dtype)
        for block in info.blocks:
            pulls.names.setdefault(block.shard, []).append(info.name)
            pulls.into.setdefault(block.shard, []).append(flat[block.start : block.stop])
        pulls.arrays[info.name] = flat.reshape(info.spec.shape)
    return pulls
