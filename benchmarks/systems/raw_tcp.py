"""The ceiling: blocking sockets, one process sends, the other receives, and nothing else."""

import socket
import struct
from contextlib import ExitStack
from time import perf_counter

import numpy as np

from benchmarks.child_processes import LOOPBACK, child_process, exit_with_parent, loopback_listener
from benchmarks.systems.closed_loop import LEAST_OPERATIONS, WARM_UP_SHARE, seconds_per_operation
from benchmarks.systems.interface import Operation
from benchmarks.systems.verification import WrongResult, check_equal, make_gradient

_PUSH, _PULL, _PUSH_PULL, _STREAM = range(4)
_CODES = {"push": _PUSH, "pull": _PULL, "push_pull": _PUSH_PULL}

# What a connection is for, and its tensor's bytes: the first thing on it. It is not timed.
_HELLO = struct.Struct("<BQ")
# How many bytes a stream had: the last thing on it.
_STREAM_ACK = struct.Struct("<Q")
# A request for, or an acknowledgement of, the tensor that goes the other way.
_SMALL = bytes(64)


class RawTcp:
    """Ping-pong: push = tensor there, 64 bytes back; pull the reverse; push_pull the tensor twice.

    The server keeps the bytes received last and sends those; there is no arithmetic to do.
    """

    def __init__(self) -> None:
        self._server = ExitStack()
        self._address = (LOOPBACK, 0)
        self._verified: set[int] = set()

    def start(self) -> None:
        """Start the server process."""
        self._address = _start_server(self._server)

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds of one `operation` on `nbytes` bytes."""
        if nbytes not in self._verified:
            self._verify(nbytes)
            self._verified.add(nbytes)
        sent, received = _client_buffers(operation, nbytes)
        with _connect(self._address, _CODES[operation], nbytes) as connection:

            def exchange() -> None:
                connection.sendall(sent)
                receive_exactly(connection, received)

            return seconds_per_operation(exchange, seconds)

    def stop(self) -> None:
        """End the server process."""
        self._server.close()

    def _verify(self, nbytes: int) -> None:
        tensor = make_gradient(nbytes)
        answer = np.zeros_like(tensor)
        with _connect(self._address, _PUSH, nbytes) as connection:
            connection.sendall(tensor.data.cast("B"))
            receive_exactly(connection, memoryview(bytearray(len(_SMALL))))
        with _connect(self._address, _PULL, nbytes) as connection:
            connection.sendall(_SMALL)
            receive_exactly(connection, answer.data.cast("B"))
        check_equal("pull", answer, tensor)


class RawTcpStreaming:
    """One way only: tensor after tensor without a pause, one acknowledgement after the last."""

    def __init__(self) -> None:
        self._server = ExitStack()
        self._address = (LOOPBACK, 0)

    def start(self) -> None:
        """Start the server process."""
        self._address = _start_server(self._server)

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> float:
        """Return the mean seconds that a tensor of `nbytes` bytes takes; `operation` is push."""
        if operation != "push":
            raise ValueError(f"operation {operation!r}: a stream goes one way, use 'push'")
        self._stream(nbytes, seconds * WARM_UP_SHARE)
        return self._stream(nbytes, seconds)

    def stop(self) -> None:
        """End the server process."""
        self._server.close()

    def _stream(self, nbytes: int, seconds: float) -> float:
        tensor = make_gradient(nbytes).data.cast("B")
        acknowledgement = bytearray(_STREAM_ACK.size)
        sent = 0
        with _connect(self._address, _STREAM, nbytes) as connection:
            begin = perf_counter()
            while sent < LEAST_OPERATIONS or perf_counter() - begin < seconds:
                connection.sendall(tensor)
                sent += 1
            connection.shutdown(socket.SHUT_WR)
            receive_exactly(connection, memoryview(acknowledgement))
            elapsed = perf_counter() - begin
        (arrived,) = _STREAM_ACK.unpack(acknowledgement)
        if arrived != sent * nbytes:
            raise WrongResult(f"stream: {arrived} of {sent * nbytes} bytes arrived")
        return elapsed / sent


def _start_server(server: ExitStack) -> tuple[str, int]:
    with loopback_listener() as listener:
        server.enter_context(child_process(_serve, listener))
        address: tuple[str, int] = listener.getsockname()
        return address


def _connect(address: tuple[str, int], code: int, nbytes: int) -> socket.socket:
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_HELLO.pack(code, nbytes))
    return connection


def _client_buffers(operation: Operation, nbytes: int) -> tuple[memoryview, memoryview]:
    small = memoryview(bytearray(_SMALL))
    # Written to before it is timed: untouched memory is one page of zeros, always in cache.
    tensor = make_gradient(nbytes).data.cast("B")
    return (small if operation == "pull" else tensor, small if operation == "push" else tensor)


def receive_exactly(connection: socket.socket, buffer: memoryview) -> None:
    """Fill `buffer`; raise EOFError where the peer closes before or within it."""
    filled = 0
    while filled < len(buffer):
        received = connection.recv_into(buffer[filled:])
        if received == 0:
            raise EOFError("connection closed by the peer")
        filled += received


def _serve(listener: socket.socket) -> None:
    exit_with_parent()
    tensors: dict[int, memoryview] = {}
    hello = memoryview(bytearray(_HELLO.size))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            receive_exactly(connection, hello)
            code, nbytes = _HELLO.unpack(hello)
            if nbytes not in tensors:
                tensors[nbytes] = np.ones(nbytes, np.uint8).data
            if code == _STREAM:
                _swallow(connection, tensors[nbytes])
            else:
                _answer(connection, code, tensors[nbytes])


def _answer(connection: socket.socket, code: int, tensor: memoryview) -> None:
    small = memoryview(bytearray(_SMALL))
    received = small if code == _PULL else tensor
    sent = small if code == _PUSH else tensor
    while True:
        try:
            receive_exactly(connection, received)
        except EOFError:  # the measurement is over
            return
        connection.sendall(sent)


def _swallow(connection: socket.socket, tensor: memoryview) -> None:
    arrived = 0
    while received := connection.recv_into(tensor):
        arrived += received
    connection.sendall(_STREAM_ACK.pack(arrived))
