"""Redis as a parameter server: the table is one hash, a row and its accumulators are one of its fields.

Redis cannot do Adagrad's step, so the client does: a push is HMGET, the step in NumPy, and HSET, each one
command for the whole batch; a push of another client in between would be lost. A pull is HMGET, which has to
bring the accumulators, too; in a hash of their own they would double the look-ups of a push, which cost more.
Keys and rows have a fixed size, so requests are written, and answers read, as arrays of records: no client
library's loop over fields is part of the figure.
"""

import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress

import numpy as np
import numpy.typing as npt

from benchmarks.child_processes import LOOPBACK
from benchmarks.sparse_systems.interface import LEARNING_RATE, Batch, Rows, TableSize, Taken
from benchmarks.sparse_systems.numpy_table import sum_by_row
from benchmarks.sparse_systems.verification import check_adagrad
from benchmarks.sparse_systems.workload import TimedTable, every_row
from benchmarks.systems.interface import Operation
from benchmarks.systems.raw_tcp import receive_exactly

PROGRAM = "redis-server"

_HASH = b"$1\r\nw\r\n"
_FILL_BATCH = 65_536
_START_WITHIN = 10.0  # seconds


def is_installed() -> bool:
    """Tell whether there is a Redis server on this machine."""
    return shutil.which(PROGRAM) is not None


class RedisTable:
    """The table behind one connection, every row there already."""

    def __init__(self, connection: socket.socket, size: TableSize) -> None:
        self._connection = connection
        self._key = np.dtype([("head", "S4"), ("key", "<u8"), ("end", "S2")])
        row = [("values", "<f4", (size.dim,)), ("squares", "<f4", (size.dim,))]
        head = f"${8 * size.dim}\r\n".encode()
        self._row_head = head
        self._row = np.dtype([("head", f"S{len(head)}"), *row, ("end", "S2")])
        self._pair = np.dtype([("field", self._key), ("value", self._row)])

    def fill(self, size: TableSize) -> None:
        """Make every row as a first push of ones leaves it."""
        for batch in every_row(size, _FILL_BATCH):
            rows = np.zeros(len(batch.keys), self._row)
            rows["values"], rows["squares"] = -LEARNING_RATE, 1.0
            self._connection.sendall(self._set(batch.keys, rows["values"], rows["squares"]))
            self._skip_count()

    def push(self, batch: Batch, gradients: Rows) -> None:
        """Fetch the rows, take an Adagrad step in them, and put them back."""
        self._connection.sendall(self._stepped(batch, gradients))
        self._skip_count()

    def pull(self, batch: Batch) -> Rows:
        """Return the rows of `batch`."""
        self._connection.sendall(self._get(batch.keys))
        return np.ascontiguousarray(self._rows(len(batch.keys))["values"])

    def push_pull(self, batch: Batch, gradients: Rows, wanted: Batch) -> Rows:
        """Push, and have the rows of `wanted` fetched by the same round trip that puts the others back."""
        self._connection.sendall(self._stepped(batch, gradients) + self._get(wanted.keys))
        self._skip_count()
        return np.ascontiguousarray(self._rows(len(wanted.keys))["values"])

    def _stepped(self, batch: Batch, gradients: Rows) -> bytes:
        numbers, total = sum_by_row(batch.numbers, gradients)
        keys = Batch.of(numbers).keys
        self._connection.sendall(self._get(keys))
        rows = self._rows(len(keys))
        squares = rows["squares"] + total * total
        return self._set(keys, rows["values"] - LEARNING_RATE * total / np.sqrt(squares), squares)

    def _get(self, keys: npt.NDArray[np.uint64]) -> bytes:
        fields = np.empty(len(keys), self._key)
        self._put_keys(fields, keys)
        return b"*%d\r\n$5\r\nHMGET\r\n%b%b" % (len(keys) + 2, _HASH, fields.tobytes())

    def _set(self, keys: npt.NDArray[np.uint64], values: Rows, squares: Rows) -> bytes:
        pairs = np.empty(len(keys), self._pair)
        self._put_keys(pairs["field"], keys)
        rows = pairs["value"]
        rows["head"], rows["end"] = self._row_head, b"\r\n"
        rows["values"], rows["squares"] = values, squares
        return b"*%d\r\n$4\r\nHSET\r\n%b%b" % (2 * len(keys) + 2, _HASH, pairs.tobytes())

    def _put_keys(self, fields: npt.NDArray[np.void], keys: npt.NDArray[np.uint64]) -> None:
        fields["head"], fields["key"], fields["end"] = b"$8\r\n", keys, b"\r\n"

    def _rows(self, count: int) -> npt.NDArray[np.void]:
        """Read the answer to HMGET."""
        self._expect(b"*%d\r\n" % count)
        rows = np.empty(count, self._row)
        receive_exactly(self._connection, rows.view(np.uint8).data)
        if not (rows["head"] == self._row_head).all():
            raise ConnectionError("redis: HMGET answered something other than rows of the table's size")
        return rows

    def _skip_count(self) -> None:
        """Read the answer to HSET: how many fields are new."""
        self._expect(b":")
        while self._take(1) != b"\n":
            pass

    def _expect(self, begin: bytes) -> None:
        if (got := self._take(len(begin))) != begin:
            raise ConnectionError(f"redis: answered {got!r} instead of {begin!r}")

    def _take(self, count: int) -> bytes:
        buffer = bytearray(count)
        receive_exactly(self._connection, memoryview(buffer))
        return bytes(buffer)


class RedisHash:
    """The system: a Redis of the benchmark's own that writes nothing to disk.

    Attributes:
        address: where it listens, from the start on.
    """

    def __init__(self, size: TableSize) -> None:
        self._size = size
        self._resources = ExitStack()
        self.address = (LOOPBACK, 0)

    def start(self) -> None:
        """Start the server, fill the table, and check what comes of a push."""
        self.address = (LOOPBACK, _free_port())
        connection = self._connect()
        table = RedisTable(connection, self._size)
        table.fill(self._size)
        check_adagrad(table, self._size)
        self._timed = TimedTable(table, self._size)

    def measure(self, operation: Operation, nbytes: int, seconds: float) -> Taken:
        """Return what one `operation` takes on batches of `nbytes` bytes."""
        return self._timed.measure(operation, nbytes, seconds)

    def stop(self) -> None:
        """End the server."""
        self._resources.close()

    def _connect(self) -> socket.socket:
        server = subprocess.Popen(
            [PROGRAM, "--port", str(self.address[1]), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        self._resources.callback(server.wait)
        self._resources.callback(server.kill)
        deadline = time.monotonic() + _START_WITHIN
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(ConnectionRefusedError):
                connection = socket.create_connection(self.address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._resources.enter_context(connection)
            time.sleep(0.02)
        raise ConnectionError(f"{PROGRAM} does not answer on port {self.address[1]}")


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
