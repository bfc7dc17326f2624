"""`python -m benchmarks screenshots`: the pictures in docs/images, of a cluster at work."""

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from benchmarks.arguments import positive_float
from benchmarks.browser import browser, missing
from protocol.addresses import split_address
from protocol.json_text import json_text
from protocol.status import ClusterStatus, JobStatus
from psctl import LocalCluster, ProcessFailed
from psctl.dashboard import Dashboard, View
from psctl.waits import felt
from psworker.asking import fetch_status

if TYPE_CHECKING:
    from playwright.async_api import Browser, Route, ViewportSize

_DOCS = Path(__file__).parents[1] / "docs" / "images"
_NAMES = ("status-page.png", "status-page-dark.png", "top.png")
_PAGE: "ViewportSize" = {"width": 1240, "height": 1180}
_SCALE = 1.25
_TERMINAL = (118, 42)  # columns, lines
_THEME = TerminalTheme(
    (13, 17, 23), (214, 221, 230),
    [
        (72, 79, 88), (255, 123, 114), (86, 208, 124), (243, 176, 79),
        (76, 110, 245), (195, 155, 255), (86, 206, 226), (214, 221, 230),
    ],
)  # fmt: skip
_WINDOW = """<style>
body {{ background: transparent; margin: 0 }}
main {{ background: {background}; border-radius: 10px; color: {foreground}; padding: 0 18px 14px }}
main {{ width: max-content }}
pre {{ font: 14px/17px 'DejaVu Sans Mono', monospace; margin: 0 }}
p {{ color: #93a0b2; font: 13px/38px sans-serif; margin: 0; text-align: center }}
i {{ background: #484f58; border-radius: 6px; float: left; height: 12px; margin: 13px 8px 0 0; width: 12px }}
b {{ display: inline-block; white-space: pre }}
b b {{ font-weight: normal; transform: scaleX(.8224); transform-origin: 0 0 }}
</style>
<main><p><i></i><i></i><i></i>psctl top</p><pre>{code}</pre></main>
"""
# DejaVu Sans Mono has no Braille; that of DejaVu Sans is wider by 1/.8224.
_BRAILLE = re.compile("[\u2800-\u28ff]+")
_JOB = (
    "train.epochs=500", "train.batch-size=32", "train.staleness=3",
    "eval.every=10 epochs", "optimizer.lr=0.002",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Train, hold up one worker, and take the pictures; return the exit status."""
    options = _parse(arguments)
    if problem := missing():
        print(f"screenshots: {problem}", file=sys.stderr)
        return 2
    options.into.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="asyncps-") as state, _cluster(Path(state)) as cluster:
            asyncio.run(_take_pictures(cluster, options.into, options.at))
    except (ProcessFailed, TimeoutError) as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 1
    for name in _NAMES:
        _make_small(options.into / name)
        print(f"{options.into / name} ({(options.into / name).stat().st_size // 1024} KiB)")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks screenshots", description=__doc__)
    parser.add_argument("--into", type=Path, default=_DOCS, metavar="DIR", help="default: docs/images")
    parser.add_argument(
        "--at", type=positive_float, default=0.6, metavar="SHARE", help="of the job; default: 0.6"
    )
    return parser.parse_args(arguments)


def _cluster(state: Path) -> LocalCluster:
    return LocalCluster(
        servers=2, workers=6, overrides=_JOB,
        checkpoint_dir=state, durability="log", checkpoint_every="20s", server_flags=("--log-sync", "1s"),
    )  # fmt: skip


async def _take_pictures(cluster: LocalCluster, into: Path, at: float) -> None:
    await _until(cluster, lambda job: _done(job) > at)
    with _held_up(cluster.workers[4].pid):
        # Nobody may be more than 3 steps ahead of it, so the others wait before long.
        status = await _until(cluster, _waits_for_a_suspect)
    async with browser() as running:
        await _draw_page(running, cluster.metrics[0], status, "light", into / "status-page.png")
        await _draw_page(running, cluster.metrics[0], status, "dark", into / "status-page-dark.png")
        await _draw_terminal(running, cluster.address, status, into / "top.png")


def _done(job: JobStatus) -> float:
    return job.progress.chunks_done / job.progress.chunks if job.progress is not None else 0.0


def _waits_for_a_suspect(job: JobStatus) -> bool:
    return bool(felt(job.waits)) and any(worker.state == "suspect" for worker in job.workers)


async def _until(cluster: LocalCluster, condition: Callable[[JobStatus], bool]) -> ClusterStatus:
    """Look until the condition holds of the job."""
    while True:
        status = await fetch_status(*split_address(cluster.address))
        if status.jobs and condition(status.jobs[0]):
            return status
        cluster.poll()
        await asyncio.sleep(0.1)


@contextmanager
def _held_up(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _draw_page(
    running: "Browser", metrics: str, status: ClusterStatus, scheme: Literal["light", "dark"], path: Path
) -> None:
    """Draw the cluster's own page, which is told this status and no later one."""

    async def tell(route: "Route") -> None:
        await route.fulfill(body=json_text(status), content_type="application/json")

    page = await running.new_page(viewport=_PAGE, color_scheme=scheme, device_scale_factor=_SCALE)
    await page.route("**/status.json", tell)
    await page.goto(f"http://{metrics}/")
    await page.wait_for_selector("[data-job]")
    await page.screenshot(path=path)


async def _draw_terminal(running: "Browser", address: str, status: ClusterStatus, path: Path) -> None:
    """Draw what `psctl top` shows of a status, in a font that has all its characters."""
    width, height = _TERMINAL
    console = Console(
        file=StringIO(), width=width, height=height, record=True, force_terminal=True, color_system="standard"
    )
    console.print(Dashboard(status, View(), address, "every 1 s; q or Ctrl-C ends"))
    page = await running.new_page(device_scale_factor=_SCALE)
    drawn = console.export_html(code_format=_WINDOW, inline_styles=True, theme=_THEME)
    await page.set_content(_BRAILLE.sub(_as_wide_as_text, drawn))
    await page.locator("main").screenshot(path=path, omit_background=True)


def _as_wide_as_text(found: "re.Match[str]") -> str:
    return f'<b style="width: {len(found[0])}ch"><b>{found[0]}</b></b>'


def _make_small(picture: Path) -> None:
    """Leave 256 colours of a picture, where Debian's package pngquant is installed."""
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--output", picture, "256", picture], check=True)
