"""``/metrics``, ``/healthz``, ``/readyz`` and pages over HTTP, from a thread beside the event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, make_wsgi_app

from protocol.addresses import join_address
from protocol.daemon.http_server import HTTPServer, http_server

__all__ = ["Exposition", "Page", "Reply"]

_log = logging.getLogger(__name__)

_ALIVE_WITHIN: Final = 1.0  # seconds in which a healthy event loop gets round to a callback

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Reply(NamedTuple):
    """What a page answers: an HTTP status, the type of the body, the body, and headers besides."""

    status: str
    kind: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


Page = Callable[[], Reply]
"""Answers a request for a page; called from another thread."""


class Exposition:
    """The metrics port of a daemon.

    Args:
        registry: what ``/metrics`` shows.
        why_not_ready: what ``/readyz`` answers, "": it is ready; called from another thread.
        loop: the event loop that ``/healthz`` looks at.
        pages: what there is besides, by path.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str],
        loop: asyncio.AbstractEventLoop,
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._why_not_ready = why_not_ready
        self._loop = loop
        self._pages = pages or {}
        self._server: HTTPServer | None = None

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
        self._server = http_server(host, port, self._answer)
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
                problem = "" if self._is_alive() else "the event loop does not answer"
                return _text(start_response, "alive", problem)
            case "/readyz":
                why = self._why_not_ready()
                return _text(start_response, "ready", why and f"not ready yet: {why}")
            case path if path in self._pages:
                reply = self._pages[path]()
                start_response(reply.status, [("Content-Type", reply.kind), *reply.headers])
                return [reply.body]
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                known = ", ".join(("/metrics", "/healthz", *sorted(self._pages)))
                return [f"try {known} or /readyz\n".encode()]

    def _is_alive(self) -> bool:
        alive = threading.Event()
        try:
            self._loop.call_soon_threadsafe(alive.set)
        except RuntimeError:  # the loop is closed
            return False
        return alive.wait(_ALIVE_WITHIN)


def _text(start_response: StartResponse, good: str, problem: str) -> Iterable[bytes]:
    status = "503 Service Unavailable" if problem else "200 OK"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [(problem or good).encode() + b"\n"]
