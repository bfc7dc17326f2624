import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Counter

from protocol.daemon import exposition as module
from protocol.daemon.exposition import Exposition, Reply


class Page(NamedTuple):
    status: int
    text: str
    kind: str


def get(address: str, path: str) -> Page:
    try:
        reply = urllib.request.urlopen(f"http://{address}{path}", timeout=10)
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        return Page(reply.status, reply.read().decode(), reply.headers["Content-Type"])


class Daemon:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ready = False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.exposition = Exposition(
            self.registry, lambda: "" if self.ready else "it waits for server 1", self.loop
        )
        self.address = self.exposition.listen("127.0.0.1", 0, 0)

    def get(self, path: str) -> Page:
        return get(self.address, path)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    made.thread.start()
    yield made
    made.exposition.close()
    made.loop.call_soon_threadsafe(made.loop.stop)
    made.thread.join()
    made.loop.close()


def test_the_address_has_the_port_that_was_free(daemon: Daemon) -> None:
    host, _, port = daemon.address.rpartition(":")
    assert host == "127.0.0.1"
    assert 0 < int(port) < 65536


def test_metrics_are_in_the_form_that_prometheus_reads(daemon: Daemon) -> None:
    Counter("steps_total", "Steps.", registry=daemon.registry).inc(3)
    page = daemon.get("/metrics")
    assert page.status == 200
    assert page.kind.startswith("text/plain; version=")
    assert "# TYPE steps_total counter\nsteps_total 3.0\n" in page.text


def test_ready_is_what_the_daemon_says(daemon: Daemon) -> None:
    daemon.ready = False
    page = daemon.get("/readyz")
    assert (page.status, page.text) == (503, "not ready yet: it waits for server 1\n")
    daemon.ready = True
    page = daemon.get("/readyz")
    assert (page.status, page.text) == (200, "ready\n")


@pytest.mark.parametrize(
    "path", ["/", "/metric", "/metrics/../etc/passwd", "/healthz/", "/%2e%2e", "/%00", "/metrics%20"]
)
def test_other_paths_are_not_found(daemon: Daemon, path: str) -> None:
    page = daemon.get(path)
    assert page.status == 404
    assert page.text == "try /metrics, /healthz or /readyz\n"


def test_a_daemon_may_have_pages_of_its_own() -> None:
    pages = {"/": lambda: Reply("200 OK", "text/html", b"<p>", [("Cache-Control", "no-store")])}
    loop = asyncio.new_event_loop()
    exposition = Exposition(CollectorRegistry(), lambda: "", loop, pages)
    address = exposition.listen("127.0.0.1", 0, 0)
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=10) as reply:
            assert (reply.read(), reply.headers["Content-Type"]) == (b"<p>", "text/html")
            assert reply.headers["Cache-Control"] == "no-store"
        assert get(address, "/readyz").status == 200
        assert get(address, "/other").text == "try /metrics, /healthz, / or /readyz\n"
    finally:
        exposition.close()
        loop.close()


def test_a_daemon_whose_loop_turns_is_alive(daemon: Daemon) -> None:
    page = daemon.get("/healthz")
    assert (page.status, page.text) == (200, "alive\n")


def test_a_daemon_whose_loop_is_blocked_is_not_alive(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ALIVE_WITHIN", 0.05)
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait()

    daemon.loop.call_soon_threadsafe(block)
    assert blocked.wait(10)
    try:
        page = daemon.get("/healthz")
        metrics = daemon.get("/metrics")
    finally:
        go_on.set()
    assert (page.status, page.text) == (503, "the event loop does not answer\n")
    assert metrics.status == 200


def test_a_daemon_whose_loop_is_closed_is_not_alive() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    exposition = Exposition(CollectorRegistry(), lambda: "", loop)
    address = exposition.listen("127.0.0.1", 0, 0)
    page = get(address, "/healthz")
    exposition.close()
    assert page.status == 503


def test_scrapes_are_no_log_lines(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.get("/metrics")
    daemon.get("/nothing")
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_an_os_error(daemon: Daemon) -> None:
    host, _, port = daemon.address.rpartition(":")
    other = Exposition(CollectorRegistry(), lambda: "", daemon.loop)
    with pytest.raises(OSError, match="in use"):
        other.listen(host, int(port), 0)
    other.close()


def test_nobody_answers_after_the_close() -> None:
    loop = asyncio.new_event_loop()
    exposition = Exposition(CollectorRegistry(), lambda: "", loop)
    address = exposition.listen("127.0.0.1", 0, 0)
    assert get(address, "/readyz").status == 200
    exposition.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(address, "/readyz")
    loop.close()


def test_a_preferred_port_that_is_taken_is_none_that_was_asked_for(daemon: Daemon) -> None:
    taken = int(daemon.address.rpartition(":")[2])
    other = Exposition(CollectorRegistry(), lambda: "", daemon.loop)
    try:
        address = other.listen("127.0.0.1", None, taken)
        assert address != daemon.address
        assert address.startswith("127.0.0.1:")
    finally:
        other.close()
