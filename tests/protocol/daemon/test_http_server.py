"""Peers of the metrics port that have no manners."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from protocol.daemon.http_server import HTTPServer, Limits, http_server

LARGE = 64 * 1024 * 1024


class Site:
    """An HTTP server in a thread, with pages that are short, long, or wait until they are told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.server = http_server("127.0.0.1", 0, self._answer)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/waits":
            self.waiting.release()
            self.go_on.wait()
        return [bytes(LARGE)] if environ["PATH_INFO"] == "/large" else [b"here"]

    def get(self, path: str = "/") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.server_port

    def dial(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=30)
        connection.sendall(data)
        return connection

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def ends(connection: socket.socket) -> bytes:
    """Return what comes until the server ends the connection."""
    found = b""
    try:
        while piece := connection.recv(1 << 20):
            found += piece
    except ConnectionError:
        pass
    return found


def limited(server: HTTPServer, **limits: Any) -> None:
    server.limits = Limits(**limits)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: y",
        b"\x16\x03\x01\x02\x00",
        b"APS\x01",
    ],
    ids=["nothing", "a letter", "a line", "half a header", "tls", "ours"],
)
def test_who_does_not_finish_its_request_is_shown_out(site: Site, begin: bytes) -> None:
    limited(site.server, within=0.05)
    with site.dial(begin) as connection:
        ends(connection)
    assert site.get() == (200, b"here")


def test_who_does_not_read_its_answer_is_shown_out(site: Site) -> None:
    limited(site.server, within=0.05)
    with site.dial(b"GET /large HTTP/1.0\r\n\r\n") as connection:
        assert connection.recv(1)
        while site.server.under_way:
            pass
        assert len(ends(connection)) < LARGE


def test_who_is_slow_makes_room(site: Site) -> None:
    limited(site.server, threads=4, within=1000.0)
    with ExitStack() as stack:
        slow = [stack.enter_context(site.dial(b"GET / HTTP/1.1\r\n")) for _ in range(20)]
        for _ in range(4):
            assert site.get() == (200, b"here")
        for connection in slow[:-4]:
            ends(connection)
        assert site.server.under_way <= 4


def test_there_are_no_more_threads_than_allowed(site: Site) -> None:
    limited(site.server, threads=4)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(site.dial(b"GET /waits HTTP/1.0\r\n\r\n"))
        for _ in range(4):
            site.waiting.acquire()
        assert ends(stack.enter_context(site.dial(b"GET / HTTP/1.0\r\n\r\n"))) == b""
        site.go_on.set()
    while site.server.under_way:
        pass
    assert site.get() == (200, b"here")


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"GET / HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n" + bytes(100_000),
        b"GET / HTTP/9.9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\xff\xfe\x00 / HTTP/1.0\r\n\r\n",
        bytes(200_000),
    ],
    ids=["path", "header", "headers", "body", "version", "no path", "method", "zeros"],
)
def test_requests_that_are_long_or_make_no_sense(
    site: Site, request_text: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        with site.dial(request_text) as connection:
            ends(connection)
    except ConnectionError:
        pass  # the server has read enough of it
    assert site.get() == (200, b"here")
    assert capfd.readouterr() == ("", "")
