"""Checkpoints of made-up jobs, to be read, damaged and cut otherwise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.messages import Block, SavedFile, Spec, TensorInfo
from protocol.optimizers import SGD, spec_of
from protocol.tensors import DTYPES
from psserver.durability.checkpoint import (
    Header,
    Manifest,
    SavedArray,
    SavedJob,
    publish_manifest,
    save_coordinator,
    save_shard,
)
from psserver.durability.storage import Storage

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor, with its optimizer's slots."""

    job: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    slots: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


TENSORS = (
    Tensor("digits", "w", "float32", (13, 7), ("momentum",)),
    Tensor("digits", "b", "float64", ()),
    Tensor("other", "w", "int16", (5,)),
)


def values_of(tensor: Tensor, slot: str, seed: int) -> Array:
    """Return all bytes at random: NaN too, which has more than one form."""
    rng = np.random.default_rng([seed, *f"{tensor.job}/{tensor.name}/{slot}".encode()])
    return np.frombuffer(rng.bytes(tensor.elements * DTYPES[tensor.dtype].itemsize), DTYPES[tensor.dtype])


def blocks_of(tensor: Tensor, shards: int) -> tuple[Block, ...]:
    """Cut a tensor into a block for each shard, or leave it whole where it is too small."""
    if tensor.elements < shards:
        return (Block(tensor.elements % shards, 0, tensor.elements),)
    bounds = [tensor.elements * i // shards for i in range(shards + 1)]
    return tuple(Block(i, bounds[i], bounds[i + 1]) for i in range(shards))


def arrays_on(shard: int, tensors: Sequence[Tensor], shards: int, seed: int) -> list[SavedArray]:
    return [
        SavedArray(
            tensor.job,
            tensor.name,
            slot,
            tensor.dtype,
            tensor.shape,
            block.start,
            block.stop,
            values_of(tensor, slot, seed)[block.start : block.stop],
        )
        for tensor in tensors
        for block in blocks_of(tensor, shards)
        if block.shard == shard
        for slot in ("", *tensor.slots)
    ]


def manifest_of(
    header: Header, tensors: Sequence[Tensor], files: Sequence[SavedFile], seed: int = 0
) -> Manifest:
    jobs = tuple(
        SavedJob(
            name,
            staleness=math.inf if seed % 2 else float(seed),
            clock=seed,
            updates=7 * seed,
            plan='{"job": "digits"}' if name == "digits" else None,
            tensors=tuple(
                TensorInfo(
                    one.name,
                    Spec(one.dtype, one.shape, spec_of(SGD(lr=0.25))),
                    blocks_of(one, header.shards),
                )
                for one in tensors
                if one.job == name
            ),
        )
        for name in dict.fromkeys(one.job for one in tensors)
    )
    return Manifest(header, "2026-05-01T12:00:00+00:00", "0.1.0", jobs, tuple(files))


def write(storage: Storage, number: int, tensors: Sequence[Tensor] = TENSORS, *, shards: int = 3) -> Manifest:
    """Write a whole checkpoint, whose values depend on its number."""
    header = Header(number, shards, "cluster-1", timeline=2)
    files: list[SavedFile] = []
    for shard in range(shards):
        arrays = arrays_on(shard, tensors, shards, number)
        files += save_shard(storage, header, shard, arrays, {"shard": shard, "updates": [1, 2.5, None, "x"]})
    files.append(save_coordinator(storage, header, {"leases": list(range(number, 30))}))
    manifest = manifest_of(header, tensors, files, number)
    publish_manifest(storage, manifest)
    return manifest
