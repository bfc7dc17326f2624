"""Long answers: a dataclass as a msgpack array in a payload, where a header would be too short for it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from protocol.fields import Decode, Encode, array_decoder, array_encoder
from protocol.messages import Catalogue, Epoch, KeptJobs, LoadPlan, SavedFiles, unpack
from protocol.status import ClusterStatus, Waits
from protocol.tensors import Part

__all__ = [
    "CATALOGUE",
    "EPOCH",
    "KEPT",
    "LOAD",
    "MOST",
    "SAVED",
    "STATUS",
    "WAITS",
    "Document",
    "raw_document",
]

T = TypeVar("T")

MOST: Final = 16 * 1024 * 1024
"""Bytes of the longest document that a request may carry."""


class Document(Generic[T]):
    """How a ``cls`` travels as the only tensor of a payload, in uint8.

    Args:
        cls: a dataclass whose fields have a wire form.
        name: what error messages call it.
    """

    def __init__(self, cls: type[T], name: str) -> None:
        self._cls = cls
        self._name = name

    @cached_property
    def _to_plain(self) -> Encode:  # made when needed: no process has a use for all documents
        return array_encoder(self._cls)

    @cached_property
    def _from_plain(self) -> Decode:
        return array_decoder(self._cls)

    def parts(self, payload: npt.NDArray[np.uint8]) -> tuple[Part, ...]:
        """Return the ``tensors`` of the message that carries ``payload``."""
        return (Part(self._name, "uint8", payload.size),)

    def encode(self, value: T) -> npt.NDArray[np.uint8]:
        """Return the payload."""
        return np.frombuffer(msgpack.packb(self._to_plain(value)), np.uint8)

    def plain(self, value: T) -> Any:
        """Return a document as plain data, as msgpack and JSON carry them."""
        return self._to_plain(value)

    def from_plain(self, plain: Any) -> T:
        """Return the document that plain data describe.

        Raises:
            BadRequest: they describe none.
        """
        found: T = self._from_plain(plain, self._name)
        return found

    def decode(self, payload: npt.NDArray[Any]) -> T:
        """Return what a payload holds.

        Raises:
            BadRequest: it is no such document of this version.
        """
        data = payload.tobytes()
        return self.from_plain(unpack(data, self._name, most=len(data)))


def raw_document(name: str, data: bytes) -> tuple[tuple[Part, ...], tuple[npt.NDArray[np.uint8]]]:
    """Return the ``tensors`` and the payload of a message that carries ``data`` as they are."""
    return (Part(name, "uint8", len(data)),), (np.frombuffer(data, np.uint8),)


STATUS: Final = Document(ClusterStatus, "status")
CATALOGUE: Final = Document(Catalogue, "catalogue")
EPOCH: Final = Document(Epoch, "epoch")
KEPT: Final = Document(KeptJobs, "kept")
WAITS: Final = Document(Waits, "waits")
SAVED: Final = Document(SavedFiles, "saved")
LOAD: Final = Document(LoadPlan, "load")
