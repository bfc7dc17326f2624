"""A real browser without a screen: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--no-sandbox",  # a container has no user namespaces; only pages of this project are opened
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def missing() -> str:
    """Return what a browser needs and is not here; "": nothing."""
    if not any(map(shutil.which, _NAMES)):
        return "no Chromium is here; install Debian's package chromium"
    try:
        import playwright.async_api as _  # noqa: F401
    except ImportError:
        return "no Playwright is here; pip install 'asyncps[dev]'"
    return ""


@asynccontextmanager
async def browser() -> AsyncIterator["Browser"]:
    """Yield a browser with a profile of its own, which is gone afterwards."""
    from playwright.async_api import async_playwright

    (path, *_) = filter(None, map(shutil.which, _NAMES))
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=path, args=_QUIET)
        try:
            yield running
        finally:
            await running.close()
