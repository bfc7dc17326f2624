"""The status page: what ``/`` and ``/status.json`` of a server's metrics port show. Read only."""

from __future__ import annotations

import asyncio
import concurrent.futures
import html
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Final

from protocol.addresses import join_address
from protocol.daemon.exposition import Page, Reply
from protocol.json_text import json_text
from protocol.status import ClusterStatus

__all__ = ["coordinator_pages", "other_pages"]

_ANSWER_WITHIN: Final = 2.0  # seconds in which a healthy event loop tells the status
_FRESH: Final = 0.4  # seconds that an answer is given for: any number of pages costs as much as one

_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


def coordinator_pages(
    status: Callable[[], ClusterStatus], loop: asyncio.AbstractEventLoop
) -> Mapping[str, Page]:
    """Return the pages of a coordinator, by path.

    Args:
        status: of the cluster; called in ``loop``.
        loop: the server's.
    """
    page = _html(files("psserver").joinpath("status_page.html").read_text("utf-8"))
    return {"/": lambda: page, "/status.json": _StatusJson(status, loop)}


def other_pages(
    coordinator: Callable[[], tuple[str, int | None]], shard: Callable[[], int]
) -> Mapping[str, Page]:
    """Return the pages of a server that is not the coordinator.

    Args:
        coordinator: tells the host of the coordinator, and the port of its page if that is known.
        shard: tells this server's number.
    """

    def page() -> Reply:
        host, port = coordinator()
        where = f"http://{join_address(host, port)}/" if port is not None else ""
        link = f'<a href="{html.escape(where)}">{html.escape(where)}</a>'
        there = link if where else f"{html.escape(host)}, on its metrics port"
        return _html(_ELSEWHERE.format(shard=shard(), there=there))

    return {"/": page}


class _StatusJson:
    """The status as JSON, as ``psctl status --format json`` prints it."""

    def __init__(self, status: Callable[[], ClusterStatus], loop: asyncio.AbstractEventLoop) -> None:
        self._status = status
        self._loop = loop
        self._asking = threading.Lock()
        self._latest: Reply | None = None
        self._asked = 0.0

    def __call__(self) -> Reply:
        with self._asking:
            if self._latest is None or time.monotonic() - self._asked >= _FRESH:
                self._latest = self._reply()
                self._asked = time.monotonic()
            return self._latest

    def _reply(self) -> Reply:
        try:
            status = self._ask()
        except (RuntimeError, TimeoutError):  # the loop is closed, or does not get round to it
            text = b'{"error": "the event loop does not answer"}\n'
            return Reply("503 Service Unavailable", "application/json", text, _HEADERS)
        return Reply("200 OK", "application/json", json_text(status).encode(), _HEADERS)

    def _ask(self) -> ClusterStatus:
        answer: concurrent.futures.Future[ClusterStatus] = concurrent.futures.Future()

        def tell() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._status())
                except Exception as error:
                    answer.set_exception(error)

        self._loop.call_soon_threadsafe(tell)
        try:
            return answer.result(_ANSWER_WITHIN)
        finally:
            answer.cancel()  # nobody waits any more


def _html(text: str) -> Reply:
    """Return a page that may run and load nothing but what it brings itself, and ask its own server."""
    allowed = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of(text, 'script')}",
            f"style-src {_hash_of(text, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = (*_HEADERS, ("Content-Security-Policy", allowed))
    return Reply("200 OK", "text/html; charset=utf-8", text.encode(), headers)


def _hash_of(text: str, tag: str) -> str:
    """Return what allows the page's only element of this kind; without one, nothing is allowed."""
    _, _, rest = text.partition(f"<{tag}>")
    content, closed, _ = rest.partition(f"</{tag}>")
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'" if closed else "'none'"


_ELSEWHERE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>asyncps shard {shard}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.6 system-ui, sans-serif; margin: 15vh auto; max-width: 34rem; padding: 0 1.5rem }}
</style>
<h1>Shard {shard}</h1>
<p>The status of the cluster is shown by its coordinator: {there}.</p>
<p>Here are <a href="metrics">metrics</a>, <a href="healthz">healthz</a> and <a href="readyz">readyz</a>.</p>
</html>
"""
