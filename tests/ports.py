"""A port on which nobody listens, and which nobody else is given while a test counts on that."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Yield a free TCP port: connections to it are refused until a server of the test itself binds it.

    A port that was only asked for and given back may be another process's by the time it is used.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for the server that may come
        held.bind((host, 0))
        port: int = held.getsockname()[1]
        yield port
