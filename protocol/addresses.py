"""``HOST:PORT``, as users write it and as daemons announce it; IPv6 hosts are in brackets."""

from __future__ import annotations

import re
from typing import Final

from protocol.errors import BadRequest

__all__ = ["join_address", "split_address"]

_PORT: Final = re.compile("[0-9]{1,5}")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``.

    Raises:
        BadRequest: it is no such thing.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise BadRequest("write HOST:PORT, for example 127.0.0.1:7070", field="address", value=address)
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return ``HOST:PORT`` as ``split_address`` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
