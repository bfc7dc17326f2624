"""The ceiling: blocking sockets that move as many bytes as the keys and rows of a batch have."""

import socket
import struct
from contextlib import ExitStack
from itertools import repeat

import numpy as np

from benchmarks.child_processes import child_process, exit_with_parent, loopback_listener
from benchmarks.sparse_systems.interface import TableSize, Taken
from benchmarks.sparse_systems.workload import time_operation
from benchmarks.systems.interface import Operation
from benchmarks.systems.raw_tcp import receive_exactly

# Bytes of a request and of its answer: the first thing on a connection. It is not timed.
_HELLO = struct.Struct("<QQ")
_SMALL = 64


class RawTcp:
    """Requests and answers of the right size, with nothing in them and nothing done about them."""

    def __init__(self, size: TableSize) -> None:
        self._size = size
        self._server = ExitStack()

    def start(self) -> None:
        """Start the server process."""
        with loopback_listener() as listener:
            self._server.enter_context(child_process(_serve, listener))
            self._address = listener.getsockname()

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> Taken:
        """Return what one exchange takes whose batch has `nbytes` bytes of keys and rows."""
        there, back = exchange_bytes(operation, nbytes // self._size.row_bytes, self._size.dim)
        sent, received = np.ones(there, np.uint8).data, np.ones(back, np.uint8).data
        with socket.create_connection(self._address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(_HELLO.pack(there, back))

            def exchange(sent: memoryview) -> None:
                connection.sendall(sent)
                receive_exactly(connection, received)

            return time_operation(exchange, repeat(sent), seconds)

    def stop(self) -> None:
        """End the server process."""
        self._server.close()


def exchange_bytes(operation: Operation, batch: int, dim: int) -> tuple[int, int]:
    """Return the bytes there and back for `batch` rows: keys of 8 bytes, rows of 4 times `dim`."""
    keys, rows = 8 * batch, 4 * dim * batch
    return {
        "push": (keys + rows, _SMALL),
        "pull": (keys, rows),
        "push_pull": (keys + rows + keys, rows),
    }[operation]


def _serve(listener: socket.socket) -> None:
    exit_with_parent()
    hello = memoryview(bytearray(_HELLO.size))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            receive_exactly(connection, hello)
            there, back = _HELLO.unpack(hello)
            _answer(connection, np.ones(there, np.uint8).data, np.ones(back, np.uint8).data)


def _answer(connection: socket.socket, received: memoryview, sent: memoryview) -> None:
    while True:
        try:
            receive_exactly(connection, received)
        except EOFError:  # the measurement is over
            return
        connection.sendall(sent)
