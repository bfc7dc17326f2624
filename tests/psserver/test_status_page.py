"""The status page and its JSON, without a browser."""

import asyncio
import html.parser
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files

import pytest

from protocol.daemon.exposition import Reply
from protocol.json_text import json_text
from protocol.status import ClusterStatus, ShardStatus
from psserver import status_page
from psserver.status_page import coordinator_pages, other_pages

STATUS = ClusterStatus("0.1.0", 1.0, (ShardStatus(0, "127.0.0.1:7070", "ready", 0, 0.0),), ())


def policy(reply: Reply) -> dict[str, str]:
    """Return the page's content security policy, by directive."""
    directives = dict(reply.headers)["Content-Security-Policy"].split("; ")
    return dict(directive.split(" ", 1) for directive in directives)


class Elements(html.parser.HTMLParser):
    """All elements of a page, and what scripts and styles hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.inline.setdefault(self.found[-1][0], data)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that turns in another thread, as the server's does for the thread that serves pages."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


@pytest.fixture
def coordinator_page(loop: asyncio.AbstractEventLoop) -> Reply:
    return coordinator_pages(lambda: STATUS, loop)["/"]()


def test_the_page_may_run_and_load_only_what_it_brings(coordinator_page: Reply) -> None:
    reply = coordinator_page
    allowed = policy(reply)
    inline = Elements(reply.body.decode()).inline
    assert allowed["default-src"] == "'none'"
    assert allowed["connect-src"] == "'self'"
    assert allowed["frame-ancestors"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    for tag in ("script", "style"):
        digest = b64encode(sha256(inline[tag].encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == f"'sha256-{digest}'"
    assert dict(reply.headers)["X-Content-Type-Options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere(coordinator_page: Reply) -> None:
    page = Elements(coordinator_page.body.decode())
    for tag, attributes in page.found:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for place in filter(None, (attributes.get("src"), attributes.get("href"))):
            assert place.startswith("data:") or place in ("status.json", "metrics", "healthz", "readyz")
    assert [tag for tag, _ in page.found].count("script") == 1
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http:/",
        "https:",
    ):
        assert word not in page.inline["script"].replace("http://www.w3.org/2000/svg", "")


def test_the_page_is_a_file_of_the_package(coordinator_page: Reply) -> None:
    assert coordinator_page.body == files("psserver").joinpath("status_page.html").read_bytes()


def test_the_status_is_what_psctl_prints(loop: asyncio.AbstractEventLoop) -> None:
    reply = coordinator_pages(lambda: STATUS, loop)["/status.json"]()
    assert (reply.status, reply.kind) == ("200 OK", "application/json")
    assert reply.body.decode() == json_text(STATUS)
    assert dict(reply.headers)["Cache-Control"] == "no-store"


def test_the_status_is_asked_for_in_the_server_s_loop(loop: asyncio.AbstractEventLoop) -> None:
    asked_in: list[asyncio.AbstractEventLoop] = []

    def status() -> ClusterStatus:
        asked_in.append(asyncio.get_running_loop())
        return STATUS

    coordinator_pages(status, loop)["/status.json"]()
    assert asked_in == [loop]


def test_any_number_of_pages_costs_as_much_as_one(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def status() -> ClusterStatus:
        asked.append(None)
        return STATUS

    monkeypatch.setattr(status_page, "_FRESH", 1e9)
    page = coordinator_pages(status, loop)["/status.json"]
    assert [page().body for _ in range(5)] == [json_text(STATUS).encode()] * 5
    assert len(asked) == 1
    monkeypatch.setattr(status_page, "_FRESH", 0.0)
    page()
    assert len(asked) == 2


def test_a_loop_that_is_blocked_has_no_status(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_page, "_ANSWER_WITHIN", 0.05)
    asked: list[None] = []

    def status() -> ClusterStatus:
        asked.append(None)
        return STATUS

    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait()

    loop.call_soon_threadsafe(block)
    assert blocked.wait(10)
    page = coordinator_pages(status, loop)["/status.json"]
    try:
        reply = page()
    finally:
        go_on.set()
    assert reply.status == "503 Service Unavailable"
    assert json.loads(reply.body) == {"error": "the event loop does not answer"}
    monkeypatch.setattr(status_page, "_ANSWER_WITHIN", 10.0)
    monkeypatch.setattr(status_page, "_FRESH", 0.0)
    assert page().status == "200 OK"
    assert len(asked) == 1  # what nobody waited for any more was not looked up


def test_a_loop_that_is_closed_has_no_status() -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    assert coordinator_pages(lambda: STATUS, closed)["/status.json"]().status.startswith("503")


def test_a_status_that_cannot_be_told_is_a_defect(loop: asyncio.AbstractEventLoop) -> None:
    def status() -> ClusterStatus:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        coordinator_pages(status, loop)["/status.json"]()


# --- other servers


@pytest.mark.parametrize(
    ("host", "port", "link"),
    [
        ("10.0.0.5", 9464, "http://10.0.0.5:9464/"),
        ("psserver-0.psserver", 9464, "http://psserver-0.psserver:9464/"),
        ("::1", 9464, "http://[::1]:9464/"),
    ],
)
def test_other_servers_point_to_the_coordinator(host: str, port: int, link: str) -> None:
    pages = other_pages(lambda: (host, port), lambda: 3)
    text = pages["/"]().body.decode()
    assert f'<a href="{link}">{link}</a>' in text
    assert "<h1>Shard 3</h1>" in text
    assert pages.keys() == {"/"}
    assert policy(pages["/"]())["script-src"] == "'none'"


def test_a_coordinator_without_a_page_is_named() -> None:
    text = other_pages(lambda: ("<b>10.0.0.5", None), lambda: 3)["/"]().body.decode()
    assert "by its coordinator: &lt;b&gt;10.0.0.5, on its metrics port." in text
