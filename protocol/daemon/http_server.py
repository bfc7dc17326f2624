"""An HTTP server for the few who ask how a daemon is: threads, time and sizes are bounded.

A request has to come, and its answer has to be taken, within some seconds in all; that bytes trickle does not
help. There are so many threads and no more: who is still sending its request, or reads its answer slowly,
makes room for another one.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

__all__ = ["HTTPServer", "Limits", "http_server"]

_MOST_REQUEST: Final = 16 * 1024
"""Bytes of the longest request, its headers included; nobody who asks for a page needs a body."""


_QUICK: Final = 1.0  # seconds that nobody is asked to make room for


@dataclass(frozen=True, slots=True)
class Limits:
    """At most so many ``threads``, and seconds ``within`` which a request is over."""

    threads: int = 16
    within: float = 10.0


class _Request:
    """A request that is being read, or answered: its socket, and when it began."""

    __slots__ = ("began", "is_read", "socket")

    def __init__(self, connection: socket.socket, began: float) -> None:
        self.socket = connection
        self.began = began
        self.is_read = False

    def end(self) -> None:
        """Have the thread that is at it find that its peer has gone."""
        with contextlib.suppress(OSError):  # it may have gone indeed
            self.socket.shutdown(socket.SHUT_RDWR)


class _Short(io.BufferedIOBase):
    """A request's bytes, as if they ended after so many."""

    def __init__(self, source: Any, most: int) -> None:
        self._source = source
        self._left = most

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line, or what of it is within the limit."""
        most = self._left if size is None or size < 0 else min(size, self._left)
        line: bytes = self._source.readline(most)
        self._left -= len(line)
        return line

    def close(self) -> None:
        """Close the source."""
        self._source.close()
        super().close()


class _Handler(WSGIRequestHandler):
    server: HTTPServer
    timeout = 60.0  # in case that nobody looks at what takes too long

    def setup(self) -> None:
        super().setup()
        self.rfile = _Short(self.rfile, _MOST_REQUEST)

    def parse_request(self) -> bool:
        """Read the headers; from then on the answer is ours to give."""
        understood = super().parse_request()
        self.server.has_read(self.request)
        return understood

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the peer has gone, or was shown out
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is not an event, nor is a request that makes no sense."""


class HTTPServer(ThreadingMixIn, WSGIServer):
    """See ``http_server``.

    Attributes:
        limits: of threads and time.
    """

    daemon_threads = True
    request_queue_size = 128
    limits = Limits()

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._lock = threading.Lock()
        self._requests: dict[socket.socket, _Request] = {}  # the oldest first
        super().__init__(*arguments, **settings)

    @property
    def under_way(self) -> int:
        """Requests that are being read or answered."""
        return len(self._requests)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a request in a thread of its own, if there is room for it or can be made."""
        now = time.monotonic()
        with self._lock:
            full = len(self._requests) >= self.limits.threads
            oldest = self._in_the_way(now) if full else None
            if oldest is not None:
                del self._requests[oldest.socket]
            admitted = not full or oldest is not None
            if admitted:
                self._requests[request] = _Request(request, now)
        if oldest is not None:
            oldest.end()
        if admitted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _in_the_way(self, now: float) -> _Request | None:
        """Return who has to make room, if anybody: who sends or reads slowly, the one that has longest."""
        for one in self._requests.values():
            if not one.is_read or now - one.began > _QUICK:
                return one
        return None

    def has_read(self, request: Any) -> None:
        """Take note that a request has come in full."""
        with self._lock:
            if request in self._requests:
                self._requests[request].is_read = True

    def shutdown_request(self, request: Any) -> None:
        """Forget a request that is over."""
        with self._lock:
            self._requests.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End what takes too long; called about twice a second."""
        now = time.monotonic()
        with self._lock:
            late = [one for one in self._requests.values() if now - one.began > self.limits.within]
        for one in late:
            one.end()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever asked sees it, and a peer must not fill the log."""


class _HTTPServer6(HTTPServer):
    address_family = socket.AF_INET6


def http_server(host: str, port: int, application: Callable[..., Any]) -> HTTPServer:
    """Return a server of a WSGI application that is bound.

    Raises:
        OSError: the port is taken, or the host is none of this machine's.
    """
    kind = _HTTPServer6 if ":" in host else HTTPServer
    server = kind((host, port), _Handler)
    server.set_app(application)
    return server
