"""Long answers: a dataclass as a msgpack array in a payload, where a header would be too short for it."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from protocol.fields import array_decoder, array_encoder
from protocol.messages import Catalogue, Epoch, unpack
from protocol.status import ClusterStatus, Waits
from protocol.tensors import Part

__all__ = ["CATALOGUE", "EPOCH", "MOST", "STATUS", "WAITS", "Document"]

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
        self._to_plain = array_encoder(cls)
        self._from_plain = array_decoder(cls)
        self._name = name

    def parts(self, payload: npt.NDArray[np.uint8]) -> tuple[Part, ...]:
        """Return the ``tensors`` of the message that carries ``payload``."""
        return (Part(self._name, "uint8", payload.size),)

    def encode(self, value: T) -> npt.NDArray[np.uint8]:
        """Return the payload."""
        return np.frombuffer(msgpack.packb(self._to_plain(value)), np.uint8)

    def decode(self, payload: npt.NDArray[Any]) -> T:
        """Return what a payload holds.

        Raises:
            BadRequest: it is no such document of this version.
        """
        data = payload.tobytes()
        found: T = self._from_plain(unpack(data, self._name, most=len(data)), self._name)
        return found


STATUS: Final = Document(ClusterStatus, "status")
CATALOGUE: Final = Document(Catalogue, "catalogue")
EPOCH: Final = Document(Epoch, "epoch")
WAITS: Final = Document(Waits, "waits")
