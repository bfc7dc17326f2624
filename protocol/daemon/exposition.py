"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, from a thread beside the event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from protocol.addresses import join_address

__all__ = ["Exposition"]

_log = logging.getLogger(__name__)

_ALIVE_WITHIN: Final = 1.0  # seconds in which a healthy event loop gets round to a callback

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is not an event."""


class Exposition:
    """The metrics port of a daemon.

    Args:
        registry: what ``/metrics`` shows.
        is_ready: what ``/readyz`` answers; called from another thread.
        loop: the event loop that ``/healthz`` looks at.
    """

    def __init__(
        self, registry: CollectorRegistry, is_ready: Callable[[], bool], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._is_ready = is_ready
        self._loop = loop
        self._server: WSGIServer | None = None

    def listen(self, host: str, port: int | None, preferred: int) -> str:
        """Begin to answer on ``host``:``port`` and return the address.

        Without a port it is the preferred one or, where another daemon of the machine has that, a free one.

        Raises:
            OSError: the port that was asked for is taken, or the host is none of this machine's.
        """
        try:
            return self._listen(host, preferred if port is None else port)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                raise
        address = self._listen(host, 0)
        _log.info("port %d is taken: metrics are on %s", preferred, address)
        return address

    def _listen(self, host: str, port: int) -> str:
        kind = _Server6 if ":" in host else _Server
        self._server = make_server(host, port, self._answer, server_class=kind, handler_class=_Quiet)
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return join_address(host, self._server.server_port)

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                page: Iterable[bytes] = self._metrics(environ, start_response)
                return page
            case "/healthz":
                return _text(start_response, self._is_alive(), "alive", "the event loop does not answer")
            case "/readyz":
                return _text(start_response, self._is_ready(), "ready", "not ready yet")
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"try /metrics, /healthz or /readyz\n"]

    def _is_alive(self) -> bool:
        alive = threading.Event()
        try:
            self._loop.call_soon_threadsafe(alive.set)
        except RuntimeError:  # the loop is closed
            return False
        return alive.wait(_ALIVE_WITHIN)


def _text(start_response: StartResponse, good: bool, yes: str, no: str) -> Iterable[bytes]:
    status = "200 OK" if good else "503 Service Unavailable"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [(yes if good else no).encode() + b"\n"]
